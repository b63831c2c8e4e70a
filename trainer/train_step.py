"""One training step on every replica, and the compiled loop around it.

Each replica computes its contribution (`trainer.adversarial`), perhaps in parts
(`trainer.accumulation`). Whatever must be the same on all replicas (gradients,
moving statistics, metrics) is then summed over them in one packed reduction,
and every replica draws the same conclusion from the sums and applies the same
update to its own copy of the variables.

Networks with classes get the labels of the real examples, and the generator
makes as many of each class. So fakes have the classes of the data in their
proportions (StyleGAN2-ADA draws labels from the data, too), a loss that pairs
real with fake (R3GAN, arXiv:2501.05441) compares within a class, and nothing is
drawn that could depend on the number of replicas.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from trainer.accumulation import Accumulation
from trainer.adversarial import MEAN_NAMES, AdversarialRound, Contribution
from trainer.ema import Ema
from trainer.learning_rates import LearningRateFactor
from trainer.network import Network, names_classes
from trainer.regularizer import Regularizer
from trainer.train_state import TrainState
from trainer.updates import scale_of, update

_NORM_NAMES = ("g_gradient_norm", "d_gradient_norm")
METRIC_NAMES = (*MEAN_NAMES, *_NORM_NAMES)
# With loss scaling only.
SCALE_METRIC_NAMES = (
    "g_loss_scale",
    "d_loss_scale",
    "g_skipped_steps",
    "d_skipped_steps",
)


class TrainStep:
    """Trains a `TrainState` on the batches of a distributed dataset.

    Attributes:
      num_traces: how often the loop was traced; a run needs one.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        strategy: tf.distribute.Strategy,
        batches: tf.distribute.DistributedDataset,
        loss: Callable[..., tuple[tf.Tensor, tf.Tensor]],
        latent_dim: int,
        global_batch_size: int,
        seed: int,
        regularizer: Regularizer | None = None,
        learning_rate_factor: LearningRateFactor | None = None,
        ema: Ema | None = None,
        augment: Callable[..., tf.Tensor] | None = None,
        augment_probability: float = 1.0,
        num_discriminator_steps: int = 1,
        num_accumulation_steps: int = 1,
        jit_compile: bool = False,
    ) -> None:
        """Prepares the compiled loop, which is traced at its first call.

        Args:
          state: what to train, created under the strategy's scope.
          strategy: the replicas.
          batches: endless, per replica {"sample": uint8 [B / replicas, ...],
            "label": int32 [B / replicas]}, the first being that of the state's
            global step, and in the order of `trainer.data.pipeline` if there
            are several parts; num_discriminator_steps times as many examples,
            of which each update takes a part, or as many parts as it has
            itself.
          loss: one of `trainer.losses`.
          latent_dim: size of the generator's input.
          global_batch_size: B, over all replicas.
          seed: the run's seed.
          regularizer: penalizes the discriminator.
          learning_rate_factor: of both networks at a step; None: 1.
          ema: moves the average of the generator.
          augment: of `trainer.augmentations`, what the discriminator sees.
          augment_probability: of each augmentation, unless the state has one
            that adapts.
          num_discriminator_steps: updates of the discriminator in a step, each
            from real and generated examples of its own. The last one shares its
            forward pass with the generator's only update.
          num_accumulation_steps: each replica goes through its share in so many
            equal parts, one after the other, to need less memory.
          jit_compile: whether XLA compiles each replica's computation.
        """
        self.num_traces = 0
        self._state = state
        self._strategy = strategy
        self._batches = iter(batches)
        self._num_discriminator_steps = num_discriminator_steps
        self._ema = ema
        self._rate_factor = learning_rate_factor
        self._global_batch_size = global_batch_size
        self._fixed_augment_probability = (
            augment_probability if augment else None
        )
        self._round = AdversarialRound(
            loss=loss,
            latent_dim=latent_dim,
            global_batch_size=global_batch_size,
            num_parts=strategy.num_replicas_in_sync * num_accumulation_steps,
            seed=seed,
            regularizer=regularizer,
            augment=augment,
            reports_real_sign=state.augment_probability is not None,
            names_classes=names_classes(state.discriminator),
        )
        self._regularizer = regularizer
        if regularizer:
            regularizer.check(state.discriminator)
        self._accumulation = Accumulation(
            state,
            self._round,
            num_replicas=strategy.num_replicas_in_sync,
            num_discriminator_steps=num_discriminator_steps,
            num_parts=num_accumulation_steps,
            jit_compile=jit_compile,
        )
        self._run_steps = tf.function(self._trace_steps)
        self._metric_names: Sequence[str] = (
            *self._round.mean_names,
            *_NORM_NAMES,
        )
        if state.g_loss_scale:
            self._metric_names += SCALE_METRIC_NAMES
        if learning_rate_factor:
            self._metric_names += ("learning_rate_factor",)
        if state.augment_probability:
            self._metric_names += ("augment_probability",)

    def run(self, num_steps: int) -> dict[str, float]:
        """Runs `num_steps` steps in one call into TensorFlow.

        Returns:
          `METRIC_NAMES` of the last round, over its global batch; with loss
          scaling `SCALE_METRIC_NAMES`, the scales that it was computed with and
          the updates left out until after it; and `data_wait_secs`, how long
          all the steps together waited for data.
        """
        metrics, data_wait_secs = self._run_steps(
            # Of 32 bits, for those stay in the host's memory, and a loop that
            # asks a GPU whether to go on waits for it at every step.
            tf.constant(num_steps, tf.int32)
        )
        values = metrics.numpy().tolist()
        return {
            **dict(zip(self._metric_names, values, strict=True)),
            "data_wait_secs": float(data_wait_secs),
        }

    def _trace_steps(self, num_steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        self.num_traces += 1
        metrics = tf.zeros([len(self._metric_names)])
        data_wait_secs = tf.zeros([], tf.float64)
        for _ in tf.range(num_steps):
            # One step at a time: the next one needs this one's weights.
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            batch, wait_secs = self._next_batch()
            data_wait_secs += wait_secs
            per_replica = self._strategy.run(
                self._replica_step, [batch, wait_secs]
            )
            # Every replica returns the same numbers.
            metrics = self._strategy.experimental_local_results(per_replica)[0]
            self._state.global_step.assign_add(1)
        return metrics, data_wait_secs

    def _next_batch(self) -> tuple[Any, tf.Tensor]:
        """Returns every replica's batch, and the seconds waited for them."""
        start_secs = _now_secs()
        with tf.control_dependencies([start_secs]):
            batch = next(self._batches)
        parts = self._strategy.experimental_local_results(batch)
        with tf.control_dependencies(tf.nest.flatten(parts)):
            return batch, _now_secs() - start_secs

    def _replica_step(
        self, batch: dict[str, tf.Tensor], wait_secs: tf.Tensor
    ) -> tf.Tensor:
        """All updates of a step; returns the last one's metrics, a vector."""
        # Not before the clock was read: it would wait for its turn behind the
        # first layers, on the same cores, and that would be measured.
        with tf.control_dependencies([wait_secs]):
            batch = tf.nest.map_structure(tf.identity, batch)
        for index in range(self._num_discriminator_steps - 1):
            self._update_networks(batch, index, trains_generator=False)
        return self._update_networks(
            batch, self._num_discriminator_steps - 1, trains_generator=True
        )

    def _update_networks(
        self,
        batch: dict[str, tf.Tensor],
        index: int,
        *,
        trains_generator: bool,
    ) -> tf.Tensor:
        """Updates the discriminator and perhaps the generator, from one round.

        Args:
          batch: this replica's share of the step's examples.
          index: of the round within the step.
          trains_generator: whether to update that, too.

        Returns:
          the metrics, a vector.
        """
        state = self._state
        replica = tf.distribute.get_replica_context()
        generator = Network.of(state.generator)
        discriminator = Network.of(state.discriminator)
        scales = [scale_of(state.g_loss_scale), scale_of(state.d_loss_scale)]
        augment_probability = self._augment_probability()
        d_update = state.global_step * self._num_discriminator_steps + index
        sums = _sum_over_replicas(
            replica,
            self._accumulation.contribution(
                generator,
                discriminator,
                batch,
                tf.cast(replica.replica_id_in_sync_group, tf.int64),
                index,
                d_update=d_update,
                trains_generator=trains_generator,
                augment_probability=augment_probability,
            ),
        )
        rate_factor: tf.Tensor | float = 1.0
        if self._rate_factor:
            rate_factor = self._rate_factor(state.global_step)
        g_norm = tf.zeros([])
        if trains_generator:
            g_norm = update(
                generator,
                state.g_optimizer,
                state.g_loss_scale,
                sums.g_gradients,
                sums.g_buffers,
                rate_factor,
                then=self._update_ema,
            )
        d_norm = update(
            discriminator,
            state.d_optimizer,
            state.d_loss_scale,
            sums.d_gradients,
            sums.d_buffers,
            rate_factor,
        )
        means = self._remember_penalty(sums.means, d_update)
        self._adapt_augmentation(means)
        return self._metrics(
            means, [g_norm, d_norm], scales, rate_factor, augment_probability
        )

    def _metrics(
        self,
        means: tf.Tensor,
        norms: list[tf.Tensor],
        scales: list[tf.Tensor],
        rate_factor: tf.Tensor | float,
        augment_probability: tf.Tensor | float | None,
    ) -> tf.Tensor:
        """Returns the values of `_metric_names`, a vector."""
        state = self._state
        metrics = [means, norms]
        if state.g_loss_scale and state.d_loss_scale:
            skipped = [
                state.g_loss_scale.num_skipped,
                state.d_loss_scale.num_skipped,
            ]
            metrics.append(scales)
            metrics.append([tf.cast(count, tf.float32) for count in skipped])
        if self._rate_factor:
            metrics.append([rate_factor])
        if state.augment_probability:
            metrics.append([augment_probability])
        return tf.concat(metrics, axis=0)

    def _update_ema(self) -> None:
        if self._ema:
            self._ema.update(self._state.generator, self._state.global_step)

    def _augment_probability(self) -> tf.Tensor | float | None:
        """Returns that of this round, or None if nothing is augmented."""
        if adaptive := self._state.augment_probability:
            return adaptive.value + 0.0
        return self._fixed_augment_probability

    def _adapt_augmentation(self, means: tf.Tensor) -> None:
        if adaptive := self._state.augment_probability:
            adaptive.update(
                means[self._round.mean_names.index("real_sign")],
                num_images=self._global_batch_size,
            )

    def _remember_penalty(
        self, means: tf.Tensor, d_update: tf.Tensor
    ) -> tf.Tensor:
        """Puts the newest penalty that is known into the means."""
        penalty = self._state.penalty
        if self._regularizer is None or penalty is None:
            return means
        # One that is not finite would make the state unfit to be saved, even
        # where loss scaling has left the update out.
        is_new = self._regularizer.is_due(d_update)
        is_new &= tf.math.is_finite(means[-1])
        penalty.assign(tf.where(is_new, means[-1], penalty))
        return tf.concat([means[:-1], [penalty]], axis=0)


def _sum_over_replicas(
    replica: tf.distribute.ReplicaContext, contribution: Contribution
) -> Contribution:
    """Sums over the replicas, packed into one reduction."""
    flat = tf.nest.flatten(contribution)
    summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, flat)
    return tf.nest.pack_sequence_as(contribution, summed)


def _now_secs() -> tf.Tensor:
    """The clock, as an op (tf.timestamp is refused in deterministic mode)."""
    now_secs = tf.numpy_function(time.monotonic, [], tf.float64)
    return tf.ensure_shape(now_secs, [])
