"""The generator's average against its closed form."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from trainer.ema import Ema

_HALF_LIFE_IMAGES = 3
_SIZE = tiny.GLOBAL_BATCH_SIZE


def _values(network) -> list[np.ndarray]:
    return [v.numpy().astype(np.float64) for v in network.variables]


def test_decays_are_those_of_the_half_life_and_its_ramp_up() -> None:
    ema = Ema(None, half_life_images=1000, images_per_step=16)
    steps = np.array([0, 1, 10, 1249, 1250, 10**9])
    half_lives = np.minimum(0.05 * 16 * steps, 1000)
    expected = [0.0, *0.5 ** (16 / half_lives[1:])]
    actual = [float(ema.decay(tf.constant(step, tf.int64))) for step in steps]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_it_is_the_weighted_sum_of_all_states(num_replicas: int) -> None:
    state, step = tiny.make_micro(
        num_replicas,
        ema_half_life_images=_HALF_LIFE_IMAGES,
        state_settings={"learning_rate": 1e-2},
    )
    for a, b in zip(
        _values(state.ema_generator), _values(state.generator), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    history = []
    for _ in range(5):
        step.run(1)
        history.append(_values(state.generator))
        if len(history) == 1:  # The initial weights are forgotten at once.
            for a, b in zip(
                _values(state.ema_generator), history[0], strict=True
            ):
                np.testing.assert_array_equal(a, b)
    decays = [
        0.5 ** (_SIZE / min(_HALF_LIFE_IMAGES, 0.05 * _SIZE * index))
        for index in range(1, 5)
    ]
    # State i keeps (1 - decay i) times all later decays.
    shares = [1.0, *(1.0 - d for d in decays)]
    weights = [s * np.prod(decays[i:]) for i, s in enumerate(shares)]
    assert sum(weights) == pytest.approx(1.0)
    assert weights[3] > 0.01
    # Moving statistics among them.
    for index, average in enumerate(_values(state.ema_generator)):
        expected = sum(
            w * values[index]
            for w, values in zip(weights, history, strict=True)
        )
        np.testing.assert_allclose(average, expected, rtol=0, atol=1e-6)
    if num_replicas == 2:
        for variable in state.variables:
            first, second = (copy.numpy() for copy in variable.values)
            np.testing.assert_array_equal(first, second)


def test_an_update_that_is_left_out_does_not_move_it() -> None:
    state, step = tiny.make_micro(
        ema_half_life_images=_HALF_LIFE_IMAGES,
        state_settings={"precision": "mixed_float16"},
    )
    initial = _values(state.ema_generator)
    step.run(2)
    before = _values(state.ema_generator)
    assert not np.array_equal(before[0], initial[0])
    [bias] = [w for w in state.generator.weights if w.path.endswith("/bias")]
    bias.assign([np.nan])
    assert step.run(1)["g_skipped_steps"] == 1
    for a, b in zip(_values(state.ema_generator), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_is_the_same_without_it() -> None:
    plain, plain_step = tiny.make_micro()
    state, step = tiny.make_micro(ema_half_life_images=_HALF_LIFE_IMAGES)
    plain_step.run(2)
    step.run(2)
    assert plain.shown_generator is plain.generator
    assert state.shown_generator is state.ema_generator
    for a, b in zip(tiny.values(plain)[:-1], tiny.values(state), strict=False):
        np.testing.assert_array_equal(a, b)


def test_a_run_is_resumed_bit_for_bit(tmp_path: pathlib.Path) -> None:
    settings = {
        "num_replicas": 2,
        "ema_half_life_images": 20,
        "penalty": "r1_r2",
        "penalty_every_steps": 3,
        "num_discriminator_steps": 2,
    }
    state, step = tiny.make_micro(**settings)
    step.run(2)
    path = state.as_checkpoint().write(str(tmp_path / "state"))
    metrics = step.run(2)
    resumed, resumed_step = tiny.make_micro(checkpoint=path, **settings)
    resumed_metrics = resumed_step.run(2)
    for name in set(metrics) - {"data_wait_secs"}:
        assert resumed_metrics[name] == metrics[name]
    for a, b in zip(tiny.values(state), tiny.values(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
