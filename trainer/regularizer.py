"""A penalty within the training: its weight, its interval, its precision.

The discriminator is computed in float32 for it, whatever the precision of the
losses. The slope of a logit by one pixel is small, and its square far below
what float16 can hold, while no loss scale reaches it: that one multiplies the
penalty after the squares are summed. bfloat16 has the range, but two digits,
which is little for the derivative of a derivative. So neither the inner nor
the outer gradient can overflow or vanish before those of float32 training do.

Where the discriminator sees augmented samples, it does here, too, by draws of
its own. The slope is that by the sample before: what is trained against the
generator is the augmentation and the discriminator together. So it is in the
code of Karras et al., "StyleGAN2-ADA" (arXiv:2006.06676), and in that of Zhao
et al. (arXiv:2006.10738) for few images; for CIFAR-10 and FFHQ, theirs takes
the slope by the augmented sample.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer import errors, randomness
from trainer.network import Network, logits_of
from trainer.penalties import Penalty


class Regularizer:
    """Adds a penalty to the discriminator's loss, every so many steps.

    Karras et al., "StyleGAN2" (arXiv:1912.04958), appendix B, "lazy
    regularization": computed at each k-th step only, the penalty is multiplied
    by k, which keeps its mean weight.
    """

    def __init__(
        self,
        penalty: Penalty,
        *,
        weight: float,
        every_steps: int = 1,
        float32_discriminator: keras.Model | None = None,
    ) -> None:
        """Fixes what does not change from step to step.

        Args:
          penalty: one of `trainer.penalties`.
          weight: the paper's gamma or lambda.
          every_steps: updates of the discriminator from one to the next.
          float32_discriminator: the same network with layers that compute in
            float32, if the trained one's do not; its variables are not read.
        """
        self._penalty = penalty
        self._factor = weight * penalty.coefficient * every_steps
        self._every_steps = every_steps
        self._float32_discriminator = float32_discriminator

    def check(self, discriminator: keras.Model) -> None:
        """Refuses layers that speak to the other replicas at some steps only.

        Raises:
          UsageError: there are such layers.
        """
        if self._every_steps > 1 and any(
            getattr(layer, "synchronized", False)
            for layer in discriminator._flatten_layers()
        ):
            raise errors.UsageError(
                f"--penalty_every_steps={self._every_steps} cannot be combined"
                " with --sync_batch_norm in this discriminator: its layers"
                " speak to the other replicas, which they must do at every"
                " step. Leave either out."
            )

    def is_due(self, d_update: tf.Tensor) -> tf.Tensor:
        """Whether an update is penalized, a bool scalar."""
        return tf.equal(d_update % self._every_steps, 0)

    def sum_and_gradients(
        self,
        discriminator: Network,
        *,
        real: tf.Tensor,
        fake: tf.Tensor,
        d_update: tf.Tensor,
        draws: Callable[..., randomness.Draws],
        scale: tf.Tensor,
        augment: Callable[[tf.Tensor], tf.Tensor] = lambda samples: samples,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Computes the penalty of some examples, or zeros if it is not due.

        Args:
          discriminator: samples -> logits [b, 1], and perhaps more columns,
            which are not penalized.
          real: [b, ...].
          fake: [b, ...].
          d_update: the number of updates of the discriminator before this one.
          draws: makes draws for a purpose.
          scale: multiplies the gradients, besides the weight.
          augment: what the discriminator sees of samples, with other random
            numbers at each call.

        Returns:
          the sum over the examples, without any factor; and the gradients of
          what is added to the loss, by the discriminator's weights.
        """
        if self._float32_discriminator:
            discriminator = discriminator._replace(
                model=self._float32_discriminator
            )
        fake = tf.stop_gradient(fake)

        def compute() -> list[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(discriminator.weights)
                # Layers that drop units draw masks of their own here.
                with randomness.draw_from(
                    draws(purpose="discriminator for penalty")
                ):
                    per_example = self._penalty.per_example(
                        lambda samples: logits_of(
                            discriminator(augment(samples))[0]
                        ),
                        real=real,
                        fake=fake,
                        draws=draws(purpose="penalty"),
                    )
                total = tf.reduce_sum(per_example)
                scaled = total * (self._factor * scale)
            gradients = tape.gradient(
                scaled,
                discriminator.weights,
                # The last bias, for one, moves no slope.
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return [total, *gradients]

        def skip() -> list[tf.Tensor]:
            return [
                tf.zeros([]),
                *(tf.zeros_like(w) for w in discriminator.weights),
            ]

        if self._every_steps == 1:
            total, *gradients = compute()
        else:
            # No collective is inside, and all replicas take the same branch.
            total, *gradients = tf.cond(self.is_due(d_update), compute, skip)
        return total, gradients
