"""Optimizers that take gradients which are already reduced over replicas.

A Keras optimizer sums the gradients over the replicas by itself when it is
applied, which would be a second reduction behind the train step's own.
"""

from collections.abc import Sequence

import tensorflow as tf


class Adam(tf.Module):
    """Adam (Kingma and Ba, arXiv:1412.6980), algorithm 1.

    Bias correction is folded into the learning rate as in the text below
    algorithm 1 ("epsilon hat"), which is what Keras computes. Each variable is
    updated by one fused op: on a CPU the update reads and writes the parameters
    once instead of about ten times.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        *,
        learning_rate: float,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        """Creates the slots; call under the strategy's scope.

        Args:
          variables: what to update.
          learning_rate: step size.
          beta_1: decay of the first moments.
          beta_2: decay of the second moments.
          epsilon: added to the root of the second moments.
        """
        super().__init__(name="adam")
        self._variables = list(variables)
        self._learning_rate = learning_rate
        self._beta_1 = beta_1
        self._beta_2 = beta_2
        self._epsilon = epsilon
        self.num_updates = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.first_moments = [_zeros_like(v) for v in self._variables]
        self.second_moments = [_zeros_like(v) for v in self._variables]

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """Updates the variables; call in replica context.

        Args:
          gradients: one per variable, already summed over the replicas, the
            same on each of them.
        """
        count = tf.cast(self.num_updates.assign_add(1), tf.float32)
        beta_1_power = tf.pow(self._beta_1, count)
        beta_2_power = tf.pow(self._beta_2, count)
        for variable, m, v, gradient in zip(
            self._variables,
            self.first_moments,
            self.second_moments,
            gradients,
            strict=True,
        ):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=beta_1_power,
                beta2_power=beta_2_power,
                lr=self._learning_rate,
                beta1=self._beta_1,
                beta2=self._beta_2,
                epsilon=self._epsilon,
                grad=gradient,
            )


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(
        tf.zeros(variable.shape, variable.dtype), trainable=False
    )
