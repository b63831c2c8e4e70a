"""Optimizers by name, which take gradients already reduced over replicas.

A Keras optimizer sums the gradients over the replicas by itself when it is
applied, which would be a second reduction behind the train step's own. Each
variable is updated by one fused op: on a CPU that reads and writes the
parameters once instead of about ten times, and was the fastest of what
`tests/benchmarks/optimizers.py` compares.

To add an optimizer, add a class and a line in `OPTIMIZERS`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import tensorflow as tf

from trainer import errors


class Optimizer(Protocol):
    """What training needs of an optimizer; all of them are `tf.Module`s."""

    @property
    def variables(self) -> Sequence[tf.Variable]:
        """Its slots and counters, and what it updates."""

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        rate_factor: tf.Tensor | float = 1.0,
    ) -> None:
        """Updates the variables; call in replica context.

        Args:
          gradients: one per variable, already summed over the replicas, the
            same on each of them.
          rate_factor: multiplies the learning rate of this update.
        """


class Adam(tf.Module):
    """Adam (Kingma and Ba, arXiv:1412.6980), algorithm 1.

    Bias correction is folded into the learning rate as in the text below
    algorithm 1 ("epsilon hat"), which is what Keras computes.
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

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        rate_factor: tf.Tensor | float = 1.0,
    ) -> None:
        """Updates the variables; see `Optimizer`."""
        learning_rate = self._learning_rate * rate_factor
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
                lr=learning_rate,
                beta1=self._beta_1,
                beta2=self._beta_2,
                epsilon=self._epsilon,
                grad=gradient,
            )


class RMSprop(tf.Module):
    """RMSprop (Tieleman and Hinton, lecture 6.5, 2012), as Keras computes it.

    Wasserstein GANs were first trained with it (Arjovsky et al.,
    arXiv:1701.07875, section 4).
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        *,
        learning_rate: float,
        rho: float = 0.9,
        epsilon: float = 1e-7,
    ) -> None:
        """Creates the slots; call under the strategy's scope.

        Args:
          variables: what to update.
          learning_rate: step size.
          rho: decay of the second moments.
          epsilon: added to the second moments, below the root.
        """
        super().__init__(name="rmsprop")
        self._variables = list(variables)
        self._learning_rate = learning_rate
        self._rho = rho
        self._epsilon = epsilon
        self.second_moments = [_zeros_like(v) for v in self._variables]
        # The op writes each step there before it takes it.
        self.steps = [_zeros_like(v) for v in self._variables]

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        rate_factor: tf.Tensor | float = 1.0,
    ) -> None:
        """Updates the variables; see `Optimizer`."""
        learning_rate = self._learning_rate * rate_factor
        for variable, ms, step, gradient in zip(
            self._variables,
            self.second_moments,
            self.steps,
            gradients,
            strict=True,
        ):
            tf.raw_ops.ResourceApplyRMSProp(
                var=variable.handle,
                ms=ms.handle,
                mom=step.handle,
                lr=learning_rate,
                rho=self._rho,
                momentum=0.0,
                epsilon=self._epsilon,
                grad=gradient,
            )


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": Adam,
    "rmsprop": RMSprop,
}


def get(name: str) -> Callable[..., Optimizer]:
    """Returns the optimizer of that name.

    Raises:
      UsageError: there is none; the message lists the known ones.
    """
    if name not in OPTIMIZERS:
        raise errors.UsageError(
            f"--optimizer={name} is unknown; known are {', '.join(OPTIMIZERS)}."
        )
    return OPTIMIZERS[name]


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(
        tf.zeros(variable.shape, variable.dtype), trainable=False
    )
