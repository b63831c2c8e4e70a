"""The losses against formulas written from the papers, in float64."""

import numpy as np
import tensorflow as tf

from trainer import losses

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
