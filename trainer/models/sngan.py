"""The ResNets of spectral normalization, for 32x32 and 64x64 images.

Miyato et al., "Spectral normalization for generative adversarial networks"
(arXiv:1802.05957), tables 4 and following, in the form of the authors' code;
with classes those of Miyato and Koyama, "cGANs with projection discriminator"
(arXiv:1802.05637): conditional batch norm in the blocks of the generator, and a
projection at the end of the discriminator. All that has a kernel in the
discriminator has spectral norm.

Two orders of operations differ, which changes rounding only: a 1x1 convolution
comes before upsampling and after average pooling, where it costs a quarter. And
the logit has a bias at 32x32, too, where that of the authors' code has none.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from trainer.models import conditional, layers
from trainer.models.spectral_norm import SpectralConv2D, SpectralDense

Tensor = Any  # A symbolic one, of a functional model.

_SMALLEST_SIDE = 4
_DEFAULT_WIDTHS = {32: 256, 64: 64}
# Those of the authors' framework.
_MOMENTUM = 0.9
_EPSILON = 2e-5


def can_make(sample_shape: tuple[int, ...]) -> bool:
    """Tells whether these networks make samples of that shape."""
    if len(sample_shape) != 3:
        return False
    height, width, channels = sample_shape
    return height == width and height in _DEFAULT_WIDTHS and channels in (1, 3)


def build_generator(
    *,
    latent_dim: int,
    sample_shape: tuple[int, ...],
    width: int | None = None,
    sync_batch_norm: bool = False,
    num_classes: int | None = None,
) -> keras.Model:
    """Builds latents [B, latent_dim] -> images [B, H, W, C] in [-1, 1].

    Args:
      latent_dim: size of the latent vectors.
      sample_shape: (H, W, C).
      width: channels at the full size: those of all blocks at 32x32, and those
        of the last one at 64x64, where each has half of the one before.
      sync_batch_norm: whether batch statistics are those of the global batch
        instead of each replica's.
      num_classes: the model then takes [latents, labels int32 [B]]; None: it
        knows of no classes.
    """
    latents = keras.Input([latent_dim], name="latents")
    labels = conditional.labels_input() if num_classes else None
    settings: dict[str, Any] = {
        "synchronized": sync_batch_norm,
        "momentum": _MOMENTUM,
        "epsilon": _EPSILON,
    }

    def normalize(x: Tensor) -> Tensor:
        if num_classes is None:
            return layers.BatchNormalization(**settings)(x)
        return conditional.ConditionalBatchNormalization(
            num_classes, **settings
        )(x, labels=labels)

    def block(x: Tensor, filters: int) -> Tensor:
        y = keras.layers.ReLU()(normalize(x))
        y = _conv(filters, 3)(keras.layers.UpSampling2D(2)(y))
        y = keras.layers.ReLU()(normalize(y))
        y = _conv(filters, 3)(y)
        shortcut = keras.layers.UpSampling2D(2)(_conv(filters, 1)(x))
        return keras.layers.Add()([y, shortcut])

    channels = _generator_channels(sample_shape[0], width)
    x = keras.layers.Dense(
        _SMALLEST_SIDE**2 * channels[0], kernel_initializer=_glorot()
    )(latents)
    x = keras.layers.Reshape([_SMALLEST_SIDE, _SMALLEST_SIDE, channels[0]])(x)
    for filters in channels[1:]:
        x = block(x, filters)
    # The last one knows of no classes in the authors' code, too.
    x = keras.layers.ReLU()(layers.BatchNormalization(**settings)(x))
    x = _conv(sample_shape[-1], 3, gain=1.0)(x)
    # In mixed precision, what leaves the network is float32.
    images = keras.layers.Activation("tanh", dtype="float32")(x)
    inputs = latents if labels is None else [latents, labels]
    return keras.Model(inputs, images, name="generator")


def build_discriminator(
    *,
    sample_shape: tuple[int, ...],
    width: int | None = None,
    sync_batch_norm: bool = False,
    num_classes: int | None = None,
) -> keras.Model:
    """Builds images [B, H, W, C] in [-1, 1] -> logits [B, 1].

    Args:
      sample_shape: (H, W, C).
      width: of the generator.
      sync_batch_norm: of no effect, as there is no batch norm in it.
      num_classes: the model then takes [images, labels int32 [B]].
    """
    images = keras.Input(sample_shape, name="samples")
    channels = _discriminator_channels(sample_shape[0], width)
    x = _first_block(images, channels[0])
    for index, filters in enumerate(channels[1:]):
        # At 32x32, the last two keep the size.
        halves = sample_shape[0] > 32 or index == 0
        x = _block(x, filters, halves=halves)
    x = GlobalSumPooling2D()(keras.layers.ReLU()(x))
    if num_classes is None:
        logits = SpectralDense(1, dtype="float32")(x)
        return keras.Model(images, logits, name="discriminator")
    labels = conditional.labels_input()
    logits = conditional.Projection(num_classes, dense=SpectralDense)(
        x, labels=labels
    )
    return keras.Model([images, labels], logits, name="discriminator")


class GlobalSumPooling2D(keras.layers.Layer):
    """Sums over height and width, in float32: [B, H, W, C] to [B, C]."""

    def __init__(self, **kwargs: Any) -> None:
        """Makes the layer."""
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(inputs, axis=[1, 2])

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (input_shape[0], input_shape[-1])


def _first_block(images: Tensor, filters: int) -> Tensor:
    """One that begins with a convolution, as its inputs are images."""
    y = _spectral_conv(filters, 3)(images)
    y = _spectral_conv(filters, 3)(keras.layers.ReLU()(y))
    y = keras.layers.AveragePooling2D(2)(y)
    shortcut = keras.layers.AveragePooling2D(2)(images)
    shortcut = _spectral_conv(filters, 1)(shortcut)
    return keras.layers.Add()([y, shortcut])


def _block(x: Tensor, filters: int, *, halves: bool) -> Tensor:
    y = _spectral_conv(x.shape[-1], 3)(keras.layers.ReLU()(x))
    y = _spectral_conv(filters, 3)(keras.layers.ReLU()(y))
    shortcut = x
    if halves:
        y = keras.layers.AveragePooling2D(2)(y)
        shortcut = keras.layers.AveragePooling2D(2)(shortcut)
        shortcut = _spectral_conv(filters, 1)(shortcut)
    return keras.layers.Add()([y, shortcut])


def _generator_channels(side: int, width: int | None) -> list[int]:
    """Returns the channels at 4x4 and after each block."""
    width = width or _DEFAULT_WIDTHS[side]
    num_blocks = int(math.log2(side // _SMALLEST_SIDE))
    if side == 32:
        return [width] * (num_blocks + 1)
    return [width * 2**stage for stage in reversed(range(num_blocks + 1))]


def _discriminator_channels(side: int, width: int | None) -> list[int]:
    """Returns the channels after each block."""
    if side == 32:
        # Half of the generator's, as in the paper.
        return [(width or _DEFAULT_WIDTHS[side]) // 2] * 4
    return _generator_channels(side, width)[::-1]


def _conv(
    filters: int, kernel_size: int, gain: float | None = None
) -> keras.layers.Layer:
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        padding="same",
        kernel_initializer=_glorot(gain or _gain(kernel_size)),
    )


def _spectral_conv(filters: int, kernel_size: int) -> keras.layers.Layer:
    return SpectralConv2D(
        filters, kernel_size, kernel_initializer=_glorot(_gain(kernel_size))
    )


def _gain(kernel_size: int) -> float:
    """Returns that of a block's convolution; shortcuts are 1x1."""
    return 1.0 if kernel_size == 1 else math.sqrt(2.0)


def _glorot(gain: float = 1.0) -> keras.initializers.Initializer:
    return keras.initializers.VarianceScaling(gain**2, "fan_avg", "uniform")
