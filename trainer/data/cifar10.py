"""CIFAR-10's 50,000 training images (Krizhevsky, 2009)."""

import os

import numpy as np

from trainer import errors
from trainer.data import named
from trainer.data.array_dataset import ArrayDataset

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Of the binary version, which needs no pickle to read. A record is a label
# and 32x32 pixels, plane by plane.
FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_FOLDER = "cifar-10-batches-bin"
_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32


def load(*, data_dir: str | None, split: str | None = None) -> ArrayDataset:
    """Returns the images as uint8 [N, 32, 32, 3] with labels 0..9.

    They come from the first of: the published binary files in `data_dir`, or in
    its sub-folder of their archive; what tensorflow-datasets prepared in
    `data_dir`; a download by tensorflow-datasets.

    Args:
      data_dir: an existing directory, or None for that of tensorflow-datasets.
      split: "train", which is the default, or "test".

    Raises:
      DataError: the data are missing or damaged.
      UsageError: there is no such split.
    """
    split = named.check_split("cifar10", split)
    if data_dir is not None:
        named.check_directory("CIFAR-10", data_dir)
        for folder in (data_dir, os.path.join(data_dir, _FOLDER)):
            paths = [os.path.join(folder, name) for name in FILES[split]]
            existing = [path for path in paths if os.path.exists(path)]
            if len(existing) == len(paths):
                return _read_original(paths)
            if existing:
                missing = sorted(set(paths) - set(existing))
                raise errors.DataError(
                    f"{missing[0]} does not exist, but its companions do."
                    " CIFAR-10 needs all of them; add it."
                )
    return named.read_prepared(
        "cifar10",
        data_dir=data_dir,
        split=split,
        class_names=CLASS_NAMES,
        originals=f"the {_FOLDER} folder of the published binary version",
    )


def _read_original(paths: list[str]) -> ArrayDataset:
    parts = []
    for path in paths:
        content = np.fromfile(path, np.uint8)
        if not len(content) or len(content) % _RECORD_BYTES:
            raise errors.DataError(
                f"{path} has {len(content)} bytes, which is no whole number of"
                f" records of {_RECORD_BYTES}. Fetch the file again."
            )
        parts.append(content.reshape(-1, _RECORD_BYTES))
        if parts[-1][:, 0].max() >= len(CLASS_NAMES):
            raise errors.DataError(
                f"{path} holds the label {parts[-1][:, 0].max()}; CIFAR-10's"
                f" are 0 to {len(CLASS_NAMES) - 1}. Use the original file."
            )
    rows = np.concatenate(parts)
    planes = rows[:, 1:].reshape(-1, *_SHAPE)
    return ArrayDataset(
        samples=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=rows[:, 0].astype(np.int32),
        class_names=CLASS_NAMES,
    )
