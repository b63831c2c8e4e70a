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
