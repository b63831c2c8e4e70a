"""Bilinear resampling by 2, as StyleGAN and its successors do it.

Karras et al., "StyleGAN2" (arXiv:1912.04958), whose code filters with the
kernel [1, 3, 3, 1] along both sides, and takes what is beyond the borders for
zeros. In the form of sums of shifted pictures, which have second derivatives in
any type on any device.
"""

import keras
import tensorflow as tf

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable("trainer")
class Upsampling2D(keras.layers.Layer):
    """Doubles both sides: [B, H, W, C] to [B, 2H, 2W, C]."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return _double(_double(inputs, axis=1), axis=2)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, channels = input_shape
        return (batch, 2 * (height or 0), 2 * (width or 0), channels)


@keras.saving.register_keras_serializable("trainer")
class Downsampling2D(keras.layers.Layer):
    """Halves both sides, which are even: [B, H, W, C] to [B, H/2, W/2, C]."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return _halve(_halve(inputs, axis=1), axis=2)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, channels = input_shape
        return (batch, (height or 0) // 2, (width or 0) // 2, channels)


def _double(images: tf.Tensor, axis: int) -> tf.Tensor:
    near = 0.75 * images
    first = near + 0.25 * _shifted(images, axis, by=1)
    second = near + 0.25 * _shifted(images, axis, by=-1)
    shape = list(images.shape)
    shape[axis] *= 2
    shape[0] = -1
    return tf.reshape(tf.stack([first, second], axis + 1), shape)


def _halve(images: tf.Tensor, axis: int) -> tf.Tensor:
    shape = list(images.shape)
    shape[axis : axis + 1] = [shape[axis] // 2, 2]
    shape[0] = -1
    even, odd = tf.unstack(tf.reshape(images, shape), axis=axis + 1)
    far = _shifted(odd, axis, by=1) + _shifted(even, axis, by=-1)
    return 0.375 * (even + odd) + 0.125 * far


def _shifted(images: tf.Tensor, axis: int, *, by: int) -> tf.Tensor:
    """Moves what is at i to i + by, 1 or -1, with a zero at the border.

    By indexing: compiled by XLA, the gradient of tf.slice has no gradient.
    """
    paddings = [[0, 0] for _ in images.shape]
    paddings[axis] = [1, 0] if by == 1 else [0, 1]
    kept = [slice(None) for _ in images.shape]
    kept[axis] = slice(None, -1) if by == 1 else slice(1, None)
    return tf.pad(images[tuple(kept)], paddings)
