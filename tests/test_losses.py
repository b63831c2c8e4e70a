"""The losses against formulas written from the papers, in float64."""

import numpy as np
import pytest
import tensorflow as tf

from trainer import config, errors, losses

_LOGITS = np.linspace(-12.0, 12.0, 49, dtype=np.float32)[:, None]


def _non_saturating(real, fake):
    return losses.non_saturating(
        real_logits=tf.constant(real, tf.float32),
        fake_logits=tf.constant(fake, tf.float32),
    )


def _sigmoid(logits):
    return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


def test_non_saturating_is_the_paper_s_log_d_form():
    real, fake = _LOGITS, _LOGITS[::-1] / 2
    g_loss, d_loss = _non_saturating(real, fake)
    np.testing.assert_allclose(
        g_loss, -np.log(_sigmoid(fake)), rtol=0, atol=2e-6
    )
    np.testing.assert_allclose(
        d_loss,
        -(np.log(_sigmoid(real)) + np.log(1.0 - _sigmoid(fake))),
        rtol=0,
        atol=2e-6,
    )


def test_non_saturating_keeps_the_examples_apart():
    for shape in ([5, 1], [5]):
        real, fake = np.zeros(shape), np.zeros(shape)
        fake[3] = 2.0
        g_loss, d_loss = _non_saturating(real, fake)
        assert g_loss.shape == d_loss.shape == shape
        others = np.delete(d_loss.numpy().ravel(), 3)
        np.testing.assert_allclose(others, 2 * np.log(2.0), rtol=1e-6)
        assert d_loss.numpy().ravel()[3] > others.max()
        assert g_loss.numpy().ravel()[3] < np.delete(g_loss, 3).min()


def test_non_saturating_is_exact_for_huge_logits():
    huge = np.array([[1e4], [-1e4]], np.float32)
    g_loss, d_loss = _non_saturating(huge, huge)
    np.testing.assert_allclose(g_loss, [[0.0], [1e4]])
    np.testing.assert_allclose(d_loss, [[1e4], [1e4]])


def test_gradients_push_the_logits_the_right_way_even_where_d_is_sure():
    logits = tf.constant([[-1e4], [-5.0], [0.0], [5.0]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        g_loss, _ = losses.non_saturating(
            real_logits=tf.zeros_like(logits), fake_logits=logits
        )
        _, d_of_real = losses.non_saturating(
            real_logits=logits, fake_logits=tf.zeros_like(logits)
        )
        _, d_of_fake = losses.non_saturating(
            real_logits=tf.zeros_like(logits), fake_logits=logits
        )
    sigmoid = _sigmoid(np.clip(logits.numpy(), -500, 500))
    for loss, expected in (
        (g_loss, sigmoid - 1.0),  # Raises the logits of fakes,
        (d_of_real, sigmoid - 1.0),  # those of reals,
        (d_of_fake, sigmoid),  # and lowers those of fakes.
    ):
        np.testing.assert_allclose(
            tape.gradient(loss, logits), expected, rtol=0, atol=1e-6
        )


def _relu(x):
    return np.maximum(x, 0.0)


# Each as its paper writes it: of D's logits r on reals and f on fakes.
_FORMULAS = {
    "non_saturating": lambda r, f: (
        -np.log(_sigmoid(f)),
        -np.log(_sigmoid(r)) - np.log(1.0 - _sigmoid(f)),
    ),
    "minimax": lambda r, f: (
        np.log(1.0 - _sigmoid(f)),
        -np.log(_sigmoid(r)) - np.log(1.0 - _sigmoid(f)),
    ),
    "hinge": lambda r, f: (-f, _relu(1.0 - r) + _relu(1.0 + f)),
    "least_squares": lambda r, f: (
        (f - 1.0) ** 2 / 2.0,
        (r - 1.0) ** 2 / 2.0 + f**2 / 2.0,
    ),
    "wasserstein": lambda r, f: (-f, f - r),
    "relativistic": lambda r, f: (
        -np.log(_sigmoid(f - r)),
        -np.log(_sigmoid(r - f)),
    ),
}


@pytest.mark.parametrize("name", losses.LOSSES)
def test_each_loss_is_the_formula_of_its_paper_example_by_example(name):
    generator = np.random.default_rng(1)
    for shape in ([64, 1], [64]):
        real, fake = generator.normal(0.0, 2.0, [2, *shape])
        g_loss, d_loss = losses.get(name)(
            real_logits=tf.constant(real, tf.float32),
            fake_logits=tf.constant(fake, tf.float32),
        )
        expected_g, expected_d = _FORMULAS[name](real, fake)
        np.testing.assert_allclose(g_loss, expected_g, rtol=0, atol=4e-6)
        np.testing.assert_allclose(d_loss, expected_d, rtol=0, atol=4e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_the_networks_pull_the_fake_logits_apart(name):
    real = tf.constant([[0.3], [0.7]])
    fake = tf.constant([[0.2], [0.1]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([real, fake])
        g_loss, d_loss = losses.get(name)(real_logits=real, fake_logits=fake)
    assert (tape.gradient(g_loss, fake).numpy() < 0).all()
    assert (tape.gradient(d_loss, fake).numpy() > 0).all()
    assert (tape.gradient(d_loss, real).numpy() < 0).all()


def test_logits_of_any_size_give_finite_losses_and_gradients():
    huge = tf.constant([[1e4], [-1e4]])
    for loss in losses.LOSSES.values():
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(huge)
            both = loss(real_logits=huge, fake_logits=-huge)
        for value in both:
            assert np.isfinite(value).all()
            assert np.isfinite(tape.gradient(value, huge)).all()


def test_an_unknown_loss_names_the_known_ones():
    with pytest.raises(errors.UsageError, match="--loss=gan.*relativistic"):
        losses.get("gan")


def test_the_flag_knows_all_losses():
    assert config.LOSSES == tuple(losses.LOSSES)
