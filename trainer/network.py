"""A Keras model as a function of its weights, for one replica of it."""

from typing import NamedTuple

import keras
import tensorflow as tf


def names_classes(discriminator: keras.Model) -> bool:
    """Tells whether it says log p(label | sample) beside each logit."""
    return discriminator.output_shape[-1] == 2


def logits_of(outputs: tf.Tensor) -> tf.Tensor:
    """Returns the logits [B, 1] of what a discriminator says, [B, 1 or 2]."""
    if outputs.shape[-1] == 1:
        return outputs
    # Not a slice, of which XLA has no second derivative.
    return tf.reduce_sum(outputs * [1.0, 0.0], axis=1, keepdims=True)


class Network(NamedTuple):
    """A model, and what its variables hold on this replica.

    Layers that keep statistics assign them while they are called. Called as a
    function they return them instead, so that they can be made the same on all
    replicas first, whatever layer they belong to. And nothing in the function
    touches a variable, so that it can be compiled by XLA for each replica.

    Attributes:
      model: the model.
      weights: of its trainable variables.
      buffers: of the others, such as moving statistics.
      labels: int32 [B], the classes of the examples that it is called with;
        None for a model that takes none.
    """

    model: keras.Model
    weights: list[tf.Tensor]
    buffers: list[tf.Tensor]
    labels: tf.Tensor | None = None

    @classmethod
    def of(cls, model: keras.Model) -> "Network":
        """Reads the variables; call in replica context."""
        return cls(
            model,
            [tf.convert_to_tensor(v.value) for v in model.trainable_variables],
            [
                tf.convert_to_tensor(v.value)
                for v in model.non_trainable_variables
            ],
        )

    def __call__(
        self, inputs: tf.Tensor, buffers: list[tf.Tensor] | None = None
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Calls the model in training mode.

        Args:
          inputs: [B, ...]; the labels go in beside them.
          buffers: instead of the model's own, from an earlier call.

        Returns:
          the outputs as float32, and the new buffers.
        """
        outputs, new_buffers = self.model.stateless_call(
            self.weights,
            self.buffers if buffers is None else buffers,
            inputs if self.labels is None else [inputs, self.labels],
            training=True,
        )
        return tf.cast(outputs, tf.float32), new_buffers

    def assign_buffers(self, buffers: list[tf.Tensor]) -> None:
        """Sets the model's own buffers on this replica."""
        for variable, value in zip(
            self.model.non_trainable_variables, buffers, strict=True
        ):
            variable.assign(value)
