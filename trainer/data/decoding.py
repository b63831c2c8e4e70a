"""Encoded images to samples, by the decoder of each format.

One function for all: what is decoded into memory, while training streams, or
again after an error is the same to the last bit.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer.data import geometry, headers

# A JPEG file decodes to 1/4 or 1/8 of its size several times faster; what is
# left is still at least as large as the sample.
_SHRINKING = (1, 2, 4, 8)


def _jpeg(ratio: int) -> Callable[[tf.Tensor, int], tf.Tensor]:
    def decode(content: tf.Tensor, channels: int) -> tf.Tensor:
        return tf.io.decode_jpeg(
            content,
            channels=channels,
            ratio=ratio,
            # The default may be another on another machine.
            dct_method="INTEGER_ACCURATE",
        )

    return decode


def _png(content: tf.Tensor, channels: int) -> tf.Tensor:
    return tf.io.decode_png(content, channels=channels)


def _gif(content: tf.Tensor, channels: int) -> tf.Tensor:
    # The first image only; decode_gif would decode all of them.
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    return geometry.set_channels(
        tf.ensure_shape(image, [None, None, 3]), channels
    )


def _bmp(content: tf.Tensor, channels: int) -> tf.Tensor:
    image = tf.io.decode_bmp(content)
    # How many channels there are is known only now, and conversions need to
    # know it beforehand.
    image = image[..., :3]
    coloured = tf.broadcast_to(
        image, tf.concat([tf.shape(image)[:-1], [3]], axis=0)
    )
    return geometry.set_channels(coloured, channels)


def _webp(content: tf.Tensor, channels: int) -> tf.Tensor:
    # [frames, H, W, C]; animations do not come here.
    images = tf.io.decode_webp(content, channels=3)
    return geometry.set_channels(
        tf.ensure_shape(images[0], [None, None, 3]), channels
    )


# By the numbers that `choose` gives.
_DECODERS = (*map(_jpeg, _SHRINKING), _png, _gif, _bmp, _webp)
_FIRST_DECODER = {
    "JPEG": 0,
    "PNG": 4,
    "GIF": 5,
    "BMP": 6,
    "WEBP": 7,
}


# For each orientation: whether rows and columns change places, and then along
# which axes the pixels are reversed.
_TURNS: dict[int, tuple[bool, list[int]]] = {
    1: (False, []),
    2: (False, [1]),
    3: (False, [0, 1]),
    4: (False, [0]),
    5: (True, []),
    6: (True, [1]),
    7: (True, [0, 1]),
    8: (True, [0]),
}


def _turn(image: tf.Tensor, orientation: int) -> tf.Tensor:
    """Turns pixels [h, w, C] as `headers.Header.orientation` asks."""
    is_lying, reversed_axes = _TURNS[orientation]
    if is_lying:
        image = tf.transpose(image, [1, 0, 2])
    return tf.reverse(image, reversed_axes) if reversed_axes else image


def choose(
    formats: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    orientations: np.ndarray,
    *,
    sample_shape: tuple[int, ...],
) -> np.ndarray:
    """Returns the number of the decoder for each image, int32 [N].

    Args:
      formats: [N], as indices into `headers.FORMATS`.
      heights: [N], from the headers.
      widths: [N].
      orientations: [N].
      sample_shape: (H, W, C) that the images will be resized to.
    """
    first = np.array([_FIRST_DECODER[name] for name in headers.FORMATS])
    decoders = first[formats]
    spare = np.minimum(heights // sample_shape[0], widths // sample_shape[1])
    shrinking = sum((spare >= ratio).astype(int) for ratio in _SHRINKING[1:])
    is_jpeg = formats == headers.FORMATS.index("JPEG")
    decoders = np.where(is_jpeg, decoders + shrinking, decoders)
    turns = orientations.astype(np.int32) - headers.UPRIGHT
    return (decoders + len(_DECODERS) * turns).astype(np.int32)


def common_size(
    heights: np.ndarray, widths: np.ndarray, choices: np.ndarray
) -> tuple[int, int] | None:
    """Returns the size that all images decode to, before they are resized.

    Args:
      heights: [N], from the headers.
      widths: [N].
      choices: [N], from `choose`.

    Returns:
      (height, width); None if there are several.
    """
    decoders = choices % len(_DECODERS)
    sizes = np.unique(np.stack([heights, widths, decoders], axis=1), axis=0)
    if len(sizes) > 1:
        return None
    height, width, decoder = sizes[0].tolist()
    ratio = _SHRINKING[decoder] if decoder < len(_SHRINKING) else 1
    return -(-height // ratio), -(-width // ratio)


def decode(
    content: tf.Tensor,
    choice: tf.Tensor,
    *,
    choices: tuple[int, ...],
    channels: int,
) -> tf.Tensor:
    """Decodes one image, the right way up; for graphs and eager calls.

    Args:
      content: scalar string, an encoded image.
      choice: scalar int32, which of `choices` to take.
      choices: numbers from `choose`, all that occur in the data set.
      channels: C of the result, 1 or 3.

    Returns:
      uint8 [h, w, C], its own size or, if it is a JPEG file, a part of that.

    Raises:
      tf.errors.InvalidArgumentError: the image is damaged.
    """

    def decode_and_turn(number: int) -> tf.Tensor:
        turns, decoder = divmod(number, len(_DECODERS))
        image = _DECODERS[decoder](content, channels)
        return _turn(image, headers.UPRIGHT + turns)

    branches = [
        functools.partial(decode_and_turn, number) for number in choices
    ]
    if len(branches) == 1:
        image = branches[0]()
    else:
        image = tf.switch_case(choice, branches)
    return tf.ensure_shape(image, [None, None, channels])
