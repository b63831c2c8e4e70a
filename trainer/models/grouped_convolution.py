"""Convolutions whose channels see only those of their own group."""

import functools
from typing import Any

import keras
import tensorflow as tf

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable("trainer")
class GroupedConv2D(keras.layers.Layer):
    """A convolution in groups, with a bias, stride 1 and padding "same".

    As many channels come out as go in. Keras' own layer has the same weights,
    but its gradients fail on CPUs where oneDNN has no kernel for them: in
    float16, on some processors, and with TF_ENABLE_ONEDNN_OPTS=0.
    """

    def __init__(
        self,
        kernel_size: int,
        *,
        group_size: int,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        """Makes the layer.

        Args:
          kernel_size: of both sides.
          group_size: channels of a group, which divides those of the inputs.
          kernel_initializer: of the kernel [K, K, group_size, C].
          **kwargs: of `keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.group_size = group_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Shape) -> None:
        size, channels = self.kernel_size, input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(size, size, self.group_size, channels),
            initializer=self.kernel_initializer,
        )
        self.bias = self.add_weight(
            name="bias", shape=(channels,), initializer="zeros"
        )
        self._has_gradients = has_gradients(self.compute_dtype)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps [B, H, W, C] to [B, H, W, C]."""
        kernel = tf.convert_to_tensor(self.kernel)
        convolve = one_op if self._has_gradients else group_by_group
        return convolve(inputs, kernel) + tf.convert_to_tensor(self.bias)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "group_size": self.group_size,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
        }


def one_op(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves [B, H, W, C] with [K, K, C / groups, C] in one op."""
    return tf.nn.conv2d(inputs, kernel, 1, "SAME")


def group_by_group(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The same with an op for each group, which works everywhere."""
    num_groups = kernel.shape[3] // kernel.shape[2]
    pairs = zip(
        tf.split(inputs, num_groups, axis=-1),
        tf.split(kernel, num_groups, axis=-1),
        strict=True,
    )
    return tf.concat([one_op(part, own) for part, own in pairs], axis=-1)


@functools.cache
def has_gradients(dtype: str) -> bool:
    """Whether grouped convolutions of that type have gradients here.

    It tries, on the device that TensorFlow takes by itself: that depends on the
    processor, on the build and on environment variables.
    """
    # Without a tape, which an init_scope would pause.
    with tf.init_scope():
        images = tf.ones([1, 4, 4, 4], dtype)
        kernel = tf.ones([3, 3, 2, 4], dtype)
        settings = {"strides": [1, 1, 1, 1], "padding": "SAME"}
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=images.shape,
                filter=kernel,
                out_backprop=images,
                **settings,
            )
            tf.raw_ops.Conv2DBackpropFilter(
                input=images,
                filter_sizes=kernel.shape,
                out_backprop=images,
                **settings,
            )
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True
