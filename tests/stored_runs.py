"""A small finished run for the commands that look at runs."""

import pathlib

import keras
import pytest

from tests import tiny
from trainer import models, train
from trainer.config import Config
from trainer.heartbeat import Heartbeat

# 1,797 digits make 7 steps an epoch.
STEPS_PER_EPOCH = 7


def use_tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes dcgan28 small, and the classifier of its samples quick."""
    monkeypatch.setitem(
        models.MODELS,
        "dcgan28",
        models.Model(tiny.build_generator, tiny.build_discriminator),
    )
    monkeypatch.setattr(
        "trainer.evaluation.classifier.train.__kwdefaults__",
        {"num_steps": 20, "on_progress": lambda: None},
    )


def run(workdir: pathlib.Path, **changes) -> int:
    """Trains in this process; call `use_tiny_networks` before."""
    values = {
        "workdir": str(workdir),
        "batch_size": 256,
        "latent_dim": tiny.LATENT_DIM,
        "epochs": 2,
        "checkpoint_every_epochs": 1,
        "num_logical_cpus": 1,
        **changes,
    }
    config = Config(**values)
    config.validate()
    return train.run(config.resolve(), Heartbeat(stall_timeout_secs=300))


def conditional_generator(
    latent_dim: int = 3, num_classes: int = 2
) -> keras.Model:
    """Builds (latents, labels) -> images that are as bright as the label."""
    latents = keras.Input([latent_dim])
    labels = keras.Input([], dtype="int32")
    column = keras.layers.Reshape([1])(labels)
    values = keras.layers.CategoryEncoding(num_classes)(column)
    images = keras.layers.Dense(
        8 * 8, kernel_initializer=keras.initializers.Zeros()
    )(latents)
    bright = keras.layers.Dense(
        8 * 8,
        use_bias=False,
        kernel_initializer=lambda shape, dtype: keras.ops.concatenate(
            [keras.ops.full([1, 64], i / (num_classes - 1)) for i in range(2)]
        ),
    )(values)
    together = keras.layers.Add()([images, bright])
    return keras.Model(
        [latents, labels], keras.layers.Reshape([8, 8, 1])(together)
    )
