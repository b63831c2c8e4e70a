"""The DCGAN of the paper, for images of 16 to 256 pixels a side.

Radford, Metz and Chintala, "Unsupervised representation learning with deep
convolutional generative adversarial networks" (arXiv:1511.06434), figure 1 and
section 3: 5x5 kernels of stride 2 and no pooling, batch norm everywhere but at
the images, ReLU in the generator and LeakyReLU in the discriminator, all
weights from N(0, 0.02). The scales of batch norm start from N(1, 0.02), as in
the authors' code; there are no biases beside those of batch norm.

The paper has four stages from 4x4 to 64x64. Here there are as many as halve the
shorter side down to 4 to 7 pixels; odd sizes round up, as strides do. Latents
are normal instead of uniform, like those of every model here.

With classes, the generator's batch norm is conditional and the discriminator
ends in a projection, both as in Miyato and Koyama (arXiv:1802.05637). The
paper's own conditional network, for MNIST in the authors' code, joins the label
with every layer instead.
"""

import math

import keras

from trainer.models import conditional, layers

_KERNEL_SIZE = 5
_MIN_SIDE, _MAX_SIDE = 16, 256
_SMALLEST_SIDE = 4
# In the paper, 1024 channels at 4x4 for a width of 128; more stages than its
# four would otherwise have most of the weights at the smallest sizes.
_MAX_FACTOR = 8
_DEFAULT_WIDTH = 64
_LEAKY_SLOPE = 0.2
_STDDEV = 0.02
# The moving statistics, of which the samples are made, follow within tens of
# steps.
_MOMENTUM = 0.9


def can_make(sample_shape: tuple[int, ...]) -> bool:
    """Tells whether these networks make samples of that shape."""
    if len(sample_shape) != 3:
        return False
    height, width, channels = sample_shape
    sides_fit = all(_MIN_SIDE <= side <= _MAX_SIDE for side in (height, width))
    return sides_fit and channels in (1, 3)


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
      width: channels at the full size, if there were any but the image's.
      sync_batch_norm: whether batch statistics are those of the global batch
        instead of each replica's.
      num_classes: with it, labels int32 [B] are a second input.
    """
    sizes = _sizes(sample_shape)
    channels = _channels(len(sizes), width)
    first_units = math.prod(sizes[-1]) * channels[-1]
    network = [
        keras.layers.Dense(
            first_units, use_bias=False, kernel_initializer=_normal(0.0)
        ),
        _batch_norm(sync_batch_norm, num_classes),
        keras.layers.ReLU(),
        keras.layers.Reshape([*sizes[-1], channels[-1]]),
    ]
    for stage in reversed(range(1, len(sizes) - 1)):
        network += [
            _upsample(channels[stage], sizes[stage + 1], sizes[stage]),
            _batch_norm(sync_batch_norm, num_classes),
            keras.layers.ReLU(),
        ]
    network += [
        _upsample(sample_shape[-1], sizes[1], sizes[0]),
        # In mixed precision, what leaves the network is float32.
        keras.layers.Activation("tanh", dtype="float32"),
    ]
    latents = keras.Input([latent_dim])
    return _model("generator", latents, network, num_classes)


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
      width: channels of the first layer.
      sync_batch_norm: as in the generator.
      num_classes: the same.
    """
    channels = _channels(len(_sizes(sample_shape)), width)
    network = []
    for stage, filters in enumerate(channels[1:], start=1):
        network.append(
            keras.layers.Conv2D(
                filters,
                _KERNEL_SIZE,
                strides=2,
                padding="same",
                use_bias=False,
                kernel_initializer=_normal(0.0),
            )
        )
        if stage > 1:
            network.append(_batch_norm(sync_batch_norm))
        network.append(keras.layers.LeakyReLU(_LEAKY_SLOPE))
    network += [keras.layers.Flatten(), _last_layer(num_classes)]
    images = keras.Input(sample_shape)
    return _model("discriminator", images, network, num_classes)


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


def _last_layer(num_classes: int | None) -> keras.layers.Layer:
    if num_classes is None:
        return keras.layers.Dense(
            1,
            use_bias=False,
            kernel_initializer=_normal(0.0),
            dtype="float32",
        )
    return conditional.Projection(
        num_classes, use_bias=False, kernel_initializer=_normal(0.0)
    )


def _sizes(sample_shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns (height, width) at the full size and after each halving."""
    sizes = [(sample_shape[0], sample_shape[1])]
    num_stages = int(math.log2(min(sizes[0]) / _SMALLEST_SIDE))
    for _ in range(num_stages):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


def _channels(num_sizes: int, width: int | None) -> list[int]:
    """Returns the channels at each size; the first entry is of no use."""
    width = width or _DEFAULT_WIDTH
    factors = [min(2**stage, _MAX_FACTOR) for stage in range(num_sizes - 1)]
    return [0, *(width * factor for factor in factors)]


def _upsample(
    filters: int, from_size: tuple[int, int], to_size: tuple[int, int]
) -> keras.layers.Layer:
    return keras.layers.Conv2DTranspose(
        filters,
        _KERNEL_SIZE,
        strides=2,
        padding="same",
        # 1 doubles a side, 0 doubles it less one pixel.
        output_padding=tuple(
            large - (2 * small - 1)
            for small, large in zip(from_size, to_size, strict=True)
        ),
        use_bias=False,
        kernel_initializer=_normal(0.0),
    )


def _batch_norm(
    synchronized: bool, num_classes: int | None = None
) -> keras.layers.Layer:
    settings = {
        "synchronized": synchronized,
        "momentum": _MOMENTUM,
        "gamma_initializer": _normal(1.0),
    }
    if num_classes is None:
        return layers.BatchNormalization(**settings)
    return conditional.ConditionalBatchNormalization(num_classes, **settings)


def _normal(mean: float) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(mean, _STDDEV)
