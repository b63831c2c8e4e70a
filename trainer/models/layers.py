"""Layers that Keras has, but not with what a distributed GAN needs of them."""

from typing import Any

import keras
import tensorflow as tf

from trainer import randomness

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable("trainer")
class Dropout(keras.layers.Layer):
    """Inverted dropout whose mask is a function of seed, step and position.

    Keras' own layer keeps a random state that is the same on every replica (all
    would drop the same units) and that checkpoints leave out (a resumed run
    would differ). This one draws from `randomness.current_draws()`.
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        """Makes the layer; `rate` in [0, 1) is the share of zeroed units."""
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or self.rate == 0.0:
            return inputs
        mask, keep_probability = randomness.current_draws().mask(
            tuple(inputs.shape), keep_probability=1.0 - self.rate
        )
        return inputs * tf.cast(mask, inputs.dtype) * (1.0 / keep_probability)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable("trainer")
class Gate(keras.layers.Layer):
    """Multiplies the sigmoid of one half of the channels with tanh of the rest.

    Van den Oord et al., PixelCNN (arXiv:1606.05328), equation 2.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        gates, values = tf.split(inputs, 2, axis=-1)
        return tf.sigmoid(gates) * tf.tanh(values)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        *others, channels = input_shape
        return (*others, channels and channels // 2)


@keras.saving.register_keras_serializable("trainer")
class BatchNormalization(keras.layers.Layer):
    """Batch norm over all axes but the last (arXiv:1502.03167, algorithm 1).

    Same variables and same values as Keras' layer. What differs: statistics of
    one replica are computed by TensorFlow's fused op (Keras' layer takes about
    five passes over the activations instead of two); statistics of the global
    batch cross the replicas in one reduction instead of three.
    """

    def __init__(
        self,
        *,
        synchronized: bool = False,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        gamma_initializer: Any = "ones",
        affine: bool = True,
        **kwargs: Any,
    ) -> None:
        """Makes the layer.

        Args:
          synchronized: take the statistics over the global batch instead of
            over each replica's share of it.
          momentum: decay of the moving statistics.
          epsilon: added to the variance.
          gamma_initializer: of the scales, anything that Keras understands.
          affine: whether there are scales and offsets.
          **kwargs: of `keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self.synchronized = synchronized
        self.momentum = momentum
        self.epsilon = epsilon
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.affine = affine

    def build(self, input_shape: Shape) -> None:
        def per_channel(name: str, initial: Any, trainable: bool) -> Any:
            return self.add_weight(
                name=name,
                shape=(input_shape[-1],),
                initializer=initial,
                trainable=trainable,
                dtype="float32",
                autocast=False,
            )

        if self.affine:
            self.gamma = per_channel("gamma", self.gamma_initializer, True)
            self.beta = per_channel("beta", "zeros", True)
        self.moving_mean = per_channel("moving_mean", "zeros", False)
        self.moving_variance = per_channel("moving_variance", "ones", False)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalizes `inputs` [B, ..., C]."""
        if not training:
            return self._normalize(
                inputs, self.moving_mean, self.moving_variance
            )
        if self.synchronized:
            mean, variance = self._global_moments(inputs)
            outputs = self._normalize(inputs, mean, variance)
        else:
            outputs, mean, variance = self._fused(inputs)
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(
                self.momentum * moving + (1.0 - self.momentum) * value
            )
        return outputs

    def _gamma_and_beta(self, channels: int) -> tuple[tf.Tensor, tf.Tensor]:
        if self.affine:
            return (
                tf.convert_to_tensor(self.gamma),
                tf.convert_to_tensor(self.beta),
            )
        return tf.ones([channels]), tf.zeros([channels])

    def _normalize(
        self, inputs: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor
    ) -> tf.Tensor:
        gamma, beta = self._gamma_and_beta(inputs.shape[-1])
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)
        offset = beta - mean * scale
        # In float32: with a large mean, the two terms nearly cancel.
        outputs = tf.cast(inputs, tf.float32) * scale + offset
        return tf.cast(outputs, inputs.dtype)

    def _fused(
        self, inputs: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # The op takes images: [B, C] becomes [B, 1, 1, C].
        images = tf.reshape(inputs, [inputs.shape[0], 1, -1, inputs.shape[-1]])
        gamma, beta = self._gamma_and_beta(inputs.shape[-1])
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=gamma,
            offset=beta,
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        # It reports the unbiased variance; moving averages hold the biased one.
        count = images.shape[0] * images.shape[2]
        variance *= (count - 1) / count
        return tf.reshape(outputs, inputs.shape), mean, variance

    def _global_moments(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance [C] over all replicas, differentiable.

        Each replica adds its own moments in a row of its own, so that one sum
        gathers them. Summing x and x^2 instead would move less, but
        E[x^2] - E[x]^2 cancels badly when the mean is large.
        """
        replica = tf.distribute.get_replica_context()
        axes = list(range(len(inputs.shape) - 1))
        own = tf.stack(tf.nn.moments(tf.cast(inputs, tf.float32), axes))
        row = tf.one_hot(
            replica.replica_id_in_sync_group, replica.num_replicas_in_sync
        )
        moments = replica.all_reduce(
            tf.distribute.ReduceOp.SUM, row[:, None, None] * own
        )
        means, variances = moments[:, 0], moments[:, 1]
        return (
            tf.reduce_mean(means, 0),
            tf.reduce_mean(variances, 0) + tf.math.reduce_variance(means, 0),
        )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "synchronized": self.synchronized,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "gamma_initializer": keras.initializers.serialize(
                self.gamma_initializer
            ),
            "affine": self.affine,
        }
