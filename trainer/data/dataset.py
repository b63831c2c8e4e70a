"""What training needs of a data set, wherever its examples are."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from trainer.data.quarantine import Quarantine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user wants of the images, whatever the source.

    Attributes:
      split: which part of the data; None: the source's own choice.
      image_size: (height, width); None: that of the data, if all are alike.
      channels: 1 or 3; None: 1 if all images are grey, else 3.
      resize: a key of `geometry.RESIZERS`.
      max_bad_fraction: of the files, that may be unusable.
      max_pixels: of an image before it is resized; others are unusable.
      memory_bytes: a decoded data set up to this size is kept in memory.
      cache_dir: where what was found in files is kept for the next start; None:
        nowhere.
    """

    split: str | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    resize: str = "crop"
    max_bad_fraction: float = 0.01
    max_pixels: int = 100_000_000
    memory_bytes: int = 4 << 30
    cache_dir: pathlib.Path | None = None


class Dataset(Protocol):
    """N examples with labels, in an order of their own that never changes.

    Attributes:
      labels: int32 [N].
      class_names: of the labels 0, 1, ...; empty if they have no names.
      quarantine: the files that are not used.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def quarantine(self) -> Quarantine: ...

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample, such as (H, W, C)."""

    @property
    def num_threads(self) -> int | None:
        """What `reader` needs; None: as many as there are processors."""

    def at(self, indices: np.ndarray) -> np.ndarray:
        """Returns the samples at some places, uint8 [B, ...]."""

    def reader(self) -> Callable[[Any], Any]:
        """Returns a function for graphs: int64 [B] -> uint8 samples [B, ...].

        B is static; the function keeps what it needs in host memory.
        """

    def digest(self) -> str:
        """Returns a fingerprint, which is that of the same data anywhere."""

    def describe(self) -> str:
        """Returns shape, classes, and where the samples are, in words."""


def spread(dataset: Dataset, count: int) -> np.ndarray:
    """Returns some samples of all parts of the data: the order is by class.

    Args:
      dataset: of uint8 samples.
      count: how many, or fewer if there are fewer.
    """
    num_examples = len(dataset.labels)
    places = np.linspace(0, num_examples - 1, min(count, num_examples))
    return dataset.at(places.round().astype(np.int64))


def examples_of(dataset: Dataset, labels: np.ndarray) -> np.ndarray:
    """Returns samples of some classes, others for each time that one is named.

    Args:
      dataset: of uint8 samples.
      labels: of the samples, integers [B].

    Returns:
      uint8 [B, ...]; black where the data have no such class.
    """
    found = np.zeros([len(labels), *dataset.sample_shape], np.uint8)
    for label in np.unique(labels):
        wanted = np.flatnonzero(labels == label)
        places = np.flatnonzero(dataset.labels == label)
        if len(places):
            # Evenly spaced, and again from the first if there are too few.
            step = max(len(places) // len(wanted), 1)
            chosen = np.arange(len(wanted)) * step % len(places)
            found[wanted] = dataset.at(places[chosen])
    return found


def num_classes(dataset: Dataset) -> int:
    """Returns how many classes the labels name; at least one."""
    if dataset.class_names:
        return len(dataset.class_names)
    return int(dataset.labels.max(initial=0)) + 1


def shape_text(shape: tuple[int, ...]) -> str:
    """Returns "28x28x1" for (28, 28, 1)."""
    return "x".join(str(size) for size in shape)


def describe(dataset: Dataset, where: str) -> str:
    """Returns "shape, classes, where", as all data sets describe themselves."""
    count = num_classes(dataset)
    classes = "one class" if count == 1 else f"{count} classes"
    return f"{shape_text(dataset.sample_shape)}, {classes}, {where}"
