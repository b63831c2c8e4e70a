"""Augmentation in the training step: where, how often, and for all alike."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import runs, tiny
from trainer import augmentations, losses, models, penalties, train
from trainer.adversarial import AdversarialRound, Contribution
from trainer.config import Config
from trainer.heartbeat import Heartbeat
from trainer.network import Network
from trainer.regularizer import Regularizer
from trainer.train_state import TrainState

_BATCH_SIZE = 8
_ALL = ",".join(augmentations.AUGMENTATIONS)


def _linear_discriminator() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(tiny.MICRO_SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ],
        name="discriminator",
    )


def _state(**settings) -> TrainState:
    settings = {"discriminator": tiny.build_micro_discriminator} | settings
    return tiny.build_state(
        tf.distribute.get_strategy(),
        generator=lambda: tiny.build_micro_generator(sync_batch_norm=False),
        **settings,
    )


def _contribution(
    state: TrainState, augment=None, *, probability=1.0, **settings
) -> Contribution:
    samples = tiny.micro_noise().samples[:_BATCH_SIZE]
    adversarial_round = AdversarialRound(
        loss=losses.non_saturating,
        latent_dim=tiny.LATENT_DIM,
        global_batch_size=_BATCH_SIZE,
        num_parts=1,
        seed=0,
        augment=augment,
        **settings,
    )
    return adversarial_round.contribution(
        Network.of(state.generator),
        Network.of(state.discriminator),
        real=tf.constant(samples / 127.5 - 1.0, tf.float32),
        step=tf.constant(3, tf.int64),
        d_update=tf.constant(3, tf.int64),
        first_position=tf.constant(0, tf.int64),
        g_scale=tf.constant(1.0),
        d_scale=tf.constant(1.0),
        augment_probability=probability,
    )


def test_at_0_training_is_that_without_it() -> None:
    state = _state()
    regularizer = Regularizer(penalties.get("r1_r2"), weight=1.0)
    plain = _contribution(state, regularizer=regularizer)
    off = _contribution(
        state,
        augmentations.get(_ALL),
        probability=0.0,
        regularizer=regularizer,
    )
    on = _contribution(state, augmentations.get(_ALL), regularizer=regularizer)
    for one, other in zip(
        tf.nest.flatten(plain), tf.nest.flatten(off), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
    for name in ("g_gradients", "d_gradients"):
        for one, other in zip(
            getattr(plain, name), getattr(on, name), strict=True
        ):
            assert not np.allclose(other, one, rtol=0.01)


def test_it_is_for_real_and_generated_alike() -> None:
    # What makes both the same leaves nothing to tell them apart by, and the
    # generator nothing to learn from.
    state = _state(discriminator=_linear_discriminator)

    def blind(samples: tf.Tensor, **_) -> tf.Tensor:
        return 0.0 * samples

    contribution = _contribution(state, blind)
    _, _, real_probability, fake_probability = contribution.means.numpy()
    assert real_probability == fake_probability == 0.5
    assert not any(np.any(g) for g in contribution.g_gradients)


@pytest.mark.parametrize("name", augmentations.AUGMENTATIONS)
def test_the_generator_is_trained_through_it(name: str) -> None:
    state = _state(discriminator=_linear_discriminator)
    plain = _contribution(state)
    through = _contribution(state, augmentations.get(name))
    for one, other in zip(plain.g_gradients, through.g_gradients, strict=True):
        assert np.linalg.norm(other) > 0.0
        assert not np.allclose(other, one, rtol=0.01)


def test_every_use_draws_for_each_example_by_itself() -> None:
    drawn = []

    def record(samples: tf.Tensor, *, draws, probability) -> tf.Tensor:
        numbers = draws.uniform((samples.shape[0], 2))
        drawn.extend(number.tobytes() for number in numbers.numpy())
        return samples

    _contribution(
        _state(),
        record,
        regularizer=Regularizer(penalties.get("r1_r2"), weight=1.0),
    )
    # Real and generated ones, once in the loss, once in the penalty.
    assert len(drawn) == len(set(drawn)) == 4 * _BATCH_SIZE


def test_a_penalty_sees_the_discriminator_behind_it() -> None:
    # The slope of a linear one is its weights; behind a cutout, those that are
    # not cut out.
    state = _state(discriminator=_linear_discriminator)
    weights = state.discriminator.get_weights()[0].reshape(tiny.MICRO_SHAPE)
    r1 = Regularizer(penalties.get("r1"), weight=1.0)
    plain = _contribution(state, regularizer=r1).means.numpy()[-1]
    assert plain == pytest.approx(np.sum(weights**2), rel=1e-5)
    masks = []

    def cut(samples: tf.Tensor, **settings) -> tf.Tensor:
        masks.append(augmentations.cutout(tf.ones_like(samples), **settings))
        return samples * masks[-1]

    behind = _contribution(state, cut, regularizer=r1).means.numpy()[-1]
    kept = masks[2].numpy()  # After those of real and of generated ones.
    expected = np.sum((weights * kept) ** 2, axis=(1, 2, 3)).mean()
    assert behind == pytest.approx(expected, rel=1e-5)
    assert behind < 0.95 * plain


def test_two_replicas_do_what_one_does() -> None:
    # With dropout, synchronized batch norm and a probability that moves.
    settings = {
        "augment": _ALL,
        "augment_target": 0.0,
        "augment_speed_images": 100,
        "penalty": "r1_r2",
        "state_settings": {"learning_rate": 1e-4},
    }
    one, two = (
        tiny.make_micro(num_replicas, **settings) for num_replicas in (1, 2)
    )
    for state, _ in (one, two):
        _lift_logits(state)
    tiny.assert_alike(one, two, num_steps=5)
    # After four steps, 64 of 100 images.
    assert one[0].augment_probability.value.numpy() == pytest.approx(0.64)
    for variable in two[0].variables:
        first, second = (copy.numpy() for copy in variable.values)
        np.testing.assert_array_equal(first, second)


def test_accumulated_parts_are_augmented_as_the_whole() -> None:
    settings = {
        "augment": _ALL,
        "num_discriminator_steps": 2,
        "state_settings": {
            "learning_rate": 1e-4,
            # Which would see a part at a time.
            "generator": _build_plain_generator,
        },
    }
    tiny.assert_alike(
        tiny.make_micro(**settings),
        tiny.make_micro(num_accumulation_steps=2, **settings),
        num_steps=2,
    )


def _build_plain_generator() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input([tiny.LATENT_DIM]),
            keras.layers.Dense(64, activation="tanh"),
            keras.layers.Reshape(tiny.MICRO_SHAPE),
        ],
        name="generator",
    )


def _lift_logits(state: TrainState, bias: float = 100.0) -> None:
    """Makes all logits positive, whatever the images."""
    state.discriminator.layers[-1].bias.assign([bias])


def test_the_probability_follows_the_signs_of_real_logits() -> None:
    state, step = tiny.make_micro(
        augment=_ALL,
        augment_target=0.6,
        num_discriminator_steps=2,
        state_settings={"learning_rate": 1e-6},
    )
    _lift_logits(state)
    metrics = [step.run(1) for _ in range(5)]
    assert [m["real_sign"] for m in metrics] == [1.0] * 5
    # Two updates a step: after two steps of 16 images each, 64 of 1,000. What
    # is reported is what the last update was computed with.
    np.testing.assert_allclose(
        [m["augment_probability"] for m in metrics],
        [0.0, 0.0, 0.064, 0.064, 0.128],
        rtol=1e-6,
    )
    _lift_logits(state, -100.0)
    assert step.run(1)["real_sign"] == -1.0
    assert step.run(1)["augment_probability"] == pytest.approx(0.064)
    step.run(3)
    assert state.augment_probability.value.numpy() == 0.0
    assert step.num_traces == 1


def test_the_step_augments_with_its_probability() -> None:
    def first_update(
        value: float | None = None, **settings
    ) -> list[np.ndarray]:
        state, step = tiny.make_micro(
            state_settings={"generator": _build_plain_generator}, **settings
        )
        if value is not None:
            state.augment_probability.value.assign(value)
        step.run(1)
        return state.discriminator.get_weights()

    adaptive = {"augment": _ALL, "augment_target": 0.6}
    without = first_update()
    always = first_update(augment=_ALL)
    for one, other, weights in zip(
        first_update(augment=_ALL, augment_probability=0.0),
        first_update(**adaptive),
        without,
        strict=True,
    ):
        np.testing.assert_allclose(one, weights, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(one, other)
    for one, weights in zip(first_update(1.0, **adaptive), always, strict=True):
        np.testing.assert_array_equal(one, weights)
    assert not np.allclose(without[0], always[0], rtol=0, atol=1e-5)


def test_a_fixed_probability_has_no_state_and_no_metrics() -> None:
    plain, plain_step = tiny.make_micro()
    state, step = tiny.make_micro(augment=_ALL, augment_probability=0.5)
    assert len(state.variables) == len(plain.variables)
    assert step.run(1).keys() == plain_step.run(1).keys()


@pytest.mark.parametrize(
    "precision", ["float32", "mixed_float16", "mixed_bfloat16"]
)
def test_every_precision_is_augmented_and_compiled_by_xla(
    precision: str,
) -> None:
    settings = {
        "augment": _ALL,
        "augment_target": 0.0,
        "augment_speed_images": 100,
        "penalty": "r1",
        "state_settings": {
            "precision": precision,
            "generator": _build_plain_generator,
        },
    }
    (state, step), (jit_state, jit_step) = (
        tiny.make_micro(jit_compile=jit_compile, **settings)
        for jit_compile in (False, True)
    )
    for each in (state, jit_state):
        _lift_logits(each, 5.0)
    tolerance = 1e-4 if precision == "float32" else 0.03
    for _ in range(5):
        metrics, jit_metrics = step.run(1), jit_step.run(1)
        for name in ("penalty", "d_gradient_norm", "g_loss", "real_sign"):
            assert jit_metrics[name] == pytest.approx(
                metrics[name], rel=tolerance
            )
    assert jit_metrics["augment_probability"] == pytest.approx(0.64)
    assert step.num_traces == jit_step.num_traces == 1


def test_logits_that_overflow_leave_the_probability_fit_to_be_saved() -> None:
    state, step = tiny.make_micro(
        augment=_ALL,
        augment_target=0.6,
        state_settings={"precision": "mixed_float16"},
    )
    step.run(1)
    before = [v.numpy() for v in state.augment_probability.variables]
    [bias] = [w for w in state.generator.weights if w.path.endswith("/bias")]
    kernel = state.discriminator.layers[-1].kernel
    bias.assign([np.nan])
    kernel.assign(np.nan * kernel)
    metrics = step.run(1)
    assert np.isnan(metrics["real_sign"])
    assert metrics["d_skipped_steps"] == 1
    after = [v.numpy() for v in state.augment_probability.variables]
    assert after == before


def test_a_run_is_resumed_to_the_same_bits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the average, lazy penalties and the adaptive probability in play,
    # stopped between two adjustments.
    monkeypatch.setitem(
        models.MODELS,
        "dcgan28",
        models.Model(tiny.build_generator, tiny.build_discriminator),
    )

    def run(name: str, **changes) -> pathlib.Path:
        config = Config(
            workdir=str(tmp_path / name),
            batch_size=128,
            latent_dim=tiny.LATENT_DIM,
            epochs=1,
            num_logical_cpus=1,
            steps_per_loop=3,
            log_every_steps=1,
            augment="translate,colour,cutout",
            augment_target=0.0,
            augment_speed_images=2000,
            penalty="r1",
            penalty_every_steps=3,
            ema_half_life_images=1000,
            **changes,
        )
        config.validate()
        heartbeat = Heartbeat(stall_timeout_secs=300)
        assert train.run(config.resolve(), heartbeat) == 0
        return tmp_path / name

    straight = run("straight")
    run("stopped", max_steps=6)
    runs.assert_same(run("stopped"), straight)
    probabilities = [r["augment_probability"] for r in runs.records(straight)]
    # The probability has moved before and after the stop.
    assert len(probabilities) == 14
    assert len({probabilities[i] for i in (0, 5, 9)}) == 3
    tensors = runs.bundle(straight)
    names = [name for name in tensors if "augment_probability" in name]
    assert len(names) == 3
