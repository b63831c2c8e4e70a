"""How often to augment, by how far the discriminator overfits.

Karras et al., "Training generative adversarial networks with limited data"
(arXiv:2006.06676), section 3, "adaptive discriminator augmentation", ADA. A
discriminator that knows the training images by heart gives nearly all of them
positive logits. So when r_t, the mean sign of the logits of real images, is
above a target, the probability goes up by a fixed step, else down.
"""

import tensorflow as tf

ADJUST_EVERY_UPDATES = 4


class AdaptiveProbability(tf.Module):
    """The probability, and what it is adjusted by next.

    Signs and images are counted in whole numbers, so that r_t is the same for
    any number of replicas, however their means were rounded.

    Attributes:
      value: float32, in [0, 1]; the paper lets it go above 1, which augments no
        more and takes as long to come back from.
      sign_sum: int64, of the real images counted since it was last adjusted.
      num_images: int64, how many these are.
    """

    def __init__(self, *, target: float, speed_images: int) -> None:
        """Creates the variables; call under the strategy's scope.

        Args:
          target: of r_t; the paper's is 0.6.
          speed_images: so many real images shown bring it from 0 to 1.
        """
        super().__init__(name="adaptive_probability")
        self._target = target
        self._speed_images = speed_images
        self.value = tf.Variable(0.0, trainable=False)
        self.sign_sum = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.num_images = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self, real_sign: tf.Tensor, *, num_images: int) -> None:
        """Counts an update of the discriminator; call in replica context.

        Args:
          real_sign: the mean sign of its logits of real images, over the global
            batch; the same on all replicas. If it is not finite, as when
            float16 overflows, the update does not count.
          num_images: how many these were.
        """
        is_finite = tf.math.is_finite(real_sign)
        signs = tf.round(tf.where(is_finite, real_sign, 0.0) * num_images)
        sign_sum = self.sign_sum + tf.cast(signs, tf.int64)
        counted = self.num_images + tf.where(
            is_finite, tf.constant(num_images, tf.int64), 0
        )
        is_due = counted >= ADJUST_EVERY_UPDATES * num_images
        excess = (
            tf.cast(sign_sum, tf.float64)
            - tf.cast(counted, tf.float64) * self._target
        )
        change = tf.cast(
            tf.sign(excess)
            * tf.cast(counted, tf.float64)
            / float(self._speed_images),
            tf.float32,
        )
        adjusted = tf.clip_by_value(self.value + change, 0.0, 1.0)
        zero = tf.zeros([], tf.int64)
        self.value.assign(tf.where(is_due, adjusted, self.value))
        self.sign_sum.assign(tf.where(is_due, zero, sign_sum))
        self.num_images.assign(tf.where(is_due, zero, counted))
