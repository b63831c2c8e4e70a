"""Connects the networks of a run with its data, step by step."""

import tensorflow as tf

from trainer import augmentations, distribution, divergence, losses, penalties
from trainer.config import Config
from trainer.data import pipeline
from trainer.data.dataset import Dataset
from trainer.ema import Ema
from trainer.learning_rates import LearningRateFactor
from trainer.regularizer import Regularizer
from trainer.schedule import Schedule
from trainer.team import Team
from trainer.train_state import TrainState
from trainer.train_step import TrainStep


def make_schedule(
    config: Config, strategy: tf.distribute.Strategy, dataset: Dataset
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
            len(dataset.labels), config.images_per_step
        ),
        epochs=config.epochs,
        max_steps=config.max_steps,
        steps_per_loop=config.steps_per_loop,
        log_every_steps=config.log_every_steps or config.steps_per_loop,
        sample_every_epochs=config.sample_every_epochs,
        checkpoint_every_epochs=config.checkpoint_every_epochs,
        keep_every_epochs=config.keep_every_epochs,
        evaluate_every_epochs=config.evaluate_every_epochs,
    )


def build_step(
    config: Config,
    team: Team,
    dataset: Dataset,
    state: TrainState,
    *,
    first_step: int = 0,
    num_rollbacks: int = 0,
) -> TrainStep:
    """Connects the state with the data from a global step on."""
    strategy = team.strategy
    seed = divergence.seed_after(config.seed, num_rollbacks)
    batches = strategy.distribute_datasets_from_function(
        lambda _: pipeline.training_batches(
            dataset,
            # The batches of a step, one after the other, are its parts.
            global_batch_size=config.images_per_step,
            num_replicas=strategy.num_replicas_in_sync,
            first_step=first_step,
            seed=seed,
            local_replicas=team.local_replicas,
            num_parts=config.num_discriminator_steps
            * config.gradient_accumulation_steps,
            random_flip=config.random_flip,
        )
    )
    return TrainStep(
        state,
        strategy=strategy,
        batches=batches,
        loss=losses.get(config.loss),
        latent_dim=config.latent_dim,
        global_batch_size=config.global_batch_size,
        seed=seed,
        regularizer=_regularizer(config, state),
        learning_rate_factor=_learning_rate_factor(config),
        ema=_ema(config, state),
        augment=augmentations.get(config.augment),
        augment_probability=config.augment_probability,
        num_discriminator_steps=config.num_discriminator_steps,
        num_accumulation_steps=config.gradient_accumulation_steps,
        jit_compile=distribution.should_jit(
            config.jit_compile,
            devices=strategy.extended.worker_devices,
            sync_batch_norm=config.sync_batch_norm,
        ),
    )


def _ema(config: Config, state: TrainState) -> Ema | None:
    if state.ema_generator is None:
        return None
    return Ema(
        state.ema_generator,
        half_life_images=config.ema_half_life_images,
        images_per_step=config.images_per_step,
    )


def _regularizer(config: Config, state: TrainState) -> Regularizer | None:
    penalty = penalties.get(config.penalty)
    if penalty is None:
        return None
    return Regularizer(
        penalty,
        weight=config.penalty_weight,
        every_steps=config.penalty_every_steps,
        float32_discriminator=state.build_float32_discriminator(),
    )


def _learning_rate_factor(config: Config) -> LearningRateFactor | None:
    factor = LearningRateFactor(
        schedule=config.learning_rate_schedule,
        warmup_steps=config.learning_rate_warmup_steps,
        decay_steps=config.learning_rate_decay_steps or 1,
        final_factor=config.learning_rate_final_factor,
    )
    return None if factor.is_constant else factor
