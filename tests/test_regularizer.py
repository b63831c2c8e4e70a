"""Penalties in the training step: weight, interval, precision, replicas."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from trainer import errors, losses, penalties, randomness
from trainer.adversarial import AdversarialRound, Contribution
from trainer.models import layers
from trainer.network import Network
from trainer.regularizer import Regularizer
from trainer.train_state import TrainState

_KINDS = [name for name in penalties.PENALTIES if name != "none"]
_BATCH_SIZE = 8


def _state(**settings) -> TrainState:
    return tiny.build_state(
        tf.distribute.get_strategy(),
        generator=lambda: tiny.build_micro_generator(sync_batch_norm=False),
        discriminator=tiny.build_micro_discriminator,
        **settings,
    )


def _real() -> tf.Tensor:
    samples = tiny.micro_noise().samples[:_BATCH_SIZE]
    return tf.constant(samples / 127.5 - 1.0, tf.float32)


def _contribution(
    state: TrainState, loss: str, regularizer: Regularizer | None, step: int = 0
) -> Contribution:
    adversarial_round = AdversarialRound(
        loss=losses.get(loss),
        latent_dim=tiny.LATENT_DIM,
        global_batch_size=_BATCH_SIZE,
        num_parts=1,
        seed=0,
        regularizer=regularizer,
    )
    return adversarial_round.contribution(
        Network.of(state.generator),
        Network.of(state.discriminator),
        real=_real(),
        step=tf.constant(step, tf.int64),
        d_update=tf.constant(step, tf.int64),
        first_position=tf.constant(0, tf.int64),
        g_scale=tf.constant(1.0),
        d_scale=tf.constant(1.0),
    )


def _sum_and_gradients(
    state: TrainState, regularizer: Regularizer, step: int = 0
) -> tuple[float, list[np.ndarray]]:
    total, gradients = regularizer.sum_and_gradients(
        Network.of(state.discriminator),
        real=_real(),
        fake=0.5 * _real(),
        d_update=tf.constant(step, tf.int64),
        draws=functools.partial(randomness.Draws, seed=0, step=step),
        scale=tf.constant(1.0),
    )
    return float(total), [gradient.numpy() for gradient in gradients]


def test_every_loss_goes_with_every_penalty() -> None:
    state = _state()
    for loss in losses.LOSSES:
        plain = _contribution(state, loss, None)
        for kind in _KINDS:
            penalty = penalties.get(kind)
            once, twice = (
                _contribution(state, loss, Regularizer(penalty, weight=weight))
                for weight in (1.0, 2.0)
            )
            # The means, the generator's gradients: nothing else has changed.
            np.testing.assert_array_equal(once.means[:-1], plain.means)
            for a, b in zip(once.g_gradients, plain.g_gradients, strict=True):
                np.testing.assert_array_equal(a, b)
            # The discriminator's are a sum, in proportion to the weight.
            added = [
                (a - b).numpy()
                for a, b in zip(
                    once.d_gradients, plain.d_gradients, strict=True
                )
            ]
            assert np.linalg.norm(added[0]) > 1e-4
            for a, b, one in zip(
                twice.d_gradients, plain.d_gradients, added, strict=True
            ):
                np.testing.assert_allclose(a - b, 2.0 * one, atol=1e-5)
            assert once.means[-1] > 0
            for module, gradients in (
                (state.g_optimizer, once.g_gradients),
                (state.d_optimizer, once.d_gradients),
            ):
                module.apply(gradients)
            plain = _contribution(state, loss, None)
    assert state.d_optimizer.num_updates.numpy() == 30
    assert all(np.isfinite(value).all() for value in tiny.values(state))


@pytest.mark.parametrize(
    ("loss", "kind"), zip(losses.LOSSES, penalties.PENALTIES, strict=True)
)
def test_two_replicas_do_what_one_does(loss: str, kind: str) -> None:
    # With dropout and synchronized batch norm, penalized at steps 0 and 2.
    one, two = (
        tiny.make_micro(
            num_replicas,
            loss=losses.get(loss),
            penalty=kind,
            penalty_every_steps=1 if kind == "none" else 2,
            state_settings={"learning_rate": 1e-4},
        )
        for num_replicas in (1, 2)
    )
    tiny.assert_alike(one, two, num_steps=3)
    assert one[1].num_traces == two[1].num_traces == 1
    for variable in two[0].variables:
        first, second = (copy.numpy() for copy in variable.values)
        np.testing.assert_array_equal(first, second)


def test_the_gradient_is_the_weight_times_the_penalty_s() -> None:
    state = _state()
    penalty = penalties.get("r1")
    state.discriminator.layers[2].rate = 0.0
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            real = _real()
            inner.watch(real)
            logits = state.discriminator(real, training=True)
        slopes = inner.gradient(logits, real)
        squares = tf.reduce_sum(tf.square(slopes))
    expected = outer.gradient(
        squares,
        [w.value for w in state.discriminator.trainable_variables],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    total, gradients = _sum_and_gradients(
        state, Regularizer(penalty, weight=0.3)
    )
    assert total == pytest.approx(float(squares), rel=1e-5)
    for actual, one in zip(gradients, expected, strict=True):
        # gamma / 2.
        np.testing.assert_allclose(
            actual, 0.15 * one.numpy(), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("kind", _KINDS)
def test_a_linear_discriminator_s_gradient_is_that_of_the_paper(
    kind: str,
) -> None:
    # D(x) = <w, x>, whose slope is w at all samples.
    kernel = np.array([[0.5], [-2.0], [1.5]], np.float32)
    discriminator = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
    discriminator.set_weights([kernel, np.zeros(1)])
    norm = np.linalg.norm(kernel)
    expected = {
        "r1": 0.3 * kernel,  # Of gamma / 2 |w|^2.
        "r2": 0.3 * kernel,
        "r1_r2": 0.6 * kernel,
        # Of lambda (|w| - 1)^2.
        "wgan_gp": 0.6 * (norm - 1.0) * kernel / norm,
        "dragan": 0.6 * (norm - 1.0) * kernel / norm,
    }[kind]
    samples = tf.constant(np.arange(6.0).reshape(2, 3), tf.float32)
    _, (gradient, _) = Regularizer(
        penalties.get(kind), weight=0.3
    ).sum_and_gradients(
        Network.of(discriminator),
        real=samples,
        fake=-samples,
        d_update=tf.constant(0, tf.int64),
        draws=functools.partial(randomness.Draws, seed=0, step=0),
        scale=tf.constant(0.5),  # A share of two examples each.
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_a_lazy_penalty_is_as_many_times_heavier() -> None:
    state = _state()
    penalty = penalties.get("r1_r2")
    lazy = Regularizer(penalty, weight=0.5, every_steps=4)
    for step in range(6):
        total, gradients = _sum_and_gradients(state, lazy, step)
        if step % 4:
            assert total == 0.0
            assert not any(np.any(gradient) for gradient in gradients)
            continue
        heavy = Regularizer(penalty, weight=2.0)
        expected_total, expected = _sum_and_gradients(state, heavy, step)
        assert total == expected_total
        for actual, one in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(actual, one, rtol=1e-6)


def test_the_newest_penalty_is_reported_until_the_next_one() -> None:
    _, step = tiny.make_micro(penalty="r1", penalty_every_steps=2)
    seen = [step.run(1)["penalty"] for _ in range(4)]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert step.num_traces == 1
    assert min(seen) > 0


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_slopes_neither_vanish_nor_overflow_in_less_precision(
    precision: str, factor: float
) -> None:
    # In float16, squares vanish below 6e-8 and overflow above 65504.
    exact, state = _state(), _state(precision=precision)
    for network in (exact.discriminator, state.discriminator):
        network.set_weights([factor * w for w in network.get_weights()])
        network.layers[2].rate = 0.0
    twin = state.build_float32_discriminator()
    twin.layers[2].rate = 0.0
    assert exact.build_float32_discriminator() is None
    penalty = penalties.get("r1_r2")
    total, gradients = _sum_and_gradients(
        state, Regularizer(penalty, weight=1.0, float32_discriminator=twin)
    )
    expected_total, expected = _sum_and_gradients(
        exact, Regularizer(penalty, weight=1.0)
    )
    assert total == pytest.approx(expected_total, rel=1e-6, abs=0)
    assert 0 < total < np.inf
    for actual, one in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(actual, one, rtol=1e-5)
    low, _ = _sum_and_gradients(state, Regularizer(penalty, weight=1.0))
    # What the twin is for.
    assert low != pytest.approx(expected_total, rel=1e-4, abs=0)


@pytest.mark.parametrize(
    ("precision", "num_accumulation_steps", "every_steps"),
    [("float32", 1, 2), ("mixed_float16", 2, 1), ("mixed_bfloat16", 1, 2)],
)
def test_xla_compiles_second_order_gradients_in_all_precisions(
    precision: str, num_accumulation_steps: int, every_steps: int
) -> None:
    settings = {
        "penalty": "wgan_gp",
        "penalty_every_steps": every_steps,
        "num_accumulation_steps": num_accumulation_steps,
        "state_settings": {
            "precision": precision,
            "generator": lambda: tiny.build_micro_generator(
                sync_batch_norm=False
            ),
        },
    }
    _, step = tiny.make_micro(2, **settings)
    state, jit_step = tiny.make_micro(2, jit_compile=True, **settings)
    for _ in range(2):
        metrics, jit_metrics = step.run(1), jit_step.run(1)
        tolerance = 1e-4 if precision == "float32" else 0.03
        for name in ("penalty", "d_gradient_norm", "g_loss"):
            assert jit_metrics[name] == pytest.approx(
                metrics[name], rel=tolerance
            )
    assert jit_step.num_traces == 1
    assert state.d_optimizer.num_updates.numpy() == 2


def test_a_skipped_update_forgets_its_penalty() -> None:
    # Else the state would hold a NaN, and could not be saved.
    state, step = tiny.make_micro(
        penalty="r2", state_settings={"precision": "mixed_float16"}
    )
    penalty = step.run(1)["penalty"]
    [bias] = [w for w in state.generator.weights if w.path.endswith("/bias")]
    bias.assign([np.inf])
    kernels = state.discriminator.get_weights()
    bias.assign([np.nan])
    metrics = step.run(1)
    assert metrics["d_skipped_steps"] == 1
    assert metrics["penalty"] == penalty == state.penalty.numpy()
    for before, after in zip(
        kernels, state.discriminator.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_layers_that_speak_to_other_replicas_must_at_every_step() -> None:
    def build() -> keras.Model:
        return keras.Sequential(
            [
                keras.Input(tiny.MICRO_SHAPE),
                keras.layers.Flatten(),
                keras.Sequential(
                    [layers.BatchNormalization(synchronized=True)]
                ),
                keras.layers.Dense(1),
            ]
        )

    settings = {"penalty": "r1", "state_settings": {"discriminator": build}}
    with pytest.raises(errors.UsageError, match="--sync_batch_norm"):
        tiny.make_micro(penalty_every_steps=2, **settings)
    tiny.make_micro(**settings)
