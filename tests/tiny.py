"""Networks with every kind of layer that training must handle, but small."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import (
    augmentations,
    distribution,
    losses,
    penalties,
    train_step,
)
from trainer.adaptive_probability import AdaptiveProbability
from trainer.data import pipeline
from trainer.data.array_dataset import ArrayDataset
from trainer.ema import Ema
from trainer.models import conditional, layers
from trainer.regularizer import Regularizer
from trainer.team import Team
from trainer.train_state import TrainState
from trainer.train_step import TrainStep

LATENT_DIM = 10
GLOBAL_BATCH_SIZE = 16


def build_generator(
    *,
    latent_dim: int,
    sample_shape: tuple[int, ...] = (28, 28, 1),
    width: None = None,
    sync_batch_norm: bool = False,
    num_classes: int | None = None,
) -> keras.Model:
    """Builds latents [B, latent_dim] -> images [B, 28, 28, 1]."""
    return _model(
        "generator",
        keras.Input([latent_dim]),
        [
            keras.layers.Dense(7 * 7 * 4, use_bias=False),
            _batch_norm(sync_batch_norm, num_classes),
            keras.layers.LeakyReLU(0.3),
            keras.layers.Reshape([7, 7, 4]),
            keras.layers.Conv2DTranspose(
                4, 5, strides=2, padding="same", use_bias=False
            ),
            _batch_norm(sync_batch_norm, num_classes),
            keras.layers.LeakyReLU(0.3),
            keras.layers.Conv2DTranspose(1, 5, strides=2, padding="same"),
            keras.layers.Activation("tanh"),
        ],
        num_classes,
    )


def build_discriminator(
    *,
    sample_shape: tuple[int, ...] = (28, 28, 1),
    width: None = None,
    sync_batch_norm: bool = False,
    num_classes: int | None = None,
    dropout_rate: float = 0.3,
) -> keras.Model:
    """Builds images [B, 28, 28, 1] -> logits [B, 1]."""
    return _model(
        "discriminator",
        keras.Input([28, 28, 1]),
        [
            keras.layers.Conv2D(4, 5, strides=2, padding="same"),
            keras.layers.LeakyReLU(0.3),
            layers.Dropout(dropout_rate),
            keras.layers.Conv2D(8, 5, strides=2, padding="same"),
            keras.layers.LeakyReLU(0.3),
            layers.Dropout(dropout_rate),
            keras.layers.Flatten(),
            _last_layer(num_classes),
        ],
        num_classes,
    )


def _batch_norm(
    synchronized: bool, num_classes: int | None
) -> keras.layers.Layer:
    if num_classes is None:
        return layers.BatchNormalization(synchronized=synchronized)
    return conditional.ConditionalBatchNormalization(
        num_classes, synchronized=synchronized
    )


def _last_layer(num_classes: int | None) -> keras.layers.Layer:
    if num_classes is None:
        return keras.layers.Dense(1)
    return conditional.Projection(num_classes)


def _model(
    name: str,
    inputs: keras.KerasTensor,
    network: list[keras.layers.Layer],
    num_classes: int | None,
) -> keras.Model:
    if num_classes is None:
        return keras.Sequential([inputs, *network], name=name)
    labels = conditional.labels_input()
    outputs = conditional.chain(network, inputs, labels)
    return keras.Model([inputs, labels], outputs, name=name)


def noise() -> ArrayDataset:
    """Makes 100 random images."""
    generator = np.random.default_rng(5)
    return ArrayDataset(
        samples=generator.integers(0, 256, [100, 28, 28, 1], dtype=np.uint8),
        labels=generator.integers(0, 10, [100]).astype(np.int32),
    )


def build_state(
    strategy: tf.distribute.Strategy,
    *,
    generator: Callable[[], keras.Model] | None = None,
    discriminator: Callable[[], keras.Model] = build_discriminator,
    sync_batch_norm: bool = False,
    learning_rate: float = 1e-4,
    seed: int = 0,
    precision: str = "float32",
    **settings: Any,
) -> TrainState:
    """Builds the networks, or others, on the replicas."""

    def build() -> keras.Model:
        return build_generator(
            latent_dim=LATENT_DIM, sync_batch_norm=sync_batch_norm
        )

    with strategy.scope():
        return TrainState(
            build_generator=generator or build,
            build_discriminator=discriminator,
            g_learning_rate=learning_rate,
            d_learning_rate=learning_rate,
            seed=seed,
            precision=precision,
            **settings,
        )


def build_step(
    state: TrainState,
    team: Team,
    *,
    dataset: ArrayDataset | None = None,
    global_batch_size: int = GLOBAL_BATCH_SIZE,
    num_discriminator_steps: int = 1,
    num_accumulation_steps: int = 1,
    seed: int = 0,
    jit_compile: bool = False,
    loss: Callable[..., tuple[tf.Tensor, tf.Tensor]] = losses.non_saturating,
    **settings: Any,
) -> TrainStep:
    """Connects a state with data, from its global step on."""
    batches = team.strategy.distribute_datasets_from_function(
        lambda _: pipeline.training_batches(
            dataset or noise(),
            global_batch_size=global_batch_size * num_discriminator_steps,
            num_replicas=team.strategy.num_replicas_in_sync,
            num_parts=num_discriminator_steps * num_accumulation_steps,
            local_replicas=team.local_replicas,
            first_step=int(state.global_step.numpy()),
            seed=seed,
        )
    )
    return TrainStep(
        state,
        strategy=team.strategy,
        batches=batches,
        loss=loss,
        latent_dim=LATENT_DIM,
        global_batch_size=global_batch_size,
        num_discriminator_steps=num_discriminator_steps,
        num_accumulation_steps=num_accumulation_steps,
        seed=seed,
        jit_compile=jit_compile,
        **settings,
    )


def values(state: TrainState) -> list[np.ndarray]:
    """Returns all variables' values, optimizers' slots among them."""
    return [variable.numpy() for variable in state.variables]


def assert_alike(
    one: tuple[TrainState, TrainStep],
    many: tuple[TrainState, TrainStep],
    *,
    num_steps: int = 4,
) -> None:
    """Trains both and compares metrics and all variables, to 1e-5."""
    for _ in range(num_steps):
        metrics, others = one[1].run(1), many[1].run(1)
        for name in train_step.METRIC_NAMES:
            assert others[name] == pytest.approx(metrics[name], abs=1e-5), name
    for value, other in zip(values(one[0]), values(many[0]), strict=True):
        np.testing.assert_allclose(other, value, rtol=0, atol=1e-5)


# Smaller still, for tests that make many steps of different kinds.
MICRO_SHAPE = (8, 8, 1)


def build_micro_generator(
    *, sync_batch_norm: bool = True, num_classes: int | None = None
) -> keras.Model:
    """Builds latents [B, LATENT_DIM] -> images [B, 8, 8, 1]."""
    return _model(
        "generator",
        keras.Input([LATENT_DIM]),
        [
            keras.layers.Dense(64, use_bias=False),
            _batch_norm(sync_batch_norm, num_classes),
            keras.layers.LeakyReLU(0.3),
            keras.layers.Reshape(MICRO_SHAPE),
            keras.layers.Conv2D(1, 3, padding="same"),
            keras.layers.Activation("tanh"),
        ],
        num_classes,
    )


def build_micro_discriminator(
    *, dropout_rate: float = 0.3, num_classes: int | None = None
) -> keras.Model:
    """Builds images [B, 8, 8, 1] -> logits [B, 1]."""
    return _model(
        "discriminator",
        keras.Input(MICRO_SHAPE),
        [
            keras.layers.Conv2D(4, 3, strides=2, padding="same"),
            keras.layers.LeakyReLU(0.3),
            layers.Dropout(dropout_rate),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="softplus"),
            _last_layer(num_classes),
        ],
        num_classes,
    )


def micro_noise() -> ArrayDataset:
    """Makes 100 random images of that size."""
    generator = np.random.default_rng(6)
    return ArrayDataset(
        samples=generator.integers(0, 256, [100, *MICRO_SHAPE], dtype=np.uint8),
        labels=generator.integers(0, 10, [100]).astype(np.int32),
    )


def adaptive_probability(
    target: float | None, speed_images: int = 1000
) -> Callable[[], AdaptiveProbability] | None:
    """Returns what builds one, or None without a target."""
    if target is None:
        return None
    return lambda: AdaptiveProbability(target=target, speed_images=speed_images)


def make_micro(
    num_replicas: int = 1,
    *,
    state_settings: Mapping[str, Any] | None = None,
    penalty: str = "none",
    penalty_weight: float = 10.0,
    penalty_every_steps: int = 1,
    ema_half_life_images: int = 0,
    augment: str = "none",
    augment_target: float | None = None,
    augment_speed_images: int = 1000,
    checkpoint: str | None = None,
    jit_compile: bool = False,
    num_classes: int | None = None,
    dataset: ArrayDataset | None = None,
    **step_settings: Any,
) -> tuple[TrainState, TrainStep]:
    """Builds the smallest networks and connects them with noise.

    Args:
      num_replicas: 1 is the strategy one_device, more are mirrored.
      state_settings: of `build_state`.
      penalty: of the regularizer.
      penalty_weight: the same.
      penalty_every_steps: the same.
      ema_half_life_images: of the average; 0: none.
      augment: names, with commas between.
      augment_target: of a probability that adapts; None: it is fixed.
      augment_speed_images: of the same.
      checkpoint: of a state like this one, to go on from.
      jit_compile: without synchronized batch norm, which XLA cannot compile.
      num_classes: that both networks are told; None: none.
      dataset: of 8x8 grey images; None: noise.
      **step_settings: of `build_step`.
    """
    strategy = distribution.make_strategy(
        "one_device" if num_replicas == 1 else "mirrored",
        num_logical_cpus=0 if num_replicas == 1 else num_replicas,
    )
    state = build_state(
        strategy,
        **{
            "generator": lambda: build_micro_generator(
                sync_batch_norm=not jit_compile, num_classes=num_classes
            ),
            "discriminator": lambda: build_micro_discriminator(
                num_classes=num_classes
            ),
            "has_penalty": penalty != "none",
            "has_ema": ema_half_life_images > 0,
            "build_augment_probability": adaptive_probability(
                augment_target, augment_speed_images
            ),
            **(state_settings or {}),
        },
    )
    if checkpoint:
        state.as_checkpoint().read(checkpoint).assert_consumed()
    regularizer = None
    if kind := penalties.get(penalty):
        regularizer = Regularizer(
            kind,
            weight=penalty_weight,
            every_steps=penalty_every_steps,
            float32_discriminator=state.build_float32_discriminator(),
        )
    ema = None
    if state.ema_generator:
        ema = Ema(
            state.ema_generator,
            half_life_images=ema_half_life_images,
            images_per_step=GLOBAL_BATCH_SIZE
            * step_settings.get("num_discriminator_steps", 1),
        )
    step = build_step(
        state,
        Team(strategy),
        dataset=dataset or micro_noise(),
        ema=ema,
        regularizer=regularizer,
        augment=augmentations.get(augment),
        jit_compile=jit_compile,
        **step_settings,
    )
    return state, step
