"""From images of any size to samples of one size."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from trainer.data.array_dataset import ArrayDataset, aligned_empty

_ROWS_PER_CALL = 1024


def fit(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Stretches to the size; the aspect ratio changes."""
    return _scale(image, height, width)


def crop(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Scales until the size is covered, and takes the middle."""
    rows, columns = tf.shape(image)[-3], tf.shape(image)[-2]
    # The largest part of the right aspect ratio, in whole pixels.
    taken_rows = tf.clip_by_value(_ratio(columns * height, width), 1, rows)
    taken_columns = tf.clip_by_value(_ratio(rows * width, height), 1, columns)
    top = (rows - taken_rows) // 2
    left = (columns - taken_columns) // 2
    part = image[..., top : top + taken_rows, left : left + taken_columns, :]
    return _scale(part, height, width)


def pad(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Scales until it fits into the size, and fills up with black."""
    rows, columns = tf.shape(image)[-3], tf.shape(image)[-2]
    own_height = tf.clip_by_value(_ratio(rows * width, columns), 1, height)
    own_width = tf.clip_by_value(_ratio(columns * height, rows), 1, width)
    scaled = _scale(image, own_height, own_width)
    missing_rows, missing_columns = height - own_height, width - own_width
    padding = [[0, 0]] * (len(image.shape) - 3) + [
        [missing_rows // 2, missing_rows - missing_rows // 2],
        [missing_columns // 2, missing_columns - missing_columns // 2],
        [0, 0],
    ]
    return tf.pad(scaled, padding)


# To add a way, add a function and a line.
RESIZERS: dict[str, Callable[[tf.Tensor, int, int], tf.Tensor]] = {
    "fit": fit,
    "crop": crop,
    "pad": pad,
}


def resize(image: tf.Tensor, *, height: int, width: int, how: str) -> tf.Tensor:
    """Brings uint8 images [..., h, w, C] to [..., height, width, C].

    Images of that size already come back as they are, to the last bit.

    Args:
      image: one image or a batch of images of one size.
      height: of the result.
      width: of the result.
      how: a key of `RESIZERS`.
    """
    same_size = tf.logical_and(
        tf.equal(tf.shape(image)[-3], height),
        tf.equal(tf.shape(image)[-2], width),
    )
    resized = tf.cond(
        same_size,
        lambda: image,
        lambda: RESIZERS[how](image, height, width),
    )
    return tf.ensure_shape(
        resized, [*image.shape[:-3], height, width, image.shape[-1]]
    )


def set_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Makes images [..., C] grey or coloured; transparency is dropped.

    Args:
      image: C is static: 1, 3 or 4.
      channels: 1 or 3.
    """
    image = image[..., :3]
    if image.shape[-1] == channels:
        return image
    if channels == 1:
        return tf.image.rgb_to_grayscale(image)
    return tf.repeat(image, 3, axis=-1)


def resize_arrays(
    dataset: ArrayDataset, sample_shape: tuple[int, int, int], *, how: str
) -> ArrayDataset:
    """Brings the samples of a data set in memory to another shape.

    Args:
      dataset: of samples [N, h, w, 1 or 3].
      sample_shape: (H, W, C) of the result.
      how: a key of `RESIZERS`.
    """
    height, width, channels = sample_shape
    samples = aligned_empty((len(dataset.samples), *sample_shape))
    with tf.device("CPU:0"):
        for start in range(0, len(samples), _ROWS_PER_CALL):
            rows = tf.constant(dataset.samples[start : start + _ROWS_PER_CALL])
            samples[start : start + len(rows)] = resize(
                set_channels(rows, channels),
                height=height,
                width=width,
                how=how,
            ).numpy()
    return dataclasses.replace(
        dataset, samples=samples, source_digest=dataset.digest()
    )


def _scale(
    image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor
) -> tf.Tensor:
    """Scales images [..., h, w, C], bicubic and antialiased.

    Without antialiasing, most of a large image would never be looked at. The
    result is that of `tf.image.resize`, to the last bit, but sooner: its op
    goes through rows several values at a time, and through columns one by one.
    So columns become rows for their turn.
    """
    shape = tf.shape(image)
    rows, columns, channels = shape[-3], shape[-2], image.shape[-1]
    scaled = _scale_rows(
        tf.reshape(image, [-1, rows, 1, columns * channels]), height
    )
    scaled = tf.reshape(scaled, [-1, height, columns, channels])
    scaled = tf.transpose(scaled, [0, 2, 1, 3])
    scaled = _scale_rows(
        tf.reshape(scaled, [-1, columns, 1, height * channels]), width
    )
    scaled = tf.reshape(scaled, [-1, width, height, channels])
    scaled = tf.transpose(scaled, [0, 2, 1, 3])
    # Bicubic interpolation overshoots.
    scaled = tf.cast(tf.clip_by_value(tf.round(scaled), 0, 255), tf.uint8)
    end = tf.stack([height, width, channels])
    return tf.reshape(scaled, tf.concat([shape[:-3], end], axis=0))


def _scale_rows(images: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """Scales [B, h, 1, n] to float32 [B, size, 1, n]."""
    ratio = tf.cast(size, tf.float32) / tf.cast(tf.shape(images)[1], tf.float32)
    return tf.raw_ops.ScaleAndTranslate(
        images=images,
        size=tf.stack([size, 1]),
        scale=tf.stack([ratio, 1.0]),
        translation=[0.0, 0.0],
        kernel_type="keyscubic",
        antialias=True,
    )


def _ratio(numerator: tf.Tensor, denominator: int | tf.Tensor) -> tf.Tensor:
    """Divides integers and rounds to the nearest."""
    return (2 * numerator + denominator) // (2 * denominator)
