"""One adversarial round on every replica, and the compiled loop around it.

Each replica computes its contribution (`trainer.adversarial`). Whatever must be
the same on all replicas (gradients, moving statistics, metrics) is then summed
over them in one packed reduction, and every replica draws the same conclusion
from the sums and applies the same update to its own copy of the variables.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from trainer.adversarial import MEAN_NAMES, AdversarialRound, Contribution
from trainer.learning_rates import LearningRateFactor
from trainer.loss_scale import LossScale
from trainer.network import Network
from trainer.optimizers import Optimizer
from trainer.regularizer import Regularizer
from trainer.train_state import TrainState

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
        num_accumulation_steps: int = 1,
        jit_compile: bool = False,
    ) -> None:
        """Prepares the compiled loop, which is traced at its first call.

        Args:
          state: what to train, created under the strategy's scope.
          strategy: the replicas.
          batches: endless, per replica {"sample": [B / replicas, ...] in
            [-1, 1], ...}, the first being that of the state's global step, and
            in the order of `trainer.data.pipeline` if there are several parts.
          loss: one of `trainer.losses`.
          latent_dim: size of the generator's input.
          global_batch_size: B, over all replicas.
          seed: the run's seed.
          regularizer: penalizes the discriminator.
          learning_rate_factor: of both networks at a step; None: 1.
          num_accumulation_steps: each replica goes through its share in so many
            equal parts, one after the other, to need less memory.
          jit_compile: whether XLA compiles each replica's computation.
        """
        self.num_traces = 0
        self._state = state
        self._strategy = strategy
        self._batches = iter(batches)
        self._num_accumulation_steps = num_accumulation_steps
        self._rate_factor = learning_rate_factor
        self._round = AdversarialRound(
            loss=loss,
            latent_dim=latent_dim,
            global_batch_size=global_batch_size,
            num_parts=strategy.num_replicas_in_sync * num_accumulation_steps,
            seed=seed,
            regularizer=regularizer,
        )
        self._regularizer = regularizer
        if regularizer:
            regularizer.check(state.discriminator)
        self._compute = self._compute_contribution
        if jit_compile:
            self._compute = tf.function(self._compute, jit_compile=True)
        self._run_steps = tf.function(self._trace_steps)
        self._metric_names: Sequence[str] = (
            *self._round.mean_names,
            *_NORM_NAMES,
        )
        if state.g_loss_scale:
            self._metric_names += SCALE_METRIC_NAMES
        if learning_rate_factor:
            self._metric_names += ("learning_rate_factor",)

    def run(self, num_steps: int) -> dict[str, float]:
        """Runs `num_steps` rounds in one call into TensorFlow.

        Returns:
          `METRIC_NAMES` of the last round, over its global batch; with loss
          scaling `SCALE_METRIC_NAMES`, the scales that it was computed with and
          the updates left out until after it; and `data_wait_secs`, how long
          all the rounds together waited for data.
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
            per_replica = self._strategy.run(self._replica_step, [batch])
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

    def _replica_step(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        """One round on this replica's share; returns the metrics, a vector."""
        state = self._state
        replica = tf.distribute.get_replica_context()
        generator = Network.of(state.generator)
        discriminator = Network.of(state.discriminator)
        scales = [_scale_of(state.g_loss_scale), _scale_of(state.d_loss_scale)]
        sums = _sum_over_replicas(
            replica,
            self._contribution(
                generator,
                discriminator,
                batch["sample"],
                tf.cast(replica.replica_id_in_sync_group, tf.int64),
            ),
        )
        rate_factor: tf.Tensor | float = 1.0
        if self._rate_factor:
            rate_factor = self._rate_factor(state.global_step)
        g_norm = _update(
            generator,
            state.g_optimizer,
            state.g_loss_scale,
            sums.g_gradients,
            sums.g_buffers,
            rate_factor,
        )
        d_norm = _update(
            discriminator,
            state.d_optimizer,
            state.d_loss_scale,
            sums.d_gradients,
            sums.d_buffers,
            rate_factor,
        )
        metrics = [self._remember_penalty(sums.means), [g_norm, d_norm]]
        if state.g_loss_scale and state.d_loss_scale:
            skipped = [
                state.g_loss_scale.num_skipped,
                state.d_loss_scale.num_skipped,
            ]
            metrics.append(scales)
            metrics.append([tf.cast(count, tf.float32) for count in skipped])
        if self._rate_factor:
            metrics.append([rate_factor])
        return tf.concat(metrics, axis=0)

    def _remember_penalty(self, means: tf.Tensor) -> tf.Tensor:
        """Puts the newest penalty that is known into the means."""
        penalty = self._state.penalty
        if self._regularizer is None or penalty is None:
            return means
        # One that is not finite would make the state unfit to be saved, even
        # where loss scaling has left the update out.
        is_new = self._regularizer.is_due(self._state.global_step)
        is_new &= tf.math.is_finite(means[-1])
        penalty.assign(tf.where(is_new, means[-1], penalty))
        return tf.concat([means[:-1], [penalty]], axis=0)

    def _contribution(
        self,
        generator: Network,
        discriminator: Network,
        real: tf.Tensor,
        replica_id: tf.Tensor,
    ) -> Contribution:
        """Computes this replica's contribution, part by part."""
        state = self._state
        num_replicas = self._strategy.num_replicas_in_sync
        part_size = real.shape[0] // self._num_accumulation_steps

        def compute_part(index: int, after: list[tf.Tensor]) -> Contribution:
            first = index * part_size
            with tf.control_dependencies(after):
                step = tf.identity(state.global_step)
                part_real = tf.identity(real[first : first + part_size])
            return self._compute(
                generator.weights,
                generator.buffers,
                discriminator.weights,
                discriminator.buffers,
                real=part_real,
                step=step,
                # A part is the same piece of the global batch for any number
                # of replicas; the data come in that order.
                first_position=(index * num_replicas + replica_id) * part_size,
                g_scale=_scale_of(state.g_loss_scale),
                d_scale=_scale_of(state.d_loss_scale),
            )

        # The first part waits for its data, or the generator would occupy the
        # cores and that would be measured as waiting; the others for the sum of
        # those before, or all would need their memory at once.
        total = compute_part(0, after=[real])
        for index in range(1, self._num_accumulation_steps):
            part = compute_part(index, after=tf.nest.flatten(total))
            total = tf.nest.map_structure(tf.add, total, part)
        return total

    def _compute_contribution(
        self,
        g_weights: list[tf.Tensor],
        g_buffers: list[tf.Tensor],
        d_weights: list[tf.Tensor],
        d_buffers: list[tf.Tensor],
        **kwargs: tf.Tensor,
    ) -> Contribution:
        """What XLA may compile: tensors in, tensors out."""
        return self._round.contribution(
            Network(self._state.generator, g_weights, g_buffers),
            Network(self._state.discriminator, d_weights, d_buffers),
            **kwargs,
        )


def _update(
    network: Network,
    optimizer: Optimizer,
    loss_scale: LossScale | None,
    gradients: list[tf.Tensor],
    buffers: list[tf.Tensor],
    rate_factor: tf.Tensor | float,
) -> tf.Tensor:
    """Updates a network from sums over the replicas; returns their norm.

    With loss scaling, sums that are not finite leave the weights, the
    optimizer's slots and the buffers as they are.
    """
    if loss_scale is None:
        optimizer.apply(gradients, rate_factor)
        network.assign_buffers(buffers)
        return tf.linalg.global_norm(gradients)

    gradients = [g / loss_scale.scale for g in gradients]
    norm = tf.linalg.global_norm(gradients)
    # Anything that is not finite makes the norm so.
    is_finite = tf.math.is_finite(norm + tf.linalg.global_norm(buffers))

    def apply() -> None:
        optimizer.apply(gradients, rate_factor)
        network.assign_buffers(buffers)

    # No collective is inside, and all replicas take the same branch.
    tf.cond(is_finite, apply, lambda: None)
    loss_scale.update(is_finite)
    return norm


def _scale_of(loss_scale: LossScale | None) -> tf.Tensor:
    return tf.constant(1.0) if loss_scale is None else loss_scale.scale + 0.0


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
