"""A replica's contribution to a round, from its share in one part or several.

Several need less memory: each is done with when the next one begins, and only
the sum of what they contribute is kept.
"""

from typing import Any

import tensorflow as tf

from trainer import pixels
from trainer.adversarial import AdversarialRound, Contribution
from trainer.generation import takes_labels
from trainer.network import Network
from trainer.train_state import TrainState
from trainer.updates import scale_of


class Accumulation:
    """Cuts a replica's examples into parts, and sums their contributions."""

    def __init__(
        self,
        state: TrainState,
        adversarial_round: AdversarialRound,
        *,
        num_replicas: int,
        num_discriminator_steps: int,
        num_parts: int,
        jit_compile: bool,
    ) -> None:
        """Fixes what does not change from step to step.

        Args:
          state: whose networks, global step and loss scales are taken.
          adversarial_round: what is computed of a part.
          num_replicas: that share a batch.
          num_discriminator_steps: rounds that share a step's examples.
          num_parts: of a replica's share of a round, of equal size.
          jit_compile: whether XLA compiles what is computed of a part.
        """
        self._state = state
        self._round = adversarial_round
        self._num_replicas = num_replicas
        self._num_discriminator_steps = num_discriminator_steps
        self._num_parts = num_parts
        self._compute = self._compute_contribution
        if jit_compile:
            self._compute = tf.function(self._compute, jit_compile=True)

    def contribution(
        self,
        generator: Network,
        discriminator: Network,
        batch: dict[str, tf.Tensor],
        replica_id: tf.Tensor,
        round_index: int,
        *,
        d_update: tf.Tensor,
        trains_generator: bool,
        augment_probability: tf.Tensor | float | None,
    ) -> Contribution:
        """Computes this replica's contribution to a round, part by part.

        Args:
          generator: see `AdversarialRound.contribution`; here and below.
          discriminator: the same.
          batch: this replica's share of the step's examples.
          replica_id: which replica this is, an int64 scalar.
          round_index: of the round within the step.
          d_update: the number of updates of the discriminator before this one.
          trains_generator: whether its gradients are wanted.
          augment_probability: of each augmentation, if there are any.
        """
        state = self._state
        real = batch["sample"]
        num_replicas = self._num_replicas
        num_parts = self._num_parts
        part_size = real.shape[0] // (self._num_discriminator_steps * num_parts)

        def compute_part(index: int, after: list[tf.Tensor]) -> Contribution:
            first = index * part_size
            with tf.control_dependencies(after):
                step = tf.identity(state.global_step)
                part_real = tf.identity(real[first : first + part_size])
                labels = None
                if takes_labels(state.generator):
                    labels = batch["label"][first : first + part_size]
            return self._compute(
                generator.weights,
                generator.buffers,
                discriminator.weights,
                discriminator.buffers,
                labels=labels,
                real=part_real,
                step=step,
                d_update=d_update,
                # A part is the same piece of the step's examples for any number
                # of replicas; the data come in that order.
                first_position=(index * num_replicas + replica_id) * part_size,
                g_scale=scale_of(state.g_loss_scale),
                d_scale=scale_of(state.d_loss_scale),
                trains_generator=trains_generator,
                augment_probability=augment_probability,
            )

        # The first part waits for its data, or the generator would occupy the
        # cores and that would be measured as waiting; the others for the sum of
        # those before, or all would need their memory at once.
        first_part = round_index * num_parts
        total = compute_part(first_part, after=[real])
        for index in range(first_part + 1, first_part + num_parts):
            part = compute_part(index, after=tf.nest.flatten(total))
            total = tf.nest.map_structure(tf.add, total, part)
        return total

    def _compute_contribution(
        self,
        g_weights: list[tf.Tensor],
        g_buffers: list[tf.Tensor],
        d_weights: list[tf.Tensor],
        d_buffers: list[tf.Tensor],
        labels: tf.Tensor | None,
        real: tf.Tensor,
        **kwargs: Any,
    ) -> Contribution:
        """What XLA may compile: tensors in, tensors out."""
        return self._round.contribution(
            Network(self._state.generator, g_weights, g_buffers, labels),
            Network(self._state.discriminator, d_weights, d_buffers, labels),
            real=pixels.to_float(real),
            **kwargs,
        )
