"""The adaptive probability against its closed form."""

import numpy as np
import pytest
import tensorflow as tf

from trainer import config, distribution, losses
from trainer.adaptive_probability import AdaptiveProbability

_BATCH_SIZE = 20


def _make(target: float = 0.6, speed_images: int = 1000) -> AdaptiveProbability:
    return AdaptiveProbability(target=target, speed_images=speed_images)


def _update(adaptive: AdaptiveProbability, *real_signs: float) -> float:
    for real_sign in real_signs:
        adaptive.update(tf.constant(real_sign), num_images=_BATCH_SIZE)
    return adaptive.value.numpy()


def test_four_updates_make_one_step() -> None:
    adaptive = _make()
    assert _update(adaptive, 1.0, 1.0, 1.0) == 0.0
    assert adaptive.num_images.numpy() == adaptive.sign_sum.numpy() == 60
    # 80 of 1,000 images.
    assert _update(adaptive, 1.0) == pytest.approx(0.08, rel=1e-6)
    assert adaptive.num_images.numpy() == adaptive.sign_sum.numpy() == 0
    # By the mean of four: 0.65 is above the target, 0.55 below.
    assert _update(adaptive, 0.9, 0.5, 0.9, 0.3) == pytest.approx(0.16)
    assert _update(adaptive, 0.9, 0.5, 0.9, -0.1) == pytest.approx(0.08)
    # Where it is hit exactly, nothing moves.
    assert _update(adaptive, *4 * [0.6]) == pytest.approx(0.08)


def test_it_takes_as_many_images_as_was_said_and_stays_within_0_and_1() -> None:
    adaptive = _make(speed_images=800)
    values = [_update(adaptive, *4 * [0.7]) for _ in range(12)]
    np.testing.assert_allclose(
        values, np.minimum(np.arange(1, 13) / 10, 1.0), rtol=1e-6
    )
    assert values[-1] == 1.0
    # From where it stopped, it comes back at once.
    values = [_update(adaptive, *4 * [-0.2]) for _ in range(12)]
    np.testing.assert_allclose(
        values, np.maximum(0.9 - np.arange(12) / 10, 0.0), atol=1e-6
    )
    assert values[-1] == 0.0


def test_the_rounding_of_a_mean_does_not_decide() -> None:
    # As replicas sum in another order.
    exact = np.float32(0.6)
    for nudge in (exact, *(np.nextafter(exact, np.float32(x)) for x in (0, 1))):
        adaptive = _make()
        assert _update(adaptive, *4 * [nudge]) == 0.0
        assert _update(adaptive, *3 * [nudge], 0.7) > 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_overflows_does_not_count(value: float) -> None:
    adaptive = _make()
    assert _update(adaptive, 1.0, value, 1.0, value, 1.0) == 0.0
    assert adaptive.num_images.numpy() == 60
    assert _update(adaptive, 1.0) == pytest.approx(0.08)


def test_signs_mean_something_for_the_losses_that_are_listed() -> None:
    # Where to exchange real and generated samples mirrors the logits at 0, and
    # at no other number.
    def has_zero(name: str) -> bool:
        def d_loss(real: float, fake: float) -> float:
            _, loss = losses.LOSSES[name](
                real_logits=tf.constant([real]), fake_logits=tf.constant([fake])
            )
            return loss.numpy()[0]

        points = ((0.3, -0.2), (-0.7, 0.4), (1.5, 0.1))
        is_mirrored = all(
            d_loss(real, fake) == pytest.approx(d_loss(-fake, -real))
            for real, fake in points
        )
        return is_mirrored and any(
            d_loss(real, fake) != pytest.approx(d_loss(real + 1.0, fake + 1.0))
            for real, fake in points
        )

    with_zero = tuple(filter(has_zero, losses.LOSSES))
    assert with_zero == config.LOSSES_WITH_A_ZERO


def test_replicas_hold_the_same() -> None:
    strategy = distribution.make_strategy("mirrored", num_logical_cpus=2)
    with strategy.scope():
        adaptive = _make()

    @tf.function
    def update() -> None:
        strategy.run(
            lambda: adaptive.update(tf.constant(0.8), num_images=_BATCH_SIZE)
        )

    for _ in range(5):
        update()
    for variable in adaptive.variables:
        first, second = (copy.numpy() for copy in variable.values)
        assert first == second
    assert adaptive.value.numpy() == pytest.approx(0.08)
    assert adaptive.sign_sum.numpy() == 16
