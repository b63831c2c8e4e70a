"""The arithmetic of one adversarial round on one replica's examples.

A pure function: it reads no variable and assigns none, so that it can be
compiled as one unit, and everything random in it is addressed by step and
position. With B the global batch size, what it returns are summands: summed
over all replicas they are means over B.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer import randomness
from trainer.network import Network, logits_of
from trainer.regularizer import Regularizer

MEAN_NAMES = ("g_loss", "d_loss", "real_probability", "fake_probability")


class Contribution(NamedTuple):
    """One replica's summands of what all replicas must agree on.

    Attributes:
      g_gradients: of the scaled generator loss, one per weight; none in a round
        that trains only the discriminator.
      d_gradients: of the scaled discriminator loss, one per weight.
      g_buffers: the generator's new buffers; none in such a round.
      d_buffers: the discriminator's.
      means: `AdversarialRound.mean_names`, a vector.
    """

    g_gradients: list[tf.Tensor]
    d_gradients: list[tf.Tensor]
    g_buffers: list[tf.Tensor]
    d_buffers: list[tf.Tensor]
    means: tf.Tensor


class _Losses(NamedTuple):
    """Scalars; those of the classifier are lists of one, or of none."""

    g: tf.Tensor
    d: tf.Tensor
    g_class: list[tf.Tensor]
    d_class: list[tf.Tensor]

    def g_total(self) -> tf.Tensor:
        return tf.add_n([self.g, *self.g_class])

    def d_total(self) -> tf.Tensor:
        return tf.add_n([self.d, *self.d_class])


class AdversarialRound:
    """Both losses from one shared forward pass, and both gradients.

    Attributes:
      mean_names: what the means of a contribution are.
    """

    def __init__(
        self,
        *,
        loss: Callable[..., tuple[tf.Tensor, tf.Tensor]],
        latent_dim: int,
        global_batch_size: int,
        num_parts: int,
        seed: int,
        regularizer: Regularizer | None = None,
        augment: Callable[..., tf.Tensor] | None = None,
        reports_real_sign: bool = False,
        names_classes: bool = False,
    ) -> None:
        """Fixes what does not change from step to step.

        Args:
          loss: one of `trainer.losses`.
          latent_dim: size of the generator's input.
          global_batch_size: B.
          num_parts: over how many parts of the global batch buffers are
            averaged: the replicas, times the parts of each one's share.
          seed: the run's seed.
          regularizer: penalizes the discriminator.
          augment: of `trainer.augmentations`, what the discriminator sees.
          reports_real_sign: whether the mean sign of the logits of real
            examples is among the means.
          names_classes: whether the discriminator has a classifier, which both
            networks are trained for as well.
        """
        self._loss = loss
        self._latent_dim = latent_dim
        self._global_batch_size = global_batch_size
        self._num_parts = num_parts
        self._seed = seed
        self._regularizer = regularizer
        self._augment = augment
        self._reports_real_sign = reports_real_sign
        self._names_classes = names_classes
        self.mean_names: tuple[str, ...] = MEAN_NAMES
        if names_classes:
            self.mean_names += ("g_class_loss", "d_class_loss")
        if reports_real_sign:
            self.mean_names += ("real_sign",)
        if regularizer:
            self.mean_names += ("penalty",)

    def contribution(
        self,
        generator: Network,
        discriminator: Network,
        *,
        real: tf.Tensor,
        step: tf.Tensor,
        d_update: tf.Tensor,
        first_position: tf.Tensor,
        g_scale: tf.Tensor,
        d_scale: tf.Tensor,
        trains_generator: bool = True,
        augment_probability: tf.Tensor | float | None = None,
    ) -> Contribution:
        """Computes the losses and gradients of some examples.

        Args:
          generator: latents [b, latent_dim] -> samples.
          discriminator: samples -> logits [b, 1], or [b, 2] if it also names
            classes. If the two have labels, those are of the real samples:
            generated ones are asked for in the same classes.
          real: [b, ...] in [-1, 1].
          step: the global step.
          d_update: the number of updates of the discriminator before this one.
          first_position: of `real[0]` among the step's examples.
          g_scale: multiplies the generator's loss before the gradient.
          d_scale: the same for the discriminator's.
          trains_generator: whether its gradients are wanted; without them, its
            buffers stay as they are, too.
          augment_probability: of each augmentation, if there are any.
        """
        draws = functools.partial(
            randomness.Draws,
            seed=self._seed,
            step=step,
            first_position=first_position,
        )
        augmentation = functools.partial(
            self._augmentation, draws, augment_probability
        )
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([generator.weights, discriminator.weights])
            fake, g_buffers = self._generate(generator, real.shape[0], draws)
            real_outputs, fake_outputs, d_buffers = self._discriminate(
                discriminator,
                augmentation("real")(real),
                augmentation("fake")(fake),
                draws,
            )
            losses = self._losses(real_outputs, fake_outputs)
            scaled_g_loss = losses.g_total() * g_scale
            scaled_d_loss = losses.d_total() * d_scale
        d_gradients = tape.gradient(scaled_d_loss, discriminator.weights)
        means = self._means(losses, real_outputs, fake_outputs)
        if self._regularizer:
            penalty, gradients = self._regularizer.sum_and_gradients(
                discriminator,
                real=real,
                fake=fake,
                d_update=d_update,
                draws=draws,
                scale=d_scale / self._global_batch_size,
                augment=augmentation("penalty"),
            )
            means.append(penalty / self._global_batch_size)
            d_gradients = [
                a + b for a, b in zip(d_gradients, gradients, strict=True)
            ]
        g_gradients = []
        if trains_generator:
            g_gradients = tape.gradient(scaled_g_loss, generator.weights)
        else:
            g_buffers = []
        return Contribution(
            g_gradients=g_gradients,
            d_gradients=d_gradients,
            g_buffers=[b / self._num_parts for b in g_buffers],
            d_buffers=[b / self._num_parts for b in d_buffers],
            means=tf.stack(means),
        )

    def _augmentation(
        self,
        draws: Callable[..., randomness.Draws],
        probability: tf.Tensor | float | None,
        purpose: str,
    ) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns samples -> what the discriminator sees of them."""
        if self._augment is None:
            return lambda samples: samples
        return functools.partial(
            self._augment,
            draws=draws(purpose=f"augmentation of {purpose}"),
            probability=probability,
        )

    def _generate(
        self,
        generator: Network,
        num_examples: int,
        draws: Callable[..., randomness.Draws],
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns generated samples and the generator's new buffers."""
        latents = draws(purpose="latents").normal(
            (num_examples, self._latent_dim)
        )
        with randomness.draw_from(draws(purpose="generator")):
            return generator(latents)

    def _discriminate(
        self,
        discriminator: Network,
        real: tf.Tensor,
        fake: tf.Tensor,
        draws: Callable[..., randomness.Draws],
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Returns what it says of real, of fake, and the new buffers."""
        with randomness.draw_from(draws(purpose="discriminator on real")):
            real_outputs, d_buffers = discriminator(real)
        with randomness.draw_from(draws(purpose="discriminator on fake")):
            fake_outputs, d_buffers = discriminator(fake, d_buffers)
        return real_outputs, fake_outputs, d_buffers

    def _losses(
        self, real_outputs: tf.Tensor, fake_outputs: tf.Tensor
    ) -> _Losses:
        """Returns shares of means, divided by B here and nowhere else.

        The classifier's: Odena et al. (arXiv:1610.09585), equation 3, but each
        network for the samples that are its own: so it is in GANgogh's code.
        """
        g_losses, d_losses = self._loss(
            real_logits=logits_of(real_outputs),
            fake_logits=logits_of(fake_outputs),
        )
        g_class, d_class = [], []
        if self._names_classes:
            g_class = [self._share_of_mean(-fake_outputs[:, 1:])]
            d_class = [self._share_of_mean(-real_outputs[:, 1:])]
        return _Losses(
            g=self._share_of_mean(g_losses),
            d=self._share_of_mean(d_losses),
            g_class=g_class,
            d_class=d_class,
        )

    def _means(
        self,
        losses: _Losses,
        real_outputs: tf.Tensor,
        fake_outputs: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Returns the means in the order of `mean_names`, but the penalty."""
        real_logits = logits_of(real_outputs)
        means = [
            losses.g,
            losses.d,
            self._share_of_mean(tf.sigmoid(real_logits)),
            self._share_of_mean(tf.sigmoid(logits_of(fake_outputs))),
            *losses.g_class,
            *losses.d_class,
        ]
        if self._reports_real_sign:
            means.append(self._share_of_mean(tf.sign(real_logits)))
        return means

    def _share_of_mean(self, per_example: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(per_example) / self._global_batch_size
