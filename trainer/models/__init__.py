"""The networks by name. To add a model, add two functions and a line."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from trainer import errors
from trainer.models import dcgan


class Model(NamedTuple):
    """How to build the two networks of a GAN.

    Attributes:
      build_generator: (latent_dim, sync_batch_norm) -> latents to samples.
      build_discriminator: () -> samples to logits [B, 1].
    """

    build_generator: Callable[..., keras.Model]
    build_discriminator: Callable[[], keras.Model]


MODELS = {
    "dcgan28": Model(dcgan.dcgan28_generator, dcgan.dcgan28_discriminator),
}


def get(name: str) -> Model:
    """Returns the model of that name.

    Raises:
      UsageError: there is none; the message lists the known ones.
    """
    if name not in MODELS:
        raise errors.UsageError(
            f"--model={name} is unknown; known are: {', '.join(MODELS)}."
        )
    return MODELS[name]
