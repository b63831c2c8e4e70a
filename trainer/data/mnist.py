"""MNIST's 60,000 training images (LeCun, Cortes and Burges)."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging as absl_logging

from trainer import errors
from trainer.data import idx
from trainer.data.array_dataset import ArrayDataset

IMAGES_FILE = "train-images-idx3-ubyte.gz"
LABELS_FILE = "train-labels-idx1-ubyte.gz"

_IMAGE_SHAPE = (28, 28)
_NUM_CLASSES = 10
_PROBE_TIMEOUT_SECONDS = 10
_HOW_TO_PREPARE = (
    'python -c "import tensorflow_datasets as tfds;'
    " tfds.builder('mnist', data_dir='DIR').download_and_prepare()\""
)


def load(*, data_dir: str | None) -> ArrayDataset:
    """Returns the training images as uint8 [N, 28, 28, 1] with labels 0..9.

    They come from the first of: the original files `IMAGES_FILE` and
    `LABELS_FILE` in `data_dir`; what tensorflow-datasets prepared in
    `data_dir`; a download by tensorflow-datasets into `data_dir`. Each way has
    its own order of the images, and always the same one.

    Args:
      data_dir: an existing directory: one that does not exist is taken for a
        typing error and not for a place to download to. None for the default
        directory of tensorflow-datasets, where the original files are not
        looked for.

    Raises:
      DataError: the directory does not exist, the data in it are damaged, or
        they are missing and cannot be downloaded.
    """
    if data_dir is not None:
        if not os.path.isdir(data_dir):
            raise errors.DataError(
                f"--data_dir={data_dir} is not a directory on this machine."
                " Correct the path, or create the directory to have MNIST"
                " downloaded into it."
            )
        paths = [os.path.join(data_dir, f) for f in (IMAGES_FILE, LABELS_FILE)]
        missing = [path for path in paths if not os.path.exists(path)]
        if not missing:
            return _read_original(*paths)
        if len(missing) == 1:
            raise errors.DataError(
                f"{missing[0]} does not exist, but its companion does. MNIST"
                " needs both; add it."
            )
    return _read_prepared(data_dir)


def _read_original(images_path: str, labels_path: str) -> ArrayDataset:
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
    return _as_dataset(images[..., np.newaxis], labels)


def _read_prepared(data_dir: str | None) -> ArrayDataset:
    # Here, because the imports take seconds that other data sets need not pay.
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist", data_dir=data_dir)
    with _no_warning_of_an_empty_folder():
        is_prepared = builder.is_prepared()
    if not is_prepared:
        _download(builder)
    try:
        split = tfds.as_numpy(builder.as_dataset(split="train", batch_size=-1))
    except (tf.errors.OpError, OSError) as error:
        raise errors.DataError(
            f"MNIST in {builder.data_dir} cannot be read: {error}. Delete that"
            " directory and prepare it again."
        ) from error
    return _as_dataset(split["image"], split["label"])


@contextlib.contextmanager
def _no_warning_of_an_empty_folder() -> Iterator[None]:
    """Silences a warning of tensorflow-datasets: the data get fetched next."""

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Variant folder ")

    logger = absl_logging.get_absl_logger()
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _download(builder: Any) -> None:
    """Has tensorflow-datasets download and prepare MNIST.

    Args:
      builder: the tfds.core.DatasetBuilder.

    Raises:
      DataError: the download failed, for whatever reason.
    """
    import requests

    # tensorflow-datasets retries for more than three minutes and fills the
    # terminal meanwhile; one request tells whether there is a network. It is
    # made with the library that tensorflow-datasets uses, and so with the same
    # proxies and certificates.
    url = next(iter(builder.url_infos))
    try:
        requests.head(url, timeout=_PROBE_TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise _cannot_download(builder, error) from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # Its errors have no base class in common.
        raise _cannot_download(builder, error) from error


def _cannot_download(builder: Any, error: Exception) -> errors.DataError:
    return errors.DataError(
        f"MNIST is not in {builder.data_dir} and cannot be downloaded:"
        f" {error}.\nThere are two ways out. Run\n  {_HOW_TO_PREPARE}\non a"
        " machine with a network, and pass that directory with --data_dir; or"
        f" put the original {IMAGES_FILE} and {LABELS_FILE} into a directory,"
        " and pass that one."
    )


def _as_dataset(images: np.ndarray, labels: np.ndarray) -> ArrayDataset:
    return ArrayDataset(samples=images, labels=labels.astype(np.int32))
