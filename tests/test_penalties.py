"""The penalties against slopes that are known in closed form."""

import numpy as np
import pytest
import tensorflow as tf

from trainer import config, errors, penalties, randomness

_SHAPE = (6, 4, 3, 2)


def _draws(first_position=0):
    return randomness.Draws(
        seed=3, purpose="test", step=5, first_position=first_position
    )


def _samples(seed):
    generator = np.random.default_rng(seed)
    return generator.uniform(-1.0, 1.0, _SHAPE).astype(np.float32)


def _penalty(name, critic, real, fake, draws=None):
    return (
        penalties.get(name)
        .per_example(
            critic,
            real=tf.constant(real),
            fake=tf.constant(fake),
            draws=draws or _draws(),
        )
        .numpy()
    )


def _linear(weights):
    return lambda x: tf.reduce_sum(x * weights, axis=[1, 2, 3])[:, tf.newaxis]


def _square(x):
    """D(x) = |x|^2 / 2, whose gradient is x itself."""
    return 0.5 * tf.reduce_sum(tf.square(x), axis=[1, 2, 3])


def _norms(x):
    return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=(1, 2, 3)))


@pytest.mark.parametrize(
    "name", [n for n in penalties.PENALTIES if n != "none"]
)
def test_of_a_linear_discriminator_only_the_weights_norm_counts(name):
    weights = np.random.default_rng(2).normal(size=_SHAPE[1:])
    squared_norm = np.sum(weights**2)
    expected = {
        "r1": squared_norm,
        "r2": squared_norm,
        "r1_r2": 2.0 * squared_norm,
        "wgan_gp": (np.sqrt(squared_norm) - 1.0) ** 2,
        "dragan": (np.sqrt(squared_norm) - 1.0) ** 2,
    }[name]
    critic = _linear(weights.astype(np.float32))
    actual = _penalty(name, critic, _samples(0), _samples(1))
    assert actual.shape == (6,)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_the_slope_is_taken_at_the_right_samples():
    real, fake = _samples(0), 0.5 * _samples(1)
    r1, r2 = _norms(real) ** 2, _norms(fake) ** 2
    for name, expected in (("r1", r1), ("r2", r2), ("r1_r2", r1 + r2)):
        actual = _penalty(name, _square, real, fake)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_wgan_gp_looks_between_the_real_and_the_generated_sample():
    real, fake = _samples(0), _samples(1)
    share = _draws().uniform((6, 1, 1, 1)).numpy()
    assert len(np.unique(share)) == 6
    between = share * real + (1.0 - share) * fake
    np.testing.assert_allclose(
        _penalty("wgan_gp", _square, real, fake),
        (_norms(between) - 1.0) ** 2,
        rtol=1e-5,
    )


def test_dragan_looks_around_the_real_sample():
    real = _samples(0) * np.arange(1, 7, dtype=np.float32).reshape(6, 1, 1, 1)
    noise = _draws().normal(_SHAPE).numpy()
    deviation = real.std(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(
        _penalty("dragan", _square, real, _samples(1)),
        (_norms(real + 0.5 * deviation * noise) - 1.0) ** 2,
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["wgan_gp", "dragan"])
def test_a_part_of_the_batch_has_the_same_penalties_as_within_it(name):
    real, fake = _samples(0), _samples(1)
    whole = _penalty(name, _square, real, fake)
    part = _penalty(name, _square, real[4:], fake[4:], _draws(4))
    np.testing.assert_allclose(part, whole[4:], rtol=1e-6)


@pytest.mark.parametrize("name", ["wgan_gp", "dragan"])
def test_a_flat_discriminator_gives_a_gradient_that_is_finite(name):
    weights = tf.zeros(_SHAPE[1:])
    with tf.GradientTape() as tape:
        tape.watch(weights)
        penalty = penalties.get(name).per_example(
            _linear(weights),
            real=tf.constant(_samples(0)),
            fake=tf.constant(_samples(1)),
            draws=_draws(),
        )
    np.testing.assert_allclose(penalty, 1.0, atol=1e-5)
    assert np.isfinite(tape.gradient(penalty, weights)).all()


def test_an_unknown_penalty_names_the_known_ones():
    with pytest.raises(errors.UsageError, match="--penalty=r3.*wgan_gp"):
        penalties.get("r3")


def test_the_flag_knows_all_penalties():
    assert config.PENALTIES == tuple(penalties.PENALTIES)
