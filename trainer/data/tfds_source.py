"""Data sets of tensorflow-datasets, by name.

Its own reader decodes to memory or shuffles through a buffer; here its files
are read like any TFRecord files, image by image.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging

from trainer import errors
from trainer.data import images, record_scan, record_shard
from trainer.data.dataset import Wanted

_PROBE_TIMEOUT_SECONDS = 10


def list_images(
    name: str, *, data_dir: str | None, wanted: Wanted
) -> images.ImageList:
    """Lists the images of a data set that tensorflow-datasets has prepared.

    It is downloaded and prepared first if need be.

    Args:
      name: "name", "name:config", or either with ":1.0.0" or so behind.
      data_dir: of tensorflow-datasets; None for its default.
      wanted: what to do with them; the split is "train" if none is given.

    Raises:
      DataError: it cannot be had, or holds no images.
    """
    # What looks like a version is one.
    name = re.sub(r":(?!\d+\.\d)", "/", name)
    builder = find(name, data_dir)
    prepare(
        builder,
        remedy='Run\n  python -c "import tensorflow_datasets as tfds;'
        f" tfds.builder('{name}',"
        " data_dir='DIR').download_and_prepare()\"\non a machine with a"
        " network, and pass that directory with --data_dir.",
    )
    split = wanted.split or "train"
    try:
        instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        raise errors.DataError(
            f"--split={split} is no part of {builder.name}, which has"
            f" {', '.join(builder.info.splits)}. (Slices such as train[:80%]"
            " are understood, too.)"
        ) from error
    if not instructions:
        raise errors.DataError(
            f"--split={split} of {builder.name} holds no image. Choose a larger"
            " part."
        )
    image_key, label_key, class_names = _features(builder)
    _check_file_format(builder)
    return record_scan.scan_shards(
        [
            record_shard.Shard(
                path=str(instruction.filename),
                skip=instruction.skip,
                take=instruction.examples_in_shard
                if instruction.take == -1
                else instruction.take,
            )
            for instruction in instructions
        ],
        wanted=wanted,
        image_key=image_key,
        label_key=label_key,
        class_names=class_names,
    )


def find(name: str, data_dir: str | None) -> Any:
    """Returns the builder (a tfds.core.DatasetBuilder) of a data set.

    Raises:
      DataError: there is no data set of that name.
    """
    # Here, because the import takes seconds that other data sets need not pay.
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except (
        tfds.core.DatasetNotFoundError,
        ValueError,  # There is no such config or version.
        AssertionError,
    ) as error:
        raise errors.DataError(
            f"tensorflow-datasets has no {name}: {_first_line(error)} Its"
            " catalogue lists the names; --dataset=tfds:<name>[:config]"
            " follows it, and looks into --data_dir for your own."
        ) from error


def prepare(builder: Any, *, remedy: str) -> None:
    """Has tensorflow-datasets download and prepare what is not there yet.

    Args:
      builder: a tfds.core.DatasetBuilder.
      remedy: what to do where there is no network, as sentences.

    Raises:
      DataError: it failed, for whatever reason.
    """
    with _no_warning_of_an_empty_folder():
        if builder.is_prepared():
            return
    import requests

    def cannot_download(error: Exception) -> errors.DataError:
        return errors.DataError(
            f"{builder.name} is not in {builder.data_dir} and cannot be"
            f" downloaded: {error}.\n{remedy}"
        )

    # tensorflow-datasets retries for more than three minutes and fills the
    # terminal meanwhile; one request tells whether there is a network. It is
    # made with the library that tensorflow-datasets uses, and so with the same
    # proxies and certificates.
    for url in list(builder.url_infos)[:1]:
        try:
            requests.head(url, timeout=_PROBE_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            raise cannot_download(error) from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # Its errors have no base class in common.
        raise cannot_download(error) from error


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


def _features(builder: Any) -> tuple[str, str | None, tuple[str, ...]]:
    """Returns the names of image and label, and the classes' names."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    of_kind = {
        kind: [k for k, f in features.items() if type(f) is kind]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    }
    image_keys = of_kind[tfds.features.Image]
    if not image_keys:
        raise errors.DataError(
            f"{builder.name} has no image at its top level, but"
            f" {', '.join(features)}. Choose another data set, or write its"
            " images to a folder."
        )
    label_keys = of_kind[tfds.features.ClassLabel]
    # Where there are several, the first by the authors' choice.
    for keys in (image_keys, label_keys):
        supervised = builder.info.supervised_keys or ()
        keys.sort(key=lambda key: key not in supervised)
    if not label_keys:
        return image_keys[0], None, ()
    names = features[label_keys[0]].names
    return image_keys[0], label_keys[0], tuple(names)


def _check_file_format(builder: Any) -> None:
    file_format = builder.info.file_format
    if file_format is not None and file_format.value != "tfrecord":
        raise errors.DataError(
            f"{builder.data_dir} holds {file_format.value} files. Prepare it"
            " with file_format='tfrecord'."
        )


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
