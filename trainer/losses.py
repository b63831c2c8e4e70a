"""Adversarial losses: pure functions of the discriminator's logits.

They return one number per example and network; who trains sums them and divides
by the global batch size, once. All take and give the same:

  real_logits: [B, 1] or [B], the discriminator's on real examples.
  fake_logits: the same on generated ones.
  returns: g_loss and d_loss, of the logits' shape.

To add a loss, add a function and a line in `LOSSES`.
"""

from collections.abc import Callable

import tensorflow as tf

from trainer import errors


def non_saturating(
    *, real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss of the tutorial: binary cross-entropy on logits.

    Goodfellow et al., "Generative adversarial nets" (arXiv:1406.2661): equation
    1 for the discriminator, and for the generator the form that section 3
    recommends, which maximizes log D(G(z)). With softplus(x) = log(1 + exp(x)),
    -log sigmoid(x) = softplus(-x), stable for logits of any size.
    """
    g_loss = tf.math.softplus(-fake_logits)
    d_loss = tf.math.softplus(-real_logits) + tf.math.softplus(fake_logits)
    return g_loss, d_loss


def minimax(
    *, real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Goodfellow et al. (arXiv:1406.2661), equation 1, for both networks.

    The generator minimizes log(1 - D(G(z))), whose gradient vanishes where the
    discriminator is sure.
    """
    _, d_loss = non_saturating(real_logits=real_logits, fake_logits=fake_logits)
    return -tf.math.softplus(fake_logits), d_loss


def hinge(
    *, real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Miyato et al. (arXiv:1802.05957), equations 16 and 17.

    First in Lim and Ye, "Geometric GAN" (arXiv:1705.02894). Examples that are
    beyond the margin no longer move the discriminator.
    """
    d_loss = tf.nn.relu(1.0 - real_logits) + tf.nn.relu(1.0 + fake_logits)
    return -fake_logits, d_loss


def least_squares(
    *, real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mao et al., "Least squares GAN" (arXiv:1611.04076), equation 9.

    The logits shall be 1 on real and 0 on generated examples; the generator
    wants 1.
    """
    d_loss = 0.5 * (tf.square(real_logits - 1.0) + tf.square(fake_logits))
    return 0.5 * tf.square(fake_logits - 1.0), d_loss


def wasserstein(
    *, real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Arjovsky et al. (arXiv:1701.07875), equation 2; the logits are scores.

    It means something for discriminators whose slope is bounded only, by a
    penalty or by their layers.
    """
    return -fake_logits, fake_logits - real_logits


def relativistic(
    *, real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The relativistic pairing loss (RpGAN), with f(t) = -log(1 + exp(-t)).

    Jolicoeur-Martineau (arXiv:1807.00734), section 4.1, in the form of Huang et
    al., "The GAN is dead; long live the GAN!" (arXiv:2501.05441), equation 2:
    each generated example is compared with the real one at its position.
    """
    g_loss = tf.math.softplus(real_logits - fake_logits)
    d_loss = tf.math.softplus(fake_logits - real_logits)
    return g_loss, d_loss


Loss = Callable[..., tuple[tf.Tensor, tf.Tensor]]

LOSSES: dict[str, Loss] = {
    "non_saturating": non_saturating,
    "minimax": minimax,
    "hinge": hinge,
    "least_squares": least_squares,
    "wasserstein": wasserstein,
    "relativistic": relativistic,
}


def get(name: str) -> Loss:
    """Returns the loss of that name.

    Raises:
      UsageError: there is none; the message lists the known ones.
    """
    if name not in LOSSES:
        raise errors.UsageError(
            f"--loss={name} is unknown; known are {', '.join(LOSSES)}."
        )
    return LOSSES[name]
