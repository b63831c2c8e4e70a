"""The data sets, and how they become batches.

To add one, write a module with `load(*, data_dir)` and add a line to
`DATASETS`. Importing this package imports no TensorFlow; `data.pipeline` does.
"""

from collections.abc import Callable

from trainer import errors
from trainer.data import digits, mnist
from trainer.data.array_dataset import ArrayDataset

DATASETS: dict[str, Callable[..., ArrayDataset]] = {
    "digits": digits.load,
    "mnist": mnist.load,
}


def load(name: str, *, data_dir: str | None) -> ArrayDataset:
    """Loads the training split of a data set.

    Call it after the devices are configured: a data set may be read with
    TensorFlow, after which logical devices can no longer be changed.

    Args:
      name: a key of `DATASETS`.
      data_dir: where the data are; None for the data set's own default.

    Raises:
      UsageError: there is no such data set, or it takes no `data_dir`.
      DataError: the data are missing or damaged.
    """
    if name not in DATASETS:
        raise errors.UsageError(
            f"--dataset={name} is unknown. Choose one of:"
            f" {', '.join(sorted(DATASETS))}."
        )
    return DATASETS[name](data_dir=data_dir)


__all__ = ["DATASETS", "ArrayDataset", "load"]
