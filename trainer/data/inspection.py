"""What there is to know of a data set before it is trained on."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from trainer.data import dataset as dataset_lib
from trainer.data import headers
from trainer.data.dataset import Dataset
from trainer.data.images import ImageList
from trainer.data.quarantine import printable
from trainer.data.streamed_dataset import StreamedDataset

_MAX_CLASSES_SHOWN = 20
_ROWS_PER_CHUNK = 4096


def describe_images(images: ImageList) -> Iterator[tuple[str, str]]:
    """Yields (what, value) of the encoded images, in words."""
    count = len(images.labels)
    yield "images", f"{count:,}, {images.num_bytes.sum() / 2**20:,.1f} MiB"
    formats = Counter(headers.FORMATS[number] for number in images.formats)
    yield "formats", _counts(formats.most_common()) + _misnamed(images)
    sizes = Counter(
        zip(images.heights.tolist(), images.widths.tolist(), strict=True)
    )
    if len(sizes) == 1:
        [(height, width)] = sizes
        yield "sizes", f"all {height}x{width} (height x width)"
    else:
        (height, width), most = sizes.most_common(1)[0]
        yield (
            "sizes",
            f"{len(sizes):,} different ones: heights {_range(images.heights)},"
            f" widths {_range(images.widths)}; most often {height}x{width}"
            f" (height x width, {most:,} times)",
        )
    if num_turned := int((images.orientations != headers.UPRIGHT).sum()):
        yield "turned", f"{num_turned:,}, as their cameras noted (EXIF)"
    num_grey = int((images.channels == 1).sum())
    colours = [("grey", num_grey), ("colours", count - num_grey)]
    yield "channels", _counts([item for item in colours if item[1]])


def describe_classes(dataset: Dataset | ImageList) -> Iterator[tuple[str, str]]:
    """Yields (what, value) of the labels, in words."""
    counts = np.bincount(
        dataset.labels, minlength=len(dataset.class_names)
    ).tolist()
    names = dataset.class_names or tuple(map(str, range(len(counts))))
    yield "classes", f"{len(counts):,}"
    for name, count in list(zip(names, counts, strict=True))[
        :_MAX_CLASSES_SHOWN
    ]:
        yield "", f"{count:>9,}  {printable(name)}"
    if (others := len(counts) - _MAX_CLASSES_SHOWN) > 0:
        yield "", f"and {others:,} others"


def describe_samples(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yields (what, value) of all samples, which it decodes, in words."""
    streams = isinstance(dataset, StreamedDataset)
    clock = _Clock()
    statistics = _Statistics(
        clock.time(dataset.in_order())
        if isinstance(dataset, StreamedDataset)
        else _chunks(dataset)
    )
    count = len(dataset.labels)
    shape = dataset_lib.shape_text(dataset.sample_shape)
    yield "samples", f"{count:,} of {shape}"
    yield "values", statistics.describe()
    num_bytes = count * int(np.prod(dataset.sample_shape))
    yield "in memory", f"{num_bytes / 2**20:,.1f} MiB as uint8"
    if streams:
        yield "decoding", clock.describe()
    yield "digest", dataset.digest()


class _Clock:
    """Measures how fast batches come, without the first.

    That one has to wait until TensorFlow has built the pipeline.
    """

    def __init__(self) -> None:
        self._num_timed = 0
        self._secs = 0.0

    def time(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the batches [b, ...] and looks at the clock."""
        start_secs = None
        for batch in batches:
            if start_secs is None:
                start_secs = time.monotonic()
            else:
                self._num_timed += len(batch)
                self._secs = time.monotonic() - start_secs
            yield batch

    def describe(self) -> str:
        if not self._num_timed:
            return "too few images to tell how fast it is"
        rate = self._num_timed / self._secs
        return f"{rate:,.0f} images/s on this machine"


class _Statistics:
    """Of uint8 values in 0..255."""

    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        histogram = np.zeros(256, np.int64)
        self._num_plain = 0
        for batch in batches:
            histogram += np.bincount(batch.ravel(), minlength=256)
            rows = batch.reshape(len(batch), -1)
            self._num_plain += int((rows.min(1) == rows.max(1)).sum())
        self._histogram = histogram

    def describe(self) -> str:
        values = np.arange(256)
        present = np.flatnonzero(self._histogram)
        mean = np.average(values, weights=self._histogram)
        variance = np.average((values - mean) ** 2, weights=self._histogram)
        plain = ""
        if self._num_plain:
            plain = f"; {self._num_plain:,} images are of one colour only"
        return (
            f"{present[0]} to {present[-1]}, mean {mean:.1f}, standard"
            f" deviation {variance**0.5:.1f}{plain}"
        )


def _chunks(dataset: Dataset) -> Iterator[np.ndarray]:
    indices = np.arange(len(dataset.labels))
    for start in range(0, len(indices), _ROWS_PER_CHUNK):
        yield dataset.at(indices[start : start + _ROWS_PER_CHUNK])


def _misnamed(images: ImageList) -> str:
    count = 0
    for index, number in enumerate(images.formats):
        header = headers.Header(headers.FORMATS[number], 1, 1, 1)
        name = images.storage.name(index)
        count += headers.is_named_otherwise(name, header)
    if not count:
        return ""
    return f"; {count:,} have the name of another format, which does no harm"


def _counts(pairs: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in pairs)


def _range(sizes: np.ndarray) -> str:
    low, middle, high = sizes.min(), int(np.median(sizes)), sizes.max()
    return f"{low} to {high} (median {middle})"
