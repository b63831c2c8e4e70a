"""Samples from a trained generator: any number of them, in bounded memory."""

from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from trainer import randomness

_SAMPLES_PER_CALL = 64


def takes_labels(generator: keras.Model) -> bool:
    """Whether it makes samples of a class that is asked for."""
    return len(generator.inputs) == 2


class Generation:
    """Calls a generator, as it is in use and not in training.

    A sample is a function of its latents and label alone, so that it does not
    depend on how many are made, or together with which.
    """

    def __init__(self, generator: keras.Model) -> None:
        """Makes nothing yet.

        Args:
          generator: latents [B, latent_dim], or (latents, labels int32 [B]), ->
            samples [B, ...] in [-1, 1].
        """
        self._latent_dim = generator.inputs[0].shape[-1]
        self._takes_labels = takes_labels(generator)

        @tf.function(reduce_retracing=True)
        def run(latents: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            inputs = [latents, labels] if self._takes_labels else latents
            return tf.cast(generator(inputs, training=False), tf.float32)

        self._run = run

    def latents(
        self, *, seed: int, first: int, count: int, purpose: str
    ) -> np.ndarray:
        """Draws latents [count, latent_dim] from N(0, 1).

        Each is a function of seed, purpose and position: those of other ranges
        are the same where they overlap.
        """
        draws = randomness.Draws(
            seed=seed, purpose=purpose, step=0, first_position=first
        )
        return draws.normal((count, self._latent_dim)).numpy()

    def samples(
        self, latents: np.ndarray, labels: np.ndarray | None = None
    ) -> np.ndarray:
        """Makes samples [B, ...] in [-1, 1] of latents [B, latent_dim].

        Args:
          latents: what they are made from.
          labels: int32 [B]; ignored by a generator that takes none.

        Raises:
          ValueError: the generator takes labels, and there are none.
        """
        if labels is None:
            if self._takes_labels:
                raise ValueError("This generator takes labels.")
            labels = np.zeros(len(latents), np.int32)
        # In calls of one shape, so that one graph does for all of them.
        parts = []
        for start in range(0, len(latents), _SAMPLES_PER_CALL):
            chunk = slice(start, start + _SAMPLES_PER_CALL)
            num_missing = _SAMPLES_PER_CALL - len(latents[chunk])
            padding = [[0, num_missing]]
            made = self._run(
                tf.pad(latents[chunk], [*padding, [0, 0]]),
                tf.pad(labels[chunk], padding),
            ).numpy()
            parts.append(made[: len(latents[chunk])])
        return np.concatenate(parts)

    def stream(
        self,
        count: int,
        *,
        seed: int,
        purpose: str,
        label_of: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields `count` samples, some at a time: [b, ...] in [-1, 1].

        Args:
          count: how many in all.
          seed: of the latents.
          purpose: of the latents.
          label_of: positions [b] -> labels int32 [b].
        """
        for start in range(0, count, _SAMPLES_PER_CALL):
            size = min(_SAMPLES_PER_CALL, count - start)
            latents = self.latents(
                seed=seed, first=start, count=size, purpose=purpose
            )
            positions = np.arange(start, start + size)
            labels = label_of(positions) if label_of else None
            yield self.samples(latents, labels)


def truncate(latents: np.ndarray, bound: float) -> np.ndarray:
    """Turns N(0, 1) into the same distribution cut off at -bound and bound.

    It is that of Brock et al. (arXiv:1809.11096, section 3.1), who draw again
    what is beyond. Here each number keeps its rank instead, so that the same
    latents with another bound give similar samples.

    Args:
      latents: of any shape.
      bound: above 0.
    """
    values = tf.constant(latents, tf.float64)

    def below(value: tf.Tensor | float) -> tf.Tensor:
        value = tf.constant(value, tf.float64)
        return 0.5 * tf.math.erfc(-value / np.sqrt(2.0))

    lowest = below(-bound)
    ranks = lowest + below(values) * (1.0 - 2.0 * lowest)
    # Rounding can go beyond by a hair.
    cut = np.clip(tf.math.ndtri(ranks).numpy(), -bound, bound)
    return cut.astype(np.float32)


def interpolate(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """Goes from one latent vector to another, which is not reached.

    On a great circle (White, "Sampling generative networks",
    arXiv:1609.04468): on a straight line, those in between would be shorter
    than any that the generator has seen.

    Args:
      one: where to begin [latent_dim].
      other: where it goes.
      count: how many, `one` included.

    Returns:
      float32 [count, latent_dim].
    """
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    cosine = np.dot(one, other) / max(lengths[0] * lengths[1], 1e-12)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    shares = np.arange(count)[:, np.newaxis] / count
    if np.sin(angle) < 1e-6:  # Nearly parallel: a straight line is as good.
        return ((1 - shares) * one + shares * other).astype(np.float32)
    weights = np.sin((1 - shares) * angle), np.sin(shares * angle)
    between = (weights[0] * one + weights[1] * other) / np.sin(angle)
    return between.astype(np.float32)
