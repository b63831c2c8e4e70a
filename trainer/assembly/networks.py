"""Builds the networks of a run, with what they are trained by."""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer import divergence, models
from trainer.adaptive_probability import AdaptiveProbability
from trainer.config import Config
from trainer.train_state import TrainState


def build_state(
    config: Config,
    strategy: tf.distribute.Strategy,
    sample_shape: tuple[int, ...],
    *,
    num_classes: int | None = None,
    num_rollbacks: int = 0,
) -> TrainState:
    """Builds networks and optimizers on the replicas.

    Args:
      config: of the run.
      strategy: the replicas.
      sample_shape: such as (H, W, C).
      num_classes: see `conditional_classes`.
      num_rollbacks: how often the run has gone back so far.
    """
    model = models.get(config.model)
    factor = config.rollback_learning_rate_factor**num_rollbacks
    with strategy.scope():
        return TrainState(
            build_generator=lambda: build_generator(
                config, sample_shape, num_classes=num_classes
            ),
            build_discriminator=lambda: model.build_discriminator(
                sample_shape=sample_shape,
                width=config.model_width,
                sync_batch_norm=config.sync_batch_norm,
                num_classes=num_classes,
            ),
            g_learning_rate=config.g_learning_rate * factor,
            d_learning_rate=config.d_learning_rate * factor,
            seed=divergence.seed_after(config.seed, num_rollbacks),
            precision=config.precision,
            optimizer=config.optimizer,
            g_optimizer_settings=_adam_settings(
                config, config.g_beta_1, config.g_beta_2
            ),
            d_optimizer_settings=_adam_settings(
                config, config.d_beta_1, config.d_beta_2
            ),
            has_penalty=config.penalty != "none",
            has_ema=config.ema_half_life_images > 0,
            build_augment_probability=_adaptive_probability(config),
        )


def _adaptive_probability(
    config: Config,
) -> Callable[[], AdaptiveProbability] | None:
    target = config.augment_target
    if target is None:
        return None
    return lambda: AdaptiveProbability(
        target=target, speed_images=config.augment_speed_images
    )


def _adam_settings(
    config: Config, beta_1: float, beta_2: float
) -> dict[str, float]:
    if config.optimizer != "adam":
        return {}
    return {"beta_1": beta_1, "beta_2": beta_2}


def build_generator(
    config: Config,
    sample_shape: tuple[int, ...],
    *,
    num_classes: int | None,
) -> keras.Model:
    """Builds the generator alone; see `build_state`."""
    return models.get(config.model).build_generator(
        latent_dim=config.latent_dim,
        sample_shape=sample_shape,
        width=config.model_width,
        sync_batch_norm=config.sync_batch_norm,
        num_classes=num_classes,
    )
