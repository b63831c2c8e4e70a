"""An average of the generator's weights over the images shown.

It makes better pictures than the weights of any one step (Yazici et al., "The
unusual effectiveness of averaging in GAN training", arXiv:1806.04498). An image
that was shown half_life_images ago counts half of the newest one. At first the
half-life is a part of the images shown so far, which forgets the initial
weights: Karras et al., "StyleGAN2-ADA" (arXiv:2006.06676), the "ramp-up" in
their code, with the same part.

The statistics of batch norm are averaged likewise, as in BigGAN (Brock et al.,
arXiv:1809.11096, appendix C): activations of averaged weights are nearer to the
average of the statistics than to the newest ones, and their means in a first,
linear layer are that average exactly.
"""

import keras
import tensorflow as tf

RAMP_UP = 0.05


class Ema:
    """Moves a generator's average; all in float32, like the weights."""

    def __init__(
        self,
        average: keras.Model,
        *,
        half_life_images: float,
        images_per_step: int,
    ) -> None:
        """Fixes what does not change from step to step.

        Args:
          average: of the same architecture as what it is the average of.
          half_life_images: see above.
          images_per_step: real images that a step takes, over all replicas.
        """
        self._average = average
        self._half_life_images = half_life_images
        self._images_per_step = images_per_step

    def decay(self, step: tf.Tensor) -> tf.Tensor:
        """What the average keeps of itself in an update; 0 at step 0."""
        shown = tf.cast(step, tf.float64) * self._images_per_step
        half_life = tf.minimum(RAMP_UP * shown, self._half_life_images)
        # At step 0, a half-life that is shorter than any.
        decay = 0.5 ** (self._images_per_step / tf.maximum(half_life, 1e-8))
        return tf.cast(decay, tf.float32)

    def update(self, generator: keras.Model, step: tf.Tensor) -> None:
        """Moves the average; call in replica context, after the update.

        Args:
          generator: what it is the average of.
          step: the global step, that of the update.
        """
        decay = self.decay(step)
        for average, variable in zip(
            self._average.variables, generator.variables, strict=True
        ):
            value = tf.convert_to_tensor(variable.value)
            if value.dtype.is_floating:
                kept = tf.convert_to_tensor(average.value)
                # In this form it stays where it is if both are equal, and
                # becomes the value if nothing is kept.
                value += tf.cast(decay, value.dtype) * (kept - value)
            average.assign(value)
