"""One adversarial round on every replica, and the compiled loop around it.

The arithmetic of a round, with B the global batch size: each replica computes
the per-example losses of its share, sums them and divides by B. Whatever must
be the same on all replicas (gradients, moving statistics, metrics) is then
summed over them in one packed reduction, and every replica applies the same
update to its own copy of the variables.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from trainer import randomness
from trainer.train_state import TrainState

METRIC_NAMES = (
    "g_loss",
    "d_loss",
    "real_probability",
    "fake_probability",
    "g_gradient_norm",
    "d_gradient_norm",
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
    ) -> None:
        """Prepares the compiled loop, which is traced at its first call.

        Args:
          state: what to train, created under the strategy's scope.
          strategy: the replicas.
          batches: endless, per replica {"sample": [B / replicas, ...] in
            [-1, 1], ...}, the first being that of the state's global step.
          loss: one of `trainer.losses`.
          latent_dim: size of the generator's input.
          global_batch_size: B, over all replicas.
          seed: the run's seed.
        """
        self.num_traces = 0
        self._state = state
        self._strategy = strategy
        self._batches = iter(batches)
        self._loss = loss
        self._latent_dim = latent_dim
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._run_steps = tf.function(self._trace_steps)

    def run(self, num_steps: int) -> dict[str, float]:
        """Runs `num_steps` rounds in one call into TensorFlow.

        Returns:
          `METRIC_NAMES` of the last round, over its global batch, and
          `data_wait_secs`, how long all the rounds together waited for data.
        """
        metrics, data_wait_secs = self._run_steps(
            tf.constant(num_steps, tf.int64)
        )
        values = dict(zip(METRIC_NAMES, metrics.numpy().tolist(), strict=True))
        return {**values, "data_wait_secs": float(data_wait_secs)}

    def _trace_steps(self, num_steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        self.num_traces += 1
        metrics = tf.zeros([len(METRIC_NAMES)])
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
        """One round on this replica's share of the global batch.

        Both losses come from one shared forward pass, and both networks are
        updated from it, as in the tutorial.

        Returns:
          `METRIC_NAMES` of the global batch, a vector.
        """
        state = self._state
        replica = tf.distribute.get_replica_context()
        generator = _Network.of(state.generator)
        discriminator = _Network.of(state.discriminator)

        with tf.GradientTape(persistent=True) as tape:
            tape.watch([generator.weights, discriminator.weights])
            real_logits, fake_logits, g_buffers, d_buffers = self._forward(
                generator, discriminator, batch["sample"], replica
            )
            g_losses, d_losses = self._loss(
                real_logits=real_logits, fake_logits=fake_logits
            )
            # Losses are scaled here and nowhere else.
            g_loss = self._share_of_mean(g_losses)
            d_loss = self._share_of_mean(d_losses)

        g_gradients, d_gradients, g_buffers, d_buffers, means = (
            _sum_over_replicas(
                replica,
                (
                    tape.gradient(g_loss, generator.weights),
                    tape.gradient(d_loss, discriminator.weights),
                    _share_of_buffers(g_buffers, replica),
                    _share_of_buffers(d_buffers, replica),
                    [
                        g_loss,
                        d_loss,
                        self._share_of_mean(tf.sigmoid(real_logits)),
                        self._share_of_mean(tf.sigmoid(fake_logits)),
                    ],
                ),
            )
        )
        state.g_optimizer.apply(g_gradients)
        state.d_optimizer.apply(d_gradients)
        generator.assign_buffers(g_buffers)
        discriminator.assign_buffers(d_buffers)
        norms = [tf.linalg.global_norm(g) for g in (g_gradients, d_gradients)]
        return tf.stack([*means, *norms])

    def _forward(
        self,
        generator: "_Network",
        discriminator: "_Network",
        real: tf.Tensor,
        replica: tf.distribute.ReplicaContext,
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """Returns real_logits, fake_logits and both networks' new buffers."""
        batch_size = real.shape[0]
        # Nothing starts before the batch is there: else the generator would
        # occupy the cores first, and that would be measured as waiting.
        with tf.control_dependencies([real]):
            step = tf.identity(self._state.global_step)

        def draws(purpose: str) -> randomness.Draws:
            return randomness.Draws(
                seed=self._seed,
                purpose=purpose,
                step=step,
                first_position=tf.cast(
                    replica.replica_id_in_sync_group, tf.int64
                )
                * batch_size,
            )

        latents = draws("latents").normal((batch_size, self._latent_dim))
        with randomness.draw_from(draws("generator")):
            fake, g_buffers = generator(latents)
        with randomness.draw_from(draws("discriminator on real")):
            real_logits, d_buffers = discriminator(real)
        with randomness.draw_from(draws("discriminator on fake")):
            fake_logits, d_buffers = discriminator(fake, d_buffers)
        return real_logits, fake_logits, g_buffers, d_buffers

    def _share_of_mean(self, per_example: tf.Tensor) -> tf.Tensor:
        """This replica's summand of the mean over the global batch."""
        return tf.reduce_sum(per_example) / self._global_batch_size


class _Network(NamedTuple):
    """A model as a function of its weights, on one replica.

    Layers that keep statistics assign them while they are called. Called as a
    function they return them instead, so that they can be made the same on all
    replicas first, whatever layer they belong to.
    """

    model: keras.Model
    weights: list[tf.Tensor]
    buffers: list[tf.Tensor]

    @classmethod
    def of(cls, model: keras.Model) -> "_Network":
        return cls(
            model,
            [tf.convert_to_tensor(v.value) for v in model.trainable_variables],
            [
                tf.convert_to_tensor(v.value)
                for v in model.non_trainable_variables
            ],
        )

    def __call__(
        self, inputs: tf.Tensor, buffers: list[tf.Tensor] | None = None
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return self.model.stateless_call(
            self.weights,
            self.buffers if buffers is None else buffers,
            inputs,
            training=True,
        )

    def assign_buffers(self, buffers: list[tf.Tensor]) -> None:
        for variable, value in zip(
            self.model.non_trainable_variables, buffers, strict=True
        ):
            variable.assign(value)


def _now_secs() -> tf.Tensor:
    """The clock, as an op (tf.timestamp is refused in deterministic mode)."""
    now_secs = tf.numpy_function(time.monotonic, [], tf.float64)
    return tf.ensure_shape(now_secs, [])


def _share_of_buffers(
    buffers: list[tf.Tensor], replica: tf.distribute.ReplicaContext
) -> list[tf.Tensor]:
    """Summands whose sum over the replicas is the replicas' mean."""
    return [b / replica.num_replicas_in_sync for b in buffers]


def _sum_over_replicas(
    replica: tf.distribute.ReplicaContext, nested: Any
) -> Any:
    """Sums the tensors of a nested structure over replicas, packed together."""
    flat = tf.nest.flatten(nested)
    summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, flat)
    return tf.nest.pack_sequence_as(nested, summed)
