"""R3GAN's networks, for square images of 32, 64, 128 or 256 pixels a side.

Huang et al., "The GAN is dead; long live the GAN! A modern GAN baseline"
(arXiv:2501.05441), section 3.3 and appendix, in the form of the authors' code:
residual blocks with grouped convolutions and without any normalization, whose
last convolution starts from zero ("fix-up"), bilinear resampling, and learned
4x4 maps between vectors and images. They are made for --loss=relativistic with
--penalty=r1_r2.

The widths are the authors' for CIFAR-10 at 32x32 and for FFHQ at 64x64 and
256x256; those for 128x128 lie between.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from trainer.models import conditional
from trainer.models.grouped_convolution import GroupedConv2D
from trainer.models.resampling import Downsampling2D, Upsampling2D

Shape = tuple[int | None, ...]
Tensor = Any  # A symbolic one, of a functional model.

_DEFAULT_WIDTHS = {32: 768, 64: 384, 128: 192, 256: 96}
_SMALLEST_SIDE = 4
# Down from this side, all stages have the same width.
_WIDEST_SIDE = 32
_BLOCKS_PER_STAGE = 2
_EXPANSION = 2
_GROUP_SIZE = 16
# A width must be a multiple, for the groups.
WIDTH_MULTIPLE = _GROUP_SIZE // _EXPANSION
_LEAKY_SLOPE = 0.2
# Keeps the variance through such a LeakyReLU.
_LEAKY_GAIN = math.sqrt(2.0 / (1.0 + _LEAKY_SLOPE**2))
# Mixed precision is that of so many stages from the full size on, never that of
# 4x4; the others are float32, as in the authors' code.
_NUM_HALF_STAGES = 4


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
    """Builds latents [B, latent_dim] -> images [B, H, W, C].

    There is no tanh: in training, images may leave [-1, 1]; in use they are
    clipped.

    Args:
      latent_dim: size of the latent vectors, and of the classes' embeddings.
      sample_shape: (H, W, C).
      width: channels at the full size; each halving doubles them, down to
        32x32. A multiple of 8.
      sync_batch_norm: of no effect, as there is no batch norm in it.
      num_classes: the model then takes [latents, labels int32 [B]]; None: it
        knows of no classes.
    """
    stages = _stages(sample_shape[0], width)
    inputs = latents = keras.Input([latent_dim], name="latents")
    x = latents
    if num_classes:
        labels = conditional.labels_input()
        inputs = [latents, labels]
        embedding = _embed(labels, num_classes, latent_dim)
        x = keras.layers.Concatenate(dtype="float32")([latents, embedding])
    channels, dtype = stages[0]
    x = keras.layers.Dense(
        channels, use_bias=False, kernel_initializer=_normal(), dtype=dtype
    )(x)
    x = ToImages(_SMALLEST_SIDE, dtype=dtype)(x)
    for index, (channels, dtype) in enumerate(stages):
        if index > 0:
            if x.shape[-1] != channels:
                x = _conv(channels, dtype=dtype)(x)
            x = Upsampling2D(dtype=dtype)(x)
        x = _blocks(x, dtype, num_stages=len(stages))
    x = _conv(sample_shape[-1], dtype=dtype)(x)
    return keras.Model(inputs, ClipInUse()(x), name="generator")


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
      width: of the generator; this network is its mirror image.
      sync_batch_norm: of no effect, as there is no batch norm in it.
      num_classes: the model then takes [images, labels int32 [B]].
    """
    stages = _stages(sample_shape[0], width)[::-1]
    images = keras.Input(sample_shape, name="samples")
    channels, dtype = stages[0]
    x = _conv(channels, dtype=dtype)(images)
    for index, (_, dtype) in enumerate(stages):
        x = _blocks(x, dtype, num_stages=len(stages))
        if index + 1 < len(stages):
            x = Downsampling2D(dtype=dtype)(x)
            channels = stages[index + 1][0]
            if x.shape[-1] != channels:
                x = _conv(channels, dtype=dtype)(x)
    x = ToVectors(dtype="float32")(x)
    # With classes, as many features as the last stage has channels.
    x = keras.layers.Dense(
        x.shape[-1] if num_classes else 1,
        use_bias=False,
        kernel_initializer=_normal(),
        dtype="float32",
    )(x)
    if num_classes is None:
        return keras.Model(images, x, name="discriminator")
    labels = conditional.labels_input()
    embedding = _embed(
        labels, num_classes, x.shape[-1], gain=1.0 / math.sqrt(x.shape[-1])
    )
    logits = keras.layers.Dot(axes=1, dtype="float32")([x, embedding])
    return keras.Model([images, labels], logits, name="discriminator")


@keras.saving.register_keras_serializable("trainer")
class ToImages(keras.layers.Layer):
    """Learned maps, each scaled by a number: [B, C] to [B, S, S, C]."""

    def __init__(self, side: int, **kwargs: Any) -> None:
        """Makes the layer; `side` is S."""
        super().__init__(**kwargs)
        self.side = side

    def build(self, input_shape: Shape) -> None:
        self.basis = self.add_weight(
            name="basis",
            shape=(self.side, self.side, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(0.0, 1.0),
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs[:, None, None, :] * tf.convert_to_tensor(self.basis)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], self.side, self.side, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "side": self.side}


class ToVectors(keras.layers.Layer):
    """A learned weighted sum over each map: [B, S, S, C] to [B, C]."""

    def build(self, input_shape: Shape) -> None:
        _, height, width, channels = input_shape
        self.basis = self.add_weight(
            name="basis",
            shape=(height, width, channels),
            initializer=keras.initializers.RandomNormal(
                0.0, 1.0 / math.sqrt((height or 1) * (width or 1))
            ),
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(
            inputs * tf.convert_to_tensor(self.basis), axis=[1, 2]
        )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], input_shape[-1])


@keras.saving.register_keras_serializable("trainer")
class ClipInUse(keras.layers.Layer):
    """Brings samples into [-1, 1], but lets them be in training; float32."""

    def __init__(self, **kwargs: Any) -> None:
        """Makes the layer."""
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        return inputs if training else tf.clip_by_value(inputs, -1.0, 1.0)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


def _stages(side: int, width: int | None) -> list[tuple[int, str | None]]:
    """Returns channels and type of each stage from 4x4 on; None: the policy."""
    width = width or _DEFAULT_WIDTHS[side]
    num_stages = int(math.log2(side // _SMALLEST_SIDE)) + 1
    first_half = max(1, num_stages - _NUM_HALF_STAGES)
    return [
        (
            width * (side // max(_WIDEST_SIDE, _SMALLEST_SIDE * 2**stage)),
            "float32" if stage < first_half else None,
        )
        for stage in range(num_stages)
    ]


def _blocks(x: Tensor, dtype: str | None, *, num_stages: int) -> Tensor:
    """A stage's residual blocks, which have three convolutions each."""
    channels = x.shape[-1]
    num_blocks = _BLOCKS_PER_STAGE * num_stages
    # Zhang et al., "Fixup initialization" (arXiv:1901.09321): with m layers in
    # each of L blocks, all but the last are scaled by L^(-1 / (2m - 2)).
    gain = _LEAKY_GAIN * num_blocks ** (-1 / 4)
    for _ in range(_BLOCKS_PER_STAGE):
        y = _conv(channels * _EXPANSION, gain, use_bias=True, dtype=dtype)(x)
        y = keras.layers.LeakyReLU(_LEAKY_SLOPE, dtype=dtype)(y)
        y = GroupedConv2D(
            3,
            group_size=_GROUP_SIZE,
            kernel_initializer=_normal(gain),
            dtype=dtype,
        )(y)
        y = keras.layers.LeakyReLU(_LEAKY_SLOPE, dtype=dtype)(y)
        y = _conv(channels, 0.0, dtype=dtype)(y)
        x = keras.layers.Add(dtype=dtype)([x, y])
    return x


def _conv(
    filters: int,
    gain: float = 1.0,
    *,
    use_bias: bool = False,
    dtype: str | None,
) -> keras.layers.Layer:
    return keras.layers.Conv2D(
        filters,
        1,
        use_bias=use_bias,
        kernel_initializer=_normal(gain),
        dtype=dtype,
    )


def _embed(
    labels: Tensor, num_classes: int, size: int, gain: float = 1.0
) -> Tensor:
    """Returns vectors [B, size] of labels [B]."""
    rows = conditional.OneHot(num_classes)(labels)
    return keras.layers.Dense(
        size, use_bias=False, kernel_initializer=_normal(gain), dtype="float32"
    )(rows)


def _normal(gain: float = 1.0) -> keras.initializers.Initializer:
    """Returns He's initializer: N(0, gain^2 / fan_in)."""
    if gain == 0.0:
        return keras.initializers.Zeros()
    return keras.initializers.VarianceScaling(
        gain**2, "fan_in", "untruncated_normal"
    )
