"""What the data sets with a name of their own have in common."""

import os

import numpy as np

from trainer import errors
from trainer.data import tfds_source
from trainer.data.array_dataset import ArrayDataset

SPLITS = ("train", "test")


def check_split(name: str, split: str | None) -> str:
    """Returns the split, "train" if none is given.

    Raises:
      UsageError: there is no such split.
    """
    if split is None:
        return "train"
    if split not in SPLITS:
        raise errors.UsageError(
            f"--split={split} is no part of {name}. Choose one of:"
            f" {', '.join(SPLITS)}."
        )
    return split


def check_directory(title: str, data_dir: str) -> None:
    """Refuses a directory that does not exist: a typing error, likely.

    Raises:
      DataError: it does not exist.
    """
    if not os.path.isdir(data_dir):
        raise errors.DataError(
            f"--data_dir={data_dir} is not a directory on this machine."
            f" Correct the path, or create the directory to have {title}"
            " downloaded into it."
        )


def read_prepared(
    name: str,
    *,
    data_dir: str | None,
    split: str,
    originals: str,
    class_names: tuple[str, ...] = (),
) -> ArrayDataset:
    """Returns what tensorflow-datasets has prepared, in memory.

    Args:
      name: in its catalogue.
      data_dir: None for its own default.
      split: which part.
      originals: what may lie in `data_dir` instead, for the error.
      class_names: of the labels.

    Raises:
      DataError: it can neither be read nor downloaded.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds_source.find(name, data_dir)
    tfds_source.prepare(
        builder,
        remedy='There are two ways out. Run\n  python -c "import'
        f" tensorflow_datasets as tfds; tfds.builder('{name}',"
        " data_dir='DIR').download_and_prepare()\"\non a machine with a"
        " network, and pass that directory with --data_dir; or put"
        f" {originals} into a directory, and pass that one.",
    )
    try:
        arrays = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    except (tf.errors.OpError, OSError) as error:
        raise errors.DataError(
            f"{name} in {builder.data_dir} cannot be read: {error}. Delete that"
            " directory and prepare it again."
        ) from error
    return ArrayDataset(
        samples=arrays["image"],
        labels=arrays["label"].astype(np.int32),
        class_names=class_names,
    )
