"""How reduced gradients become new weights, with and without loss scaling."""

from collections.abc import Callable

import tensorflow as tf

from trainer.loss_scale import LossScale
from trainer.network import Network
from trainer.optimizers import Optimizer


def update(
    network: Network,
    optimizer: Optimizer,
    loss_scale: LossScale | None,
    gradients: list[tf.Tensor],
    buffers: list[tf.Tensor],
    rate_factor: tf.Tensor | float,
    then: Callable[[], None] | None = None,
) -> tf.Tensor:
    """Updates a network; call in replica context.

    With loss scaling, gradients that are not finite leave the weights, the
    optimizer's slots and the buffers as they are.

    Args:
      network: what to update.
      optimizer: of its weights.
      loss_scale: what its loss was multiplied by; None: nothing.
      gradients: sums over the replicas.
      buffers: the network's new ones, the same on all replicas.
      rate_factor: multiplies the learning rate.
      then: is called after an update, but not if it is left out.

    Returns:
      the norm of the loss's gradients, without the scale.
    """
    if loss_scale is None:
        optimizer.apply(gradients, rate_factor)
        network.assign_buffers(buffers)
        if then:
            then()
        return tf.linalg.global_norm(gradients)

    gradients = [g / loss_scale.scale for g in gradients]
    norm = tf.linalg.global_norm(gradients)
    # Anything that is not finite makes the norm so.
    is_finite = tf.math.is_finite(norm + tf.linalg.global_norm(buffers))

    def apply() -> None:
        optimizer.apply(gradients, rate_factor)
        network.assign_buffers(buffers)
        if then:
            then()

    # No collective is inside, and all replicas take the same branch.
    tf.cond(is_finite, apply, lambda: None)
    loss_scale.update(is_finite)
    return norm


def scale_of(loss_scale: LossScale | None) -> tf.Tensor:
    """Returns the scale, or 1 where the loss is not scaled."""
    return tf.constant(1.0) if loss_scale is None else loss_scale.scale + 0.0
