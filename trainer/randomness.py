"""Randomness without state: each draw is a function of where it is used.

A random tensor is fixed by (seed, purpose, draw, step, position): the run's
seed, what the numbers are for, the how-manieth draw for that purpose within a
step, the global step, and the example's position in the global batch. Hence
nothing has to be saved to resume bit for bit, no two replicas share a latent or
a dropout mask, and another number of replicas sees the same numbers.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011), addressed directly: the first three coordinates make its
key, the step and the position make its counter.
"""

import contextlib
import contextvars
import hashlib
import math
from collections.abc import Iterator

import tensorflow as tf

# One increment of the Philox counter yields four 32-bit numbers, so that each
# example starts at a whole counter when its share is rounded up to fours.
_WORDS_PER_COUNT = 4
_PHILOX = 1

_current_draws: contextvars.ContextVar["Draws"] = contextvars.ContextVar(
    "current_draws"
)


class Draws:
    """A replica's share of the random tensors for one purpose in one step."""

    def __init__(
        self,
        *,
        seed: int,
        purpose: str,
        step: tf.Tensor | int,
        first_position: tf.Tensor | int = 0,
    ) -> None:
        """Addresses the stream; draws nothing yet.

        Args:
          seed: the run's seed.
          purpose: what the numbers are for; other purposes are independent.
          step: the global step, a scalar.
          first_position: where this replica's examples start in the global
            batch.
        """
        self._seed = seed
        self._purpose = purpose
        self._step = tf.cast(step, tf.uint64)
        self._first_position = tf.cast(first_position, tf.uint64)
        self._num_draws = 0

    def normal(self, shape: tuple[int, ...]) -> tf.Tensor:
        """Returns float32 numbers from N(0, 1), `shape` being [B, ...]."""
        size = math.prod(shape[1:])
        num_pairs = -(-size // 2)
        words = self._words(shape[0], 2 * num_pairs)
        # Box and Muller's transform. TensorFlow's own op, like its op for
        # uniform numbers, gives others when it is compiled by XLA. In float64,
        # because the last bit of a logarithm depends on where in the tensor it
        # is computed, and by whom.
        units = (tf.cast(words, tf.float64) + 1.0) * 2**-32
        radius = tf.sqrt(-2.0 * tf.math.log(units[:, :num_pairs]))
        angle = 2.0 * math.pi * units[:, num_pairs:]
        numbers = tf.concat(
            [radius * tf.cos(angle), radius * tf.sin(angle)], axis=1
        )
        return tf.reshape(tf.cast(numbers[:, :size], tf.float32), shape)

    def uniform(self, shape: tuple[int, ...]) -> tf.Tensor:
        """Returns float32 numbers from U[0, 1), `shape` being [B, ...]."""
        words = self._words(shape[0], math.prod(shape[1:]))
        # As many bits as a float32 holds exactly, or 1.0 could come out.
        bits = tf.bitwise.right_shift(words, tf.constant(8, tf.uint32))
        return tf.reshape(tf.cast(bits, tf.float32) * 2**-24, shape)

    def mask(
        self, shape: tuple[int, ...], *, keep_probability: float
    ) -> tuple[tf.Tensor, float]:
        """Returns a bool mask and the probability that it is True.

        Sixteen random bits decide per element, half of what a float takes: the
        masks are the largest draws of a step. The probability is therefore a
        multiple of 2^-16, returned for exact rescaling.

        Args:
          shape: [B, ...] of the mask.
          keep_probability: in [0, 1], rounded to the nearest multiple.
        """
        size = math.prod(shape[1:])
        words = self._words(shape[0], -(-size // 2))
        halves = tf.reshape(tf.bitcast(words, tf.uint16), [shape[0], -1])
        threshold = round(keep_probability * 2**16)
        # uint16 cannot hold the threshold 2^16 that keeps everything.
        kept = tf.cast(halves[:, :size], tf.int32) < threshold
        return tf.reshape(kept, shape), threshold / 2**16

    def _words(self, num_examples: int, words_per_example: int) -> tf.Tensor:
        """Returns random uint32 [num_examples, words_per_example]."""
        counts = -(-words_per_example // _WORDS_PER_COUNT)
        words = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[num_examples, counts * _WORDS_PER_COUNT],
            key=self._next_key(),
            counter=tf.stack([self._first_position * counts, self._step]),
            alg=_PHILOX,
            dtype=tf.uint32,
        )
        return words[:, :words_per_example]

    def _next_key(self) -> tf.Tensor:
        name = f"{self._seed}/{self._purpose}/{self._num_draws}"
        self._num_draws += 1
        digest = hashlib.sha256(name.encode()).digest()
        return tf.constant([int.from_bytes(digest[:8], "little")], tf.uint64)


@contextlib.contextmanager
def draw_from(draws: Draws) -> Iterator[None]:
    """Makes `draws` what the layers called inside the block draw from.

    The context belongs to the thread: tf.distribute traces each replica in one
    of its own.
    """
    token = _current_draws.set(draws)
    try:
        yield
    finally:
        _current_draws.reset(token)


def current_draws() -> Draws:
    """Returns the draws of the innermost `draw_from`.

    Raises:
      RuntimeError: outside of any, since a layer has no randomness of its own.
    """
    try:
        return _current_draws.get()
    except LookupError:
        raise RuntimeError(
            "A layer asked for random numbers outside of "
            "`with randomness.draw_from(...)`: call the model inside such a "
            "block, or with training=False."
        ) from None
