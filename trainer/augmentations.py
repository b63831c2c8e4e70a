"""Augmentations of what the discriminator sees, real and generated alike.

Because the generator is trained through them, it is not told to make augmented
images, as it would be if only the real ones were changed: Zhao et al.,
"Differentiable augmentation for data-efficient GAN training"
(arXiv:2006.10738), section 3.2. An augmentation is a pure function, may be
differentiated any number of times and compiled by XLA:

  samples: float32 [B, H, W, C], in [-1, 1] before the first one. Nothing is
    clipped, for a clipped value has no gradient.
  draws: random numbers, an example's own by its position in the global batch.
  probability: in [0, 1], a number or a float32 scalar. Each change is made with
    it, independently, on each example: Karras et al., "Training generative
    adversarial networks with limited data" (arXiv:2006.06676), sections 2.2
    and 2.3. The values of Zhao et al. belong to 1, at which their code does the
    same.
  returns: float32 [B, H, W, C].

To add an augmentation, add a function and a line in `AUGMENTATIONS`.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer import errors, randomness

Augmentation = Callable[..., tf.Tensor]

# Of Zhao et al., of the height and the width.
_MAX_TRANSLATION = 0.125
_CUTOUT = 0.5


def flip(
    samples: tf.Tensor,
    *,
    draws: randomness.Draws,
    probability: tf.Tensor | float,
) -> tf.Tensor:
    """Mirrors left and right, half of the examples that it is drawn for.

    As "x-flip" of Karras et al. (arXiv:2006.06676), appendix B: at 1, the
    discriminator cannot tell an image from its mirror image, so that the
    generator may make both.
    """
    is_drawn, is_mirrored = _columns(draws.uniform((samples.shape[0], 2)))
    is_flipped = (is_drawn < probability) & (is_mirrored < 0.5)
    return tf.where(is_flipped, tf.reverse(samples, axis=[2]), samples)


def colour(
    samples: tf.Tensor,
    *,
    draws: randomness.Draws,
    probability: tf.Tensor | float,
) -> tf.Tensor:
    """Changes brightness, saturation and contrast, in that order.

    As "color" of Zhao et al.: adds -0.5 to 0.5; multiplies by 0 to 2 what a
    channel differs from its pixel's mean; by 0.5 to 1.5, what a number differs
    from its image's mean. Grey images have no saturation.
    """
    brightness, saturation, contrast, *drawn = _columns(
        draws.uniform((samples.shape[0], 6))
    )
    is_brightened, is_saturated, is_contrasted = (
        each < probability for each in drawn
    )
    samples += tf.where(is_brightened, brightness - 0.5, 0.0)
    if samples.shape[3] > 1:
        # What is added to a factor of 1, which is then exact.
        change = tf.where(is_saturated, 2.0 * saturation - 1.0, 0.0)
        mean = tf.reduce_mean(samples, axis=3, keepdims=True)
        samples += change * (samples - mean)
    change = tf.where(is_contrasted, contrast - 0.5, 0.0)
    mean = tf.reduce_mean(samples, axis=[1, 2, 3], keepdims=True)
    return samples + change * (samples - mean)


def translate(
    samples: tf.Tensor,
    *,
    draws: randomness.Draws,
    probability: tf.Tensor | float,
) -> tf.Tensor:
    """Moves by up to an eighth of the height and of the width; fills with 0.

    As "translation" of Zhao et al.: by whole pixels, each number of them as
    likely as any other.
    """
    num_examples, height, width, _ = samples.shape
    is_drawn, *units = _columns(draws.uniform((num_examples, 3)))
    rows, columns = (
        tf.where(is_drawn < probability, _whole(unit, -limit, limit), 0)
        for unit, limit in zip(
            units,
            (_part(height, _MAX_TRANSLATION), _part(width, _MAX_TRANSLATION)),
            strict=True,
        )
    )
    return _move(samples, rows[:, 0, 0, 0], columns[:, 0, 0, 0])


def cutout(
    samples: tf.Tensor,
    *,
    draws: randomness.Draws,
    probability: tf.Tensor | float,
) -> tf.Tensor:
    """Sets a rectangle of half the height and half the width to 0.

    As "cutout" of Zhao et al.: the rectangle's middle may be anywhere, so that
    parts of it may be outside. It covers the `size` pixels from
    `middle - size // 2` on; an even size has as many outside on either side at
    most, so that its middle can be one further.
    """
    is_drawn, *units = _columns(draws.uniform((samples.shape[0], 3)))
    is_cut: tf.Tensor = is_drawn < probability
    for unit, axis in zip(units, (1, 2), strict=True):
        length = samples.shape[axis]
        size = _part(length, _CUTOUT)
        first = _whole(unit, 0, length - size % 2) - size // 2
        position = tf.reshape(
            tf.range(length), [-1 if a == axis else 1 for a in range(4)]
        )
        is_cut &= (position >= first) & (position < first + size)
    return tf.where(is_cut, 0.0, samples)


# In the order in which they are made, whichever they are asked for in: that of
# Zhao et al., where what is cut out stays 0.
AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": flip,
    "colour": colour,
    "translate": translate,
    "cutout": cutout,
}


def get(names: str) -> Augmentation | None:
    """Returns all those that are named, with commas between, as one.

    Args:
      names: of `AUGMENTATIONS`, or "none".

    Returns:
      (samples, draws, probability) -> samples, or None for "none".

    Raises:
      UsageError: there is none of a name; the message lists the known ones.
    """
    if names == "none":
        return None
    wanted = names.split(",")
    for name in wanted:
        if name not in AUGMENTATIONS:
            raise errors.UsageError(
                f"--augment={names}: {name or 'an empty name'} is unknown;"
                f" known are {', '.join(AUGMENTATIONS)}, with commas between,"
                " or none."
            )
    return _sequence([f for name, f in AUGMENTATIONS.items() if name in wanted])


def _sequence(functions: Sequence[Augmentation]) -> Augmentation:
    def augment(
        samples: tf.Tensor,
        *,
        draws: randomness.Draws,
        probability: tf.Tensor | float,
    ) -> tf.Tensor:
        if len(samples.shape) != 4:
            raise errors.UsageError(
                "--augment is for images, [B, height, width, channels]; these"
                f" samples are {samples.shape}. Leave it out."
            )
        for function in functions:
            samples = function(samples, draws=draws, probability=probability)
        return samples

    return augment


@tf.custom_gradient
def _move(
    samples: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor
) -> tuple[tf.Tensor, Callable[..., tuple[tf.Tensor, None, None]]]:
    """Moves each example down and right, by numbers of its own.

    The gradient is moved back. TensorFlow's own would scatter, which takes
    longer and, on GPUs, adds up in no fixed order.

    Args:
      samples: [B, H, W, C].
      rows: int32 [B].
      columns: int32 [B].
    """
    num_examples, height, width, channels = samples.shape
    row = tf.range(height) - rows[:, tf.newaxis]
    column = tf.range(width) - columns[:, tf.newaxis]
    is_inside = ((row >= 0) & (row < height))[:, :, tf.newaxis, tf.newaxis] & (
        (column >= 0) & (column < width)
    )[:, tf.newaxis, :, tf.newaxis]
    pixel = (
        width * tf.clip_by_value(row, 0, height - 1)[:, :, tf.newaxis]
        + tf.clip_by_value(column, 0, width - 1)[:, tf.newaxis, :]
    )
    moved = tf.gather(
        tf.reshape(samples, [num_examples, height * width, channels]),
        tf.reshape(pixel, [num_examples, height * width]),
        batch_dims=1,
    )
    moved = tf.where(is_inside, tf.reshape(moved, samples.shape), 0.0)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
        return _move(upstream, -rows, -columns), None, None

    return moved, gradient


def _columns(numbers: tf.Tensor) -> list[tf.Tensor]:
    """Splits [B, n] into n of [B, 1, 1, 1]."""
    return tf.unstack(numbers[:, tf.newaxis, tf.newaxis, tf.newaxis], axis=-1)


def _whole(unit: tf.Tensor, low: int, high: int) -> tf.Tensor:
    """Makes whole numbers from low to high of ones in [0, 1)."""
    # A float32 below 1 times a whole number is below that, rounded, too.
    return low + tf.cast(unit * float(high - low + 1), tf.int32)


def _part(length: int, ratio: float) -> int:
    """Returns the ratio of a length, rounded as Zhao et al. do."""
    return int(length * ratio + 0.5)
