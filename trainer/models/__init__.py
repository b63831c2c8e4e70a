"""The networks by name. To add a model, add its functions and a line."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from trainer import errors
from trainer.models import dcgan, dcgan28, gangogh, r3gan, sngan


class Model(NamedTuple):
    """How to build the two networks of a GAN, for samples of a shape.

    Attributes:
      build_generator: (latent_dim, sample_shape, width, sync_batch_norm,
        num_classes) -> latents [B, latent_dim], and labels int32 [B] unless
        num_classes is None, to samples [B, *sample_shape].
      build_discriminator: (sample_shape, width, sync_batch_norm, num_classes)
        -> samples, and labels, to logits [B, 1]; or [B, 2] with the logarithm
        of the label's probability, if the network has a classifier.
      can_make: whether there are such networks for a sample shape.
      makes: which shapes those are, in words.
      has_width: whether they come in several widths; else width is None.
      width_multiple: what a width must be a multiple of.
    """

    build_generator: Callable[..., keras.Model]
    build_discriminator: Callable[..., keras.Model]
    can_make: Callable[[tuple[int, ...]], bool] = lambda sample_shape: True
    makes: str = "any"
    has_width: bool = False
    width_multiple: int = 1


MODELS = {
    "dcgan28": Model(
        dcgan28.build_generator,
        dcgan28.build_discriminator,
        dcgan28.can_make,
        makes="28x28x1",
    ),
    "dcgan": Model(
        dcgan.build_generator,
        dcgan.build_discriminator,
        dcgan.can_make,
        makes="16 to 256 pixels a side",
        has_width=True,
    ),
    "sngan": Model(
        sngan.build_generator,
        sngan.build_discriminator,
        sngan.can_make,
        makes="32x32 and 64x64",
        has_width=True,
        width_multiple=2,
    ),
    "r3gan": Model(
        r3gan.build_generator,
        r3gan.build_discriminator,
        r3gan.can_make,
        makes="32x32, 64x64, 128x128 and 256x256",
        has_width=True,
        width_multiple=r3gan.WIDTH_MULTIPLE,
    ),
    "gangogh": Model(
        gangogh.build_generator,
        gangogh.build_discriminator,
        gangogh.can_make,
        makes="32 to 128 pixels a side, in steps of 16",
        has_width=True,
    ),
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


def check(
    name: str, sample_shape: tuple[int, ...], *, width: int | None
) -> None:
    """Refuses a model that cannot make samples of the data's shape.

    Args:
      name: a key of `MODELS`.
      sample_shape: such as (H, W, C).
      width: of the networks; None for the model's own.

    Raises:
      UsageError: it cannot; the message lists the models that can.
    """
    model = get(name)
    if width is not None and not model.has_width:
        raise errors.UsageError(
            f"--model_width={width} has no use: --model={name} has one width."
            " Leave it out, or choose another --model."
        )
    if width is not None and width % model.width_multiple:
        raise errors.UsageError(
            f"--model_width={width} does not fit --model={name}, which needs a"
            f" multiple of {model.width_multiple}."
        )
    if model.can_make(sample_shape):
        return
    shape = "x".join(map(str, sample_shape))
    others = [n for n, other in MODELS.items() if other.can_make(sample_shape)]
    remedy = "Change --image_size or --channels."
    if others:
        remedy = f"Models that can: --model={' or --model='.join(others)}."
    raise errors.UsageError(
        f"--model={name} cannot make samples of {shape}, which the data are; it"
        f" makes {model.makes}. {remedy}"
    )
