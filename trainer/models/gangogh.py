"""GANGogh, which paints: for images of 32 to 128 pixels a side.

Jones and Bonafilia, "GANGogh: creating art with GANs" (2017), after their code:
a DCGAN whose generator has gates in place of ReLU, as PixelCNN has them (van
den Oord et al., arXiv:1606.05328, equation 4): tanh(x + V l) * sigmoid(x + U l)
for a label l, with V and U of a number for each class, channel and pixel. The
discriminator has layer norm in place of batch norm, as the gradient penalty
wants it. The label is joined with the latents, too. A width of 64 at 64x64
with 14 classes is theirs; other sizes keep the four doublings.

It is an ACGAN: the discriminator also names the class, and both networks are
rewarded for its being right. Two things differ: the latents have the size that
the user gives, where theirs is 128; and the halves of a gate's channels follow
each other, where theirs alternate, which names them otherwise.

They train by --loss=wasserstein --penalty=wgan_gp --num_discriminator_steps=5,
with learning rates of 1e-4 and beta_1 of 0.5, beta_2 of 0.9.
"""

import math

import keras

from trainer.models import conditional, layers

_NUM_STAGES = 4
_MIN_SIDE, _MAX_SIDE = 32, 128
_DEFAULT_WIDTH = 64
_LEAKY_SLOPE = 0.2
_STDDEV = 0.02
_MOMENTUM = 0.9
# Theirs, of both kinds of norms.
_EPSILON = 1e-5


def can_make(sample_shape: tuple[int, ...]) -> bool:
    """Tells whether these networks make samples of that shape."""
    if len(sample_shape) != 3:
        return False
    *sides, channels = sample_shape
    sides_fit = all(
        _MIN_SIDE <= side <= _MAX_SIDE and side % 2**_NUM_STAGES == 0
        for side in sides
    )
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
      width: channels behind the last gate.
      sync_batch_norm: whether batch statistics are those of the global batch
        instead of each replica's.
      num_classes: with it, labels int32 [B] are a second input.
    """
    inputs = [keras.Input([latent_dim])]
    outputs, rows = inputs[0], None
    if num_classes is not None:
        inputs.append(conditional.labels_input())
        rows = conditional.OneHot(num_classes)(inputs[1])
        outputs = keras.layers.Concatenate()([outputs, rows])
    # Behind each gate; before it there are twice as many.
    first, *others = _channels(width)[::-1]
    shape = [side // 2**_NUM_STAGES for side in sample_shape[:2]]
    # Batch norm would take its bias away.
    outputs = keras.layers.Dense(
        math.prod(shape) * 2 * first,
        use_bias=False,
        kernel_initializer=_uniform(),
    )(outputs)
    outputs = keras.layers.Reshape([*shape, 2 * first])(outputs)
    outputs = _normalize_and_gate(
        outputs, rows, sync_batch_norm, has_bias=False
    )
    for channels in others:
        outputs = _upsample(2 * channels, use_bias=False)(outputs)
        outputs = _normalize_and_gate(outputs, rows, sync_batch_norm)
    outputs = _upsample(sample_shape[-1], use_bias=True)(outputs)
    # In mixed precision, what leaves the network is float32.
    outputs = keras.layers.Activation("tanh", dtype="float32")(outputs)
    return keras.Model(_one_or_both(inputs), outputs, name="generator")


def build_discriminator(
    *,
    sample_shape: tuple[int, ...],
    width: int | None = None,
    sync_batch_norm: bool = False,
    num_classes: int | None = None,
) -> keras.Model:
    """Builds images [B, H, W, C] in [-1, 1] -> logits [B, 1].

    With classes, beside each logit there is log p(label | image): [B, 2].

    Args:
      sample_shape: (H, W, C).
      width: channels of the first layer.
      sync_batch_norm: of no effect, as there is no batch norm in it.
      num_classes: with it, labels int32 [B] are a second input.
    """
    inputs = [keras.Input(sample_shape)]
    outputs = inputs[0]
    for stage, channels in enumerate(_channels(width)):
        outputs = keras.layers.Conv2D(
            channels,
            5,
            strides=2,
            padding="same",
            kernel_initializer=_uniform(),
        )(outputs)
        if stage > 0:
            # Layer norm over all pixels, with a scale for each channel.
            outputs = keras.layers.GroupNormalization(
                groups=1, epsilon=_EPSILON
            )(outputs)
        outputs = keras.layers.LeakyReLU(_LEAKY_SLOPE)(outputs)
    outputs = keras.layers.Flatten()(outputs)
    if num_classes is None:
        last = keras.layers.Dense(
            1, kernel_initializer=_uniform(), dtype="float32"
        )
        outputs = last(outputs)
    else:
        inputs.append(conditional.labels_input())
        outputs = conditional.AuxiliaryClassifier(
            num_classes, kernel_initializer=_uniform()
        )(outputs, labels=inputs[1])
    return keras.Model(_one_or_both(inputs), outputs, name="discriminator")


def _channels(width: int | None) -> list[int]:
    """Returns the channels from the largest to the smallest size."""
    return [
        (width or _DEFAULT_WIDTH) * 2**stage for stage in range(_NUM_STAGES)
    ]


def _normalize_and_gate(
    inputs: keras.KerasTensor,
    rows: keras.KerasTensor | None,
    synchronized: bool,
    *,
    has_bias: bool = True,
) -> keras.KerasTensor:
    """Normalizes [B, h, w, 2 c], and multiplies its halves to [B, h, w, c].

    Args:
      inputs: the channels of the gate before the others.
      rows: of the labels, one-hot [B, K]; None: without classes.
      synchronized: see `layers.BatchNormalization`.
      has_bias: of what comes from the labels.
    """
    outputs = layers.BatchNormalization(
        synchronized=synchronized, momentum=_MOMENTUM, epsilon=_EPSILON
    )(inputs)
    if rows is not None:
        shape = inputs.shape[1:]
        shifts = keras.layers.Dense(
            math.prod(shape), use_bias=has_bias, kernel_initializer=_uniform()
        )(rows)
        outputs = keras.layers.Add()(
            [outputs, keras.layers.Reshape(shape)(shifts)]
        )
    return layers.Gate()(outputs)


def _upsample(filters: int, *, use_bias: bool) -> keras.layers.Layer:
    return keras.layers.Conv2DTranspose(
        filters,
        5,
        strides=2,
        padding="same",
        use_bias=use_bias,
        kernel_initializer=_uniform(),
    )


def _one_or_both(
    inputs: list[keras.KerasTensor],
) -> keras.KerasTensor | list[keras.KerasTensor]:
    return inputs if len(inputs) > 1 else inputs[0]


def _uniform() -> keras.initializers.Initializer:
    limit = math.sqrt(3.0) * _STDDEV
    return keras.initializers.RandomUniform(-limit, limit)
