"""The data sets, and how they become batches.

To add one that fits in memory, write a function like `digits.load` and add a
line to `ARRAYS`. To add a place that encoded images come from, write one like
`folder.list_images` and add a line to `SOURCES`; resizing, streaming, bad files
and resuming are then no concern of it.

Importing this package imports no TensorFlow; `data.pipeline` does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer import errors
from trainer.data import cifar10, digits, folder, mnist, records, tfds_source
from trainer.data.array_dataset import ArrayDataset
from trainer.data.dataset import Dataset, Wanted
from trainer.data.images import ImageList

if TYPE_CHECKING:
    from trainer.data.streamed_dataset import StreamedDataset

# By name: --dataset=digits.
ARRAYS: dict[str, Callable[..., ArrayDataset]] = {
    "digits": digits.load,
    "mnist": mnist.load,
    "fashion_mnist": mnist.load_fashion,
    "cifar10": cifar10.load,
}
# By what comes before the colon: --dataset=folder:<path>.
SOURCES: dict[str, Callable[..., ImageList]] = {
    "tfds": tfds_source.list_images,
    "folder": folder.list_images,
    "tfrecord": records.list_images,
}


def load(
    name: str, *, data_dir: str | None, wanted: Wanted | None = None
) -> Dataset:
    """Loads a data set, or makes it ready to be streamed.

    Call it after the devices are configured: a data set may be read with
    TensorFlow, after which logical devices can no longer be changed.

    Args:
      name: a key of `ARRAYS`, or a key of `SOURCES` and its argument, as in
        "folder:pictures".
      data_dir: where the data are; None for the data set's own default.
      wanted: split, size, colours and so on; None for the defaults.

    Raises:
      UsageError: there is no such data set, or it takes no `data_dir`.
      DataError: the data are missing or damaged.
    """
    wanted = wanted or Wanted()
    if name in ARRAYS:
        return _adjusted(
            ARRAYS[name](data_dir=data_dir, split=wanted.split), wanted
        )
    streamed = stream(name, data_dir=data_dir, wanted=wanted)
    if streamed.memory_bytes <= wanted.memory_bytes:
        return streamed.in_memory()
    return streamed


def stream(
    name: str, *, data_dir: str | None, wanted: Wanted
) -> "StreamedDataset":
    """Makes a data set ready to be streamed; see `load`.

    Args:
      name: a key of `SOURCES` and its argument.
      data_dir: where a relative path starts, or what tfds prepared.
      wanted: split, size, colours and so on.
    """
    images = list_images(name, data_dir=data_dir, wanted=wanted)
    return as_stream(images, wanted)


def list_images(
    name: str, *, data_dir: str | None, wanted: Wanted
) -> ImageList:
    """Lists the images of a data set; see `stream`.

    Raises:
      UsageError: there is no such data set, or it is one of `ARRAYS`.
      DataError: the data are missing or damaged.
    """
    kind, _, argument = name.partition(":")
    if kind not in SOURCES or not argument:
        known = ", ".join([*ARRAYS, *(f"{kind}:..." for kind in SOURCES)])
        raise errors.UsageError(
            f"--dataset={name} is unknown. Choose one of: {known}."
        )
    return SOURCES[kind](argument, data_dir=data_dir, wanted=wanted)


def as_stream(images: ImageList, wanted: Wanted) -> "StreamedDataset":
    """Makes a list of images ready to be streamed.

    Raises:
      DataError: the images' sizes differ, and none is wanted.
    """
    # Here, because the import takes seconds that arrays need not pay.
    from trainer.data.streamed_dataset import StreamedDataset

    return StreamedDataset(
        images,
        sample_shape=images.sample_shape(wanted),
        resize=wanted.resize,
    )


def _adjusted(dataset: ArrayDataset, wanted: Wanted) -> ArrayDataset:
    """Brings arrays to the wanted size and colours."""
    height, width, channels = dataset.sample_shape
    shape = (
        *(wanted.image_size or (height, width)),
        wanted.channels or channels,
    )
    if shape == dataset.sample_shape:
        return dataset
    from trainer.data import geometry

    return geometry.resize_arrays(dataset, shape, how=wanted.resize)


__all__ = [
    "ARRAYS",
    "SOURCES",
    "ArrayDataset",
    "Dataset",
    "Wanted",
    "as_stream",
    "list_images",
    "load",
    "stream",
]
