"""Dynamic loss scaling, which float16 gradients need, one scale a network.

Micikevicius et al., "Mixed precision training" (arXiv:1710.03740), section 3.2:
small gradients vanish in float16 unless the loss is multiplied by a large
number first; when that makes them overflow, the update is left out and the
number halved.

Keras' own scaler looks at one replica's gradients before they are summed, so
that an overflow on another one reaches the weights. This one is asked after the
sum, which is the same on all replicas, and so is the answer.
"""

import tensorflow as tf

INITIAL_SCALE = 2.0**15
MIN_SCALE = 1.0
MAX_SCALE = 2.0**24


class LossScale(tf.Module):
    """The scale of one network's loss, and how it has fared.

    Attributes:
      scale: float32, a power of two in [1, 2^24].
      num_good_steps: int64, updates since the scale last moved.
      num_skipped: int64, updates that were left out in the whole run.
    """

    def __init__(
        self,
        *,
        initial_scale: float = INITIAL_SCALE,
        growth_interval_steps: int = 2000,
    ) -> None:
        """Creates the variables; call under the strategy's scope.

        Args:
          initial_scale: to begin with.
          growth_interval_steps: so many good updates double the scale.
        """
        super().__init__(name="loss_scale")
        self._growth_interval_steps = growth_interval_steps
        self.scale = tf.Variable(initial_scale, trainable=False)
        self.num_good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.num_skipped = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self, is_finite: tf.Tensor) -> None:
        """Moves the scale after an update; call in replica context.

        Args:
          is_finite: bool, whether the gradients summed over the replicas are;
            the same on all replicas.
        """
        scale = tf.convert_to_tensor(self.scale)
        num_good_steps = self.num_good_steps + 1
        grows = num_good_steps >= self._growth_interval_steps
        after_good = tf.where(grows, tf.minimum(scale * 2.0, MAX_SCALE), scale)
        after_overflow = tf.maximum(scale / 2.0, MIN_SCALE)
        self.scale.assign(tf.where(is_finite, after_good, after_overflow))
        restarts = tf.logical_or(grows, tf.logical_not(is_finite))
        zero = tf.zeros([], tf.int64)
        self.num_good_steps.assign(tf.where(restarts, zero, num_good_steps))
        is_skipped = tf.logical_not(is_finite)
        self.num_skipped.assign_add(tf.cast(is_skipped, tf.int64))
