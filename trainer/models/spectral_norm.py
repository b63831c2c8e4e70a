"""Layers whose kernel, as a matrix, has a largest singular value of 1.

Miyato et al., "Spectral normalization for generative adversarial networks"
(arXiv:1802.05957), algorithm 1: an estimate u of the first singular vector is
kept, and each call in training improves it by one power iteration.

The new u is a function of the old one and of the kernel alone. So all replicas
and all parts of a batch have the same, and so is their average, which training
keeps. Its length is of no effect: each call normalizes what it makes of it.
"""

from typing import Any

import keras
import tensorflow as tf

Shape = tuple[int | None, ...]

_EPSILON = 1e-12


class _SpectralLayer(keras.layers.Layer):
    """A kernel [..., units], perhaps a bias, and the estimate u [units]."""

    def __init__(
        self,
        units: int,
        *,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def _make_weights(self, *inner_shape: int) -> None:
        # Autocast would round kernel and u before they are normalized.
        settings: dict[str, Any] = {"dtype": "float32", "autocast": False}
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*inner_shape, self.units),
            initializer=self.kernel_initializer,
            **settings,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.units,),
                initializer="zeros",
                **settings,
            )
        self.u = self.add_weight(
            name="u",
            shape=(self.units,),
            initializer=keras.initializers.RandomNormal(0.0, 1.0),
            trainable=False,
            **settings,
        )

    def _normalized_kernel(self, training: bool) -> tf.Tensor:
        """Divides the kernel by its largest singular value, in float32.

        The slope goes through the singular value, too, but not through the
        singular vectors (equation 10 of the paper).
        """
        kernel = tf.convert_to_tensor(self.kernel)
        matrix = tf.reshape(kernel, [-1, self.units])
        constant = tf.stop_gradient(matrix)
        # Sums instead of matmul, which a GPU may compute in TF32.
        v = _unit(tf.reduce_sum(constant * tf.convert_to_tensor(self.u), 1))
        u = _unit(tf.reduce_sum(constant * v[:, None], 0))
        if training:
            self.u.assign(u)
        sigma = tf.reduce_sum(tf.reduce_sum(matrix * v[:, None], 0) * u)
        kernel /= tf.maximum(sigma, _EPSILON)
        return tf.cast(kernel, self.compute_dtype)

    def _add_bias(self, outputs: tf.Tensor) -> tf.Tensor:
        if self.bias is None:
            return outputs
        return outputs + tf.cast(self.bias, outputs.dtype)


class SpectralConv2D(_SpectralLayer):
    """A convolution with stride 1 and padding "same"."""

    def __init__(self, units: int, kernel_size: int, **kwargs: Any) -> None:
        """Makes the layer.

        Args:
          units: channels of the outputs.
          kernel_size: of both sides.
          **kwargs: use_bias, kernel_initializer and those of
            `keras.layers.Layer`.
        """
        super().__init__(units, **kwargs)
        self.kernel_size = kernel_size

    def build(self, input_shape: Shape) -> None:
        size = self.kernel_size
        self._make_weights(size, size, input_shape[-1] or 0)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, H, W, C] to [B, H, W, units]."""
        kernel = self._normalized_kernel(training)
        return self._add_bias(tf.nn.conv2d(inputs, kernel, 1, "SAME"))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.units)


class SpectralDense(_SpectralLayer):
    """A dense layer; of one-hot rows, an embedding."""

    def build(self, input_shape: Shape) -> None:
        self._make_weights(input_shape[-1] or 0)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, F] to [B, units]."""
        kernel = self._normalized_kernel(training)
        return self._add_bias(tf.matmul(inputs, kernel))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.units)


def _unit(vector: tf.Tensor) -> tf.Tensor:
    return vector / tf.maximum(tf.norm(vector), _EPSILON)
