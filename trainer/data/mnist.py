"""MNIST (LeCun, Cortes and Burges) and Fashion-MNIST (Xiao et al., 2017).

Fashion-MNIST was made to take MNIST's place: same files, shapes and sizes.
"""

import functools
import os

import numpy as np

from trainer import errors
from trainer.data import idx, named
from trainer.data.array_dataset import ArrayDataset

IMAGES_FILE = "train-images-idx3-ubyte.gz"
LABELS_FILE = "train-labels-idx1-ubyte.gz"

_FILES = {
    "train": (IMAGES_FILE, LABELS_FILE),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_IMAGE_SHAPE = (28, 28)
_NUM_CLASSES = 10
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load(
    *,
    data_dir: str | None,
    split: str | None = None,
    name: str = "mnist",
    title: str = "MNIST",
    class_names: tuple[str, ...] = tuple("0123456789"),
) -> ArrayDataset:
    """Returns the images as uint8 [N, 28, 28, 1] with labels 0..9.

    They come from the first of: the two original files in `data_dir`; what
    tensorflow-datasets prepared in `data_dir`; a download by
    tensorflow-datasets into `data_dir`. Each way has its own order of the
    images, and always the same one.

    Args:
      data_dir: an existing directory: one that does not exist is taken for a
        typing error and not for a place to download to. None for the default
        directory of tensorflow-datasets, where the original files are not
        looked for.
      split: "train", which is the default, or "test".
      name: in the catalogue of tensorflow-datasets.
      title: for people.
      class_names: of the labels.

    Raises:
      DataError: the directory does not exist, the data in it are damaged, or
        they are missing and cannot be downloaded.
      UsageError: there is no such split.
    """
    split = named.check_split(name, split)
    if data_dir is not None:
        named.check_directory(title, data_dir)
        paths = [os.path.join(data_dir, file) for file in _FILES[split]]
        missing = [path for path in paths if not os.path.exists(path)]
        if not missing:
            return _read_original(*paths, class_names=class_names)
        if len(missing) == 1:
            raise errors.DataError(
                f"{missing[0]} does not exist, but its companion does. {title}"
                " needs both; add it."
            )
    return named.read_prepared(
        name,
        data_dir=data_dir,
        split=split,
        class_names=class_names,
        originals=f"the original {' and '.join(_FILES[split])}",
    )


load_fashion = functools.partial(
    load,
    name="fashion_mnist",
    title="Fashion-MNIST",
    class_names=_FASHION_CLASSES,
)


def _read_original(
    images_path: str, labels_path: str, *, class_names: tuple[str, ...]
) -> ArrayDataset:
    images = idx.read(images_path, rank=3)
    labels = idx.read(labels_path, rank=1)
    if not len(images) or images.shape[1:] != _IMAGE_SHAPE:
        raise errors.DataError(
            f"{images_path} holds an array of shape {list(images.shape)};"
            " MNIST's is [60000, 28, 28]. Use the original file."
        )
    if len(labels) != len(images):
        raise errors.DataError(
            f"{labels_path} holds {len(labels)} labels for the {len(images)}"
            f" images in {images_path}. Use two files of the same split."
        )
    if labels.max() >= _NUM_CLASSES:
        raise errors.DataError(
            f"{labels_path} holds the label {labels.max()}; MNIST's are 0 to"
            f" {_NUM_CLASSES - 1}. Use the original file."
        )
    return ArrayDataset(
        samples=images[..., np.newaxis],
        labels=labels.astype(np.int32),
        class_names=class_names,
    )
