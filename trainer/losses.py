"""Adversarial losses: pure functions of the discriminator's logits.

They return one number per example and network; who trains sums them and divides
by the global batch size, once.
"""

import tensorflow as tf


def non_saturating(
    *, real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss of the tutorial: binary cross-entropy on logits.

    Goodfellow et al., "Generative adversarial nets" (arXiv:1406.2661): equation
    1 for the discriminator, and for the generator the form that section 3
    recommends, which maximizes log D(G(z)). With softplus(x) = log(1 + exp(x)),
    -log sigmoid(x) = softplus(-x), stable for logits of any size.

    Args:
      real_logits: [B, 1] or [B], the discriminator's on real examples.
      fake_logits: the same on generated ones.

    Returns:
      g_loss and d_loss, of the logits' shape.
    """
    g_loss = tf.math.softplus(-fake_logits)
    d_loss = tf.math.softplus(-real_logits) + tf.math.softplus(fake_logits)
    return g_loss, d_loss
