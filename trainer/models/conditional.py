"""Layers that take a class besides their inputs, for conditional networks.

They look tables up by multiplying with one-hot rows. A gather would give the
gradient of a table as slices, which cannot be packed with those of the other
weights, and on a GPU sums them in an order of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.models.layers import BatchNormalization

Shape = tuple[int | None, ...]


def labels_input() -> keras.KerasTensor:
    """Returns the input of a functional model that takes labels, int32 [B]."""
    return keras.Input([], dtype="int32", name="labels")


def chain(
    network: Sequence[keras.layers.Layer],
    inputs: keras.KerasTensor,
    labels: keras.KerasTensor,
) -> keras.KerasTensor:
    """Calls layers one after the other, those that take labels with them."""
    for layer in network:
        if isinstance(layer, (ConditionalBatchNormalization, Projection)):
            inputs = layer(inputs, labels=labels)
        else:
            inputs = layer(inputs)
    return inputs


@keras.saving.register_keras_serializable("trainer")
class OneHot(keras.layers.Layer):
    """Turns labels int32 [B] into rows of zeros and a one, float32 [B, K].

    A Dense layer without bias after it is an embedding.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        """Makes the layer; `num_classes` is K."""
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_classes = num_classes

    def call(self, labels: tf.Tensor) -> tf.Tensor:
        return tf.one_hot(labels, self.num_classes)

    def compute_output_shape(self, labels_shape: Shape) -> Shape:
        return (*labels_shape, self.num_classes)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_classes": self.num_classes}


@keras.saving.register_keras_serializable("trainer")
class ConditionalBatchNormalization(keras.layers.Layer):
    """Batch norm with a scale and an offset per class.

    Dumoulin et al., "A learned representation for artistic style"
    (arXiv:1610.07629), equation 5; de Vries et al. (arXiv:1707.00683): the
    statistics are those of all classes together.

    Call it as layer(inputs, labels=labels): [B, ..., C] and int32 [B].
    """

    def __init__(
        self,
        num_classes: int,
        *,
        synchronized: bool = False,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        gamma_initializer: Any = "ones",
        **kwargs: Any,
    ) -> None:
        """Makes the layer.

        Args:
          num_classes: K, rows of both tables.
          synchronized: as in `BatchNormalization`, which normalizes.
          momentum: the same.
          epsilon: the same.
          gamma_initializer: of the scales [K, C].
          **kwargs: of `keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.normalization = BatchNormalization(
            synchronized=synchronized,
            momentum=momentum,
            epsilon=epsilon,
            affine=False,
            dtype=self.dtype_policy,
            name="normalization",
        )

    def build(self, inputs_shape: Shape, labels_shape: Shape = ()) -> None:
        del labels_shape
        self.normalization.build(inputs_shape)

        def table(name: str, initial: Any) -> Any:
            return self.add_weight(
                name=name,
                shape=(self.num_classes, inputs_shape[-1]),
                initializer=initial,
                dtype="float32",
                autocast=False,
            )

        self.gamma = table("gamma", self.gamma_initializer)
        self.beta = table("beta", "zeros")

    def call(
        self, inputs: tf.Tensor, labels: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """Normalizes `inputs` [B, ..., C] as its class has it."""
        normalized = self.normalization(inputs, training=training)
        rows = tf.one_hot(labels, self.num_classes)
        shape = [-1, *[1] * (len(inputs.shape) - 2), inputs.shape[-1]]
        gamma, beta = (
            tf.reshape(tf.matmul(rows, table), shape)
            for table in (self.gamma, self.beta)
        )
        # In float32, as without classes.
        outputs = tf.cast(normalized, tf.float32) * gamma + beta
        return tf.cast(outputs, inputs.dtype)

    def compute_output_shape(
        self, inputs_shape: Shape, labels_shape: Shape = ()
    ) -> Shape:
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "synchronized": self.normalization.synchronized,
            "momentum": self.normalization.momentum,
            "epsilon": self.normalization.epsilon,
            "gamma_initializer": keras.initializers.serialize(
                self.gamma_initializer
            ),
        }


class AuxiliaryClassifier(keras.layers.Layer):
    """The last layer of a discriminator that also names the class.

    Odena et al., "Conditional image synthesis with auxiliary classifier GANs"
    (arXiv:1610.09585), section 3: one output for the source, and one for each
    class, which may not see the label.

    Call it as layer(features, labels=labels): [B, F] and int32 [B] to [B, 2],
    the logit and log p(label | features). In float32, like all logits.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        """Makes the layer.

        Args:
          num_classes: K.
          kernel_initializer: of both parts.
          **kwargs: of `keras.layers.Layer`.
        """
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_classes = num_classes
        self.source, self.classifier = (
            keras.layers.Dense(
                size,
                kernel_initializer=kernel_initializer,
                dtype="float32",
                name=name,
            )
            for size, name in ((1, "source"), (num_classes, "classifier"))
        )

    def build(self, features_shape: Shape, labels_shape: Shape = ()) -> None:
        del labels_shape
        self.source.build(features_shape)
        self.classifier.build(features_shape)

    def call(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns logits and log-likelihoods, [B, 2]."""
        rows = tf.one_hot(labels, self.num_classes)
        log_likelihoods = tf.reduce_sum(
            rows * tf.nn.log_softmax(self.classifier(features)),
            axis=1,
            keepdims=True,
        )
        return tf.concat([self.source(features), log_likelihoods], axis=1)

    def compute_output_shape(
        self, features_shape: Shape, labels_shape: Shape = ()
    ) -> Shape:
        return (features_shape[0], 2)


class Projection(keras.layers.Layer):
    """The last layer of a discriminator that knows the class.

    Miyato and Koyama, "cGANs with projection discriminator"
    (arXiv:1802.05637), equation 4: logit = linear(h) + <embedding of the
    class, h>, for features h. In float32, like all logits.

    Call it as layer(features, labels=labels): [B, F] and int32 [B] to [B, 1].
    """

    def __init__(
        self,
        num_classes: int,
        *,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        dense: Callable[..., keras.layers.Layer] = keras.layers.Dense,
        **kwargs: Any,
    ) -> None:
        """Makes the layer.

        Args:
          num_classes: K.
          use_bias: of the linear part.
          kernel_initializer: of the linear part and of the embeddings [K, F].
          dense: makes both, from what `keras.layers.Dense` takes; one with
            spectral norm, for example.
          **kwargs: of `keras.layers.Layer`.
        """
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_classes = num_classes
        self._dense = dense
        self._kernel_initializer = kernel_initializer
        self.linear = dense(
            1,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            dtype="float32",
            name="linear",
        )

    def build(self, features_shape: Shape, labels_shape: Shape = ()) -> None:
        del labels_shape
        self.linear.build(features_shape)
        self.embedding = self._dense(
            features_shape[-1],
            use_bias=False,
            kernel_initializer=self._kernel_initializer,
            dtype="float32",
            name="embedding",
        )
        self.embedding.build((None, self.num_classes))

    def call(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns logits [B, 1]."""
        # Keras tells the layers inside whether this is training.
        embeddings = self.embedding(tf.one_hot(labels, self.num_classes))
        products = tf.reduce_sum(embeddings * features, axis=1, keepdims=True)
        return self.linear(features) + products

    def compute_output_shape(
        self, features_shape: Shape, labels_shape: Shape = ()
    ) -> Shape:
        return (features_shape[0], 1)
