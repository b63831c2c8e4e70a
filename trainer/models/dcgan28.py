"""The DCGAN of TensorFlow's tutorial, for 28x28 grey images.

After Radford, Metz and Chintala, "Unsupervised representation learning with
deep convolutional generative adversarial networks" (arXiv:1511.06434), in the
form of the tutorial: 5x5 kernels, batch norm in the generator only, dropout in
the discriminator, Keras' initializers.

With classes, both networks get the label as an input: Mirza and Osindero,
"Conditional generative adversarial nets" (arXiv:1411.1784), section 3.2. The
generator's is an embedding joined with the latents; the discriminator's is a
map of the image's size, an embedding too, joined as a second channel. Both
begin as large as what they are joined with, from N(0, 1).
"""

import math

import keras

from trainer.models import conditional, layers

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
    num_classes: int | None = None,
) -> keras.Model:
    """Builds latents [B, latent_dim] -> images [B, 28, 28, 1] in [-1, 1].

    Args:
      latent_dim: size of the latent vectors.
      sample_shape: (28, 28, 1).
      width: the tutorial's networks have one.
      sync_batch_norm: whether batch statistics are those of the global batch
        instead of each replica's.
      num_classes: with it, labels int32 [B] are a second input.
    """

    def normalize() -> keras.layers.Layer:
        return layers.BatchNormalization(synchronized=sync_batch_norm)

    def upsample(filters: int, strides: int) -> keras.layers.Layer:
        return keras.layers.Conv2DTranspose(
            filters, 5, strides=strides, padding="same", use_bias=False
        )

    network = [
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
    ]
    latents = keras.Input([latent_dim])
    return _model("generator", latents, network, num_classes)


def build_discriminator(
    *,
    sample_shape: tuple[int, ...] = _SAMPLE_SHAPE,
    width: None = None,
    sync_batch_norm: bool = False,
    num_classes: int | None = None,
    dropout_rate: float = 0.3,
) -> keras.Model:
    """Builds images [B, 28, 28, 1] in [-1, 1] -> logits [B, 1].

    Args:
      sample_shape: (28, 28, 1).
      width: the tutorial's networks have one.
      sync_batch_norm: of no effect, as there is no batch norm in it.
      num_classes: with it, labels int32 [B] are a second input.
      dropout_rate: share of zeroed units.
    """

    def downsample(filters: int) -> list[keras.layers.Layer]:
        return [
            keras.layers.Conv2D(filters, 5, strides=2, padding="same"),
            keras.layers.LeakyReLU(_LEAKY_SLOPE),
            layers.Dropout(dropout_rate),
        ]

    network = [
        *downsample(64),  # [B, 14, 14, 64]
        *downsample(128),  # [B, 7, 7, 128]
        keras.layers.Flatten(),
        keras.layers.Dense(1, dtype="float32"),
    ]
    images = keras.Input(_SAMPLE_SHAPE)
    return _model("discriminator", images, network, num_classes)


def _model(
    name: str,
    inputs: keras.KerasTensor,
    network: list[keras.layers.Layer],
    num_classes: int | None,
) -> keras.Model:
    """Connects layers, with an embedding of the label if there are classes."""
    if num_classes is None:
        return keras.Sequential([inputs, *network], name=name)
    labels = conditional.labels_input()
    shape = inputs.shape[1:]
    embedding = keras.layers.Dense(
        math.prod(shape),
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(0.0, 1.0),
        name="embedding",
    )(conditional.OneHot(num_classes)(labels))
    embedding = keras.layers.Reshape(shape)(embedding)
    joined = keras.layers.Concatenate()([inputs, embedding])
    outputs = conditional.chain(network, joined, labels)
    return keras.Model([inputs, labels], outputs, name=name)
