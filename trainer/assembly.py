"""Makes the parts of a run from its config, which they never see themselves."""

import tensorflow as tf

from trainer import distribution, losses, models, samples
from trainer.config import Config
from trainer.data import pipeline
from trainer.data.array_dataset import ArrayDataset
from trainer.outputs import Outputs
from trainer.run_directory import RunDirectory
from trainer.schedule import Schedule
from trainer.train_state import TrainState
from trainer.train_step import TrainStep


def start_devices(config: Config) -> tf.distribute.Strategy:
    """Configures TensorFlow and returns the replicas."""
    distribution.prepare_devices(
        num_logical_cpus=config.num_logical_cpus,
        deterministic=config.deterministic,
    )
    return distribution.make_strategy(
        config.strategy, num_logical_cpus=config.num_logical_cpus
    )


def make_schedule(
    config: Config, strategy: tf.distribute.Strategy, dataset: ArrayDataset
) -> Schedule:
    """Works out and checks the batch arithmetic.

    Raises:
      DataError: there is less data than a batch.
      UsageError: the replicas cannot share a batch equally.
    """
    distribution.check_batch_size(
        config.global_batch_size,
        num_replicas=strategy.num_replicas_in_sync,
        num_parts=config.gradient_accumulation_steps,
    )
    return Schedule(
        steps_per_epoch=pipeline.steps_per_epoch(
            len(dataset.labels), config.global_batch_size
        ),
        epochs=config.epochs,
        max_steps=config.max_steps,
        steps_per_loop=config.steps_per_loop,
        log_every_steps=config.log_every_steps,
        sample_every_epochs=config.sample_every_epochs,
        checkpoint_every_epochs=config.checkpoint_every_epochs,
    )


def build_state(config: Config, strategy: tf.distribute.Strategy) -> TrainState:
    """Builds networks and optimizers on the replicas."""
    model = models.get(config.model)
    with strategy.scope():
        return TrainState(
            build_generator=lambda: model.build_generator(
                latent_dim=config.latent_dim,
                sync_batch_norm=config.sync_batch_norm,
            ),
            build_discriminator=model.build_discriminator,
            g_learning_rate=config.g_learning_rate,
            d_learning_rate=config.d_learning_rate,
            seed=config.seed,
            precision=config.precision,
        )


def build_step(
    config: Config,
    strategy: tf.distribute.Strategy,
    dataset: ArrayDataset,
    state: TrainState,
    first_step: int,
) -> TrainStep:
    """Connects the state with the data from a global step on."""
    batches = strategy.distribute_datasets_from_function(
        lambda _: pipeline.training_batches(
            dataset,
            global_batch_size=config.global_batch_size,
            num_replicas=strategy.num_replicas_in_sync,
            first_step=first_step,
            seed=config.seed,
        )
    )
    return TrainStep(
        state,
        strategy=strategy,
        batches=batches,
        loss=losses.non_saturating,
        latent_dim=config.latent_dim,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        num_accumulation_steps=config.gradient_accumulation_steps,
        jit_compile=distribution.should_jit(
            config.jit_compile, sync_batch_norm=config.sync_batch_norm
        ),
    )


def open_outputs(
    config: Config,
    directory: RunDirectory,
    schedule: Schedule,
    state: TrainState,
    first_step: int,
) -> Outputs:
    """Opens what the run shows, from a global step on."""
    return Outputs(
        directory=directory,
        schedule=schedule,
        sampler=samples.Sampler(
            state.generator,
            latent_dim=config.latent_dim,
            num_samples=config.num_samples,
            seed=config.seed,
        ),
        global_batch_size=config.global_batch_size,
        first_step=first_step,
    )
