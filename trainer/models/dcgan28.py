"""The DCGAN of TensorFlow's tutorial, for 28x28 grey images.

After Radford, Metz and Chintala, "Unsupervised representation learning with
deep convolutional generative adversarial networks" (arXiv:1511.06434), in the
form of the tutorial: 5x5 kernels, batch norm in the generator only, dropout in
the discriminator, Keras' initializers.
"""

import keras

from trainer.models import layers

# Keras' default in the tutorial's days and today; written out because the
# networks are fixed by it.
_LEAKY_SLOPE = 0.3
_SAMPLE_SHAPE = (28, 28, 1)


def can_make(sample_shape: tuple[int, ...]) -> bool:
    """Tells whether these networks make samples of that shape."""
    return sample_shape == _SAMPLE_SHAPE


def build_generator(
    *,
    latent_dim: int,
    sample_shape: tuple[int, ...] = _SAMPLE_SHAPE,
    width: None = None,
    sync_batch_norm: bool = False,
) -> keras.Model:
    """Builds latents [B, latent_dim] -> images [B, 28, 28, 1] in [-1, 1].

    Args:
      latent_dim: size of the latent vectors.
      sample_shape: (28, 28, 1).
      width: the tutorial's networks have one.
      sync_batch_norm: whether batch statistics are those of the global batch
        instead of each replica's.
    """

    def normalize() -> keras.layers.Layer:
        return layers.BatchNormalization(synchronized=sync_batch_norm)

    def upsample(filters: int, strides: int) -> keras.layers.Layer:
        return keras.layers.Conv2DTranspose(
            filters, 5, strides=strides, padding="same", use_bias=False
        )

    return keras.Sequential(
        [
            keras.Input([latent_dim]),
            keras.layers.Dense(7 * 7 * 256, use_bias=False),
            normalize(),
            keras.layers.LeakyReLU(_LEAKY_SLOPE),
            keras.layers.Reshape([7, 7, 256]),
            upsample(128, strides=1),  # [B, 7, 7, 128]
            normalize(),
            keras.layers.LeakyReLU(_LEAKY_SLOPE),
            upsample(64, strides=2),  # [B, 14, 14, 64]
            normalize(),
            keras.layers.LeakyReLU(_LEAKY_SLOPE),
            upsample(1, strides=2),  # [B, 28, 28, 1]
            # In mixed precision, what leaves the network is float32.
            keras.layers.Activation("tanh", dtype="float32"),
        ],
        name="generator",
    )


def build_discriminator(
    *,
    sample_shape: tuple[int, ...] = _SAMPLE_SHAPE,
    width: None = None,
    sync_batch_norm: bool = False,
    dropout_rate: float = 0.3,
) -> keras.Model:
    """Builds images [B, 28, 28, 1] in [-1, 1] -> logits [B, 1].

    Args:
      sample_shape: (28, 28, 1).
      width: the tutorial's networks have one.
      sync_batch_norm: of no effect, as there is no batch norm in it.
      dropout_rate: share of zeroed units.
    """

    def downsample(filters: int) -> list[keras.layers.Layer]:
        return [
            keras.layers.Conv2D(filters, 5, strides=2, padding="same"),
            keras.layers.LeakyReLU(_LEAKY_SLOPE),
            layers.Dropout(dropout_rate),
        ]

    return keras.Sequential(
        [
            keras.Input([28, 28, 1]),
            *downsample(64),  # [B, 14, 14, 64]
            *downsample(128),  # [B, 7, 7, 128]
            keras.layers.Flatten(),
            keras.layers.Dense(1, dtype="float32"),
        ],
        name="discriminator",
    )
