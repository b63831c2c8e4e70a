"""Penalties on the discriminator's slope, which steady its training.

A penalty is a pure function that returns one number per example:

  critic: samples [B, ...] -> logits [B, 1] or [B], differentiable twice.
  real: [B, ...] in [-1, 1], real samples.
  fake: the same, generated ones; no gradient goes back through them.
  draws: random numbers for the points at which the slope is taken.
  returns: float32 [B].

The slope is that of the logits, and an example's own: where examples depend on
each other, as with batch norm, it is that of the sum of all logits.

To add a penalty, add a function and a line in `PENALTIES`.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer import errors, randomness

Critic = Callable[[tf.Tensor], tf.Tensor]

# Below the root: the norm's own slope is infinite at 0.
_EPSILON = 1e-12


class Penalty(NamedTuple):
    """A penalty as its paper defines it.

    Attributes:
      per_example: (critic, real, fake, draws) -> [B].
      coefficient: multiplies its mean, besides the weight that a user gives.
    """

    per_example: Callable[..., tf.Tensor]
    coefficient: float


def r1(
    critic: Critic,
    *,
    real: tf.Tensor,
    fake: tf.Tensor,
    draws: randomness.Draws,
) -> tf.Tensor:
    """The squared norm of the slope at real samples.

    Mescheder et al. (arXiv:1801.04406), equation 9; gamma / 2 goes before it.
    """
    del fake, draws
    return _squared_slopes(critic, real)


def r2(
    critic: Critic,
    *,
    real: tf.Tensor,
    fake: tf.Tensor,
    draws: randomness.Draws,
) -> tf.Tensor:
    """The same at generated samples: Mescheder et al., equation 10."""
    del real, draws
    return _squared_slopes(critic, fake)


def r1_r2(
    critic: Critic,
    *,
    real: tf.Tensor,
    fake: tf.Tensor,
    draws: randomness.Draws,
) -> tf.Tensor:
    """The sum of both, which R3GAN takes (arXiv:2501.05441), section 2.2."""
    del draws
    return _squared_slopes(critic, real) + _squared_slopes(critic, fake)


def wgan_gp(
    critic: Critic,
    *,
    real: tf.Tensor,
    fake: tf.Tensor,
    draws: randomness.Draws,
) -> tf.Tensor:
    """How far the slope is from 1, between real and generated samples.

    Gulrajani et al. (arXiv:1704.00028), equation 3: at uniformly drawn points
    on the lines from each generated sample to the real one at its position.
    """
    share = draws.uniform((real.shape[0], *[1] * (len(real.shape) - 1)))
    return _distance_from_1(critic, share * real + (1.0 - share) * fake)


def dragan(
    critic: Critic,
    *,
    real: tf.Tensor,
    fake: tf.Tensor,
    draws: randomness.Draws,
) -> tf.Tensor:
    """How far the slope is from 1, around real samples.

    Kodali et al. (arXiv:1705.07215), with a norm of 1: at a real sample plus
    Gaussian noise, whose variance they choose for each data set. Here its
    standard deviation is half of that of the sample's own numbers. The authors'
    code adds uniform noise instead, from 0 to half of the batch's deviation and
    then a random share of that: never downwards, and not the same on replicas
    with batches of their own.
    """
    del fake
    axes = list(range(1, len(real.shape)))
    deviation = tf.math.reduce_std(real, axis=axes, keepdims=True)
    noise = draws.normal(tuple(real.shape))
    return _distance_from_1(critic, real + 0.5 * deviation * noise)


PENALTIES: dict[str, Penalty | None] = {
    "none": None,
    "r1": Penalty(r1, 0.5),
    "r2": Penalty(r2, 0.5),
    "r1_r2": Penalty(r1_r2, 0.5),
    "wgan_gp": Penalty(wgan_gp, 1.0),
    "dragan": Penalty(dragan, 1.0),
}


def get(name: str) -> Penalty | None:
    """Returns the penalty of that name, None for "none".

    Raises:
      UsageError: there is none; the message lists the known ones.
    """
    if name not in PENALTIES:
        raise errors.UsageError(
            f"--penalty={name} is unknown; known are {', '.join(PENALTIES)}."
        )
    return PENALTIES[name]


def _squared_slopes(critic: Critic, samples: tf.Tensor) -> tf.Tensor:
    """Returns the squared norm of each logit's gradient, [B]."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(samples)
        logits = critic(samples)
    slopes = tape.gradient(logits, samples)
    return tf.reduce_sum(
        tf.square(slopes), axis=list(range(1, len(slopes.shape)))
    )


def _distance_from_1(critic: Critic, samples: tf.Tensor) -> tf.Tensor:
    norms = tf.sqrt(_squared_slopes(critic, samples) + _EPSILON)
    return tf.square(norms - 1.0)
