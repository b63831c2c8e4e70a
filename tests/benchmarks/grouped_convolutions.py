"""Grouped convolutions in one op, or with an op for each group.

  python -m tests.benchmarks.grouped_convolutions

R3GAN's are in groups of 16 channels; its penalty needs second derivatives.
"""

from collections.abc import Callable, Iterator

import tensorflow as tf

from tests.benchmarks import command
from tests.benchmarks.turns import Group
from trainer.models import grouped_convolution

_GROUP_SIZE = 16
_SIDE = 16
_BATCH_SIZE = 16


def loop(
    *, kind: str, channels: int, order: int, **_: object
) -> Callable[[int], None]:
    """Returns what computes some times.

    Args:
      kind: "one op" or "group by group".
      channels: of the images.
      order: of the derivatives, 1 or 2.
    """
    convolve = _KINDS[kind]
    images = tf.random.normal([_BATCH_SIZE, _SIDE, _SIDE, channels])
    kernel = tf.random.normal([3, 3, _GROUP_SIZE, channels])

    @tf.function
    def compute() -> list[tf.Tensor]:
        with tf.GradientTape(persistent=True) as outer:
            outer.watch([images, kernel])
            with tf.GradientTape(persistent=True) as inner:
                inner.watch([images, kernel])
                total = tf.reduce_sum(convolve(images, kernel) ** 2)
            if order == 1:
                return inner.gradient(total, [images, kernel])
            slope = inner.gradient(total, images)
            penalty = tf.reduce_sum(slope**2)
        return outer.gradient(penalty, [images, kernel])

    def run(num_times: int) -> None:
        for _ in range(num_times):
            gradients = compute()
        gradients[-1].numpy()  # Waits for the GPU.

    return run


_KINDS = {
    "one op": grouped_convolution.one_op,
    "group by group": grouped_convolution.group_by_group,
}


def _make_groups() -> Iterator[Group]:
    for channels in (64, 256):
        for order in (1, 2):
            yield Group(
                f"{channels} channels, derivatives of order {order}",
                f"Milliseconds; images of {_SIDE}x{_SIDE}, {_BATCH_SIZE} of"
                " them.",
                [
                    command.contestant(
                        kind,
                        "grouped_convolutions.loop",
                        kind=kind,
                        channels=channels,
                        order=order,
                    )
                    for kind in _KINDS
                ],
            )


if __name__ == "__main__":
    command.run("Grouped convolutions", _make_groups)
