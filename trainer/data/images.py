"""The list of a data set's images: names, sizes, labels, headers; no pixels."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import google_crc32c
import numpy as np
from absl import logging

from trainer import errors
from trainer.data import headers
from trainer.data.dataset import Wanted
from trainer.data.quarantine import Quarantine


class Storage(Protocol):
    """Where the encoded images are, addressed by their place in the list.

    Attributes:
      is_remote: whether each read is a request to a server.
    """

    @property
    def is_remote(self) -> bool: ...

    def name(self, index: int) -> str:
        """Returns the image's name, for people and for fingerprints."""

    def read(self, index: int) -> bytes:
        """Returns an encoded image.

        Raises:
          OSError: it cannot be read.
          BadImage: its checksum is wrong.
        """

    def is_gone(self, index: int) -> bool:
        """Tells whether a file is missing by itself, and not its whole root.

        A disk that is not mounted is another matter than a file removed.
        """

    def graph_reader(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Returns two functions for graphs, of which the second is parallel.

        The first takes int64 [B] to anything [B], the second one of these to
        an encoded image, a scalar string. What cannot be read is an error or
        an empty string.
        """


class Entry(NamedTuple):
    """An image that can be used, as its source found it.

    Attributes:
      place: what its storage makes of it.
      label: from 0 on.
      num_bytes: of the encoded image.
      crc: crc32c of all or of the first bytes of the encoded image.
      header: what it says of itself.
    """

    place: Any
    label: int
    num_bytes: int
    crc: int
    header: headers.Header


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ImageList:
    """N encoded images, in an order that is the same on every machine.

    Attributes:
      storage: where they are.
      labels: int32 [N].
      class_names: of the labels 0, 1, ...
      num_bytes: int64 [N], of the encoded images.
      crcs: uint32 [N], of their first bytes at least.
      formats: uint8 [N], indices into `headers.FORMATS`.
      heights: int32 [N], of the images as they are to be seen.
      widths: int32 [N].
      channels: uint8 [N].
      orientations: uint8 [N], as in `headers.Header`.
      quarantine: what is left out.
    """

    storage: Storage
    labels: np.ndarray
    class_names: tuple[str, ...]
    num_bytes: np.ndarray
    crcs: np.ndarray
    formats: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    channels: np.ndarray
    orientations: np.ndarray
    quarantine: Quarantine

    def digest(self) -> str:
        """Returns a fingerprint, such as "images:0a1b2c3d".

        It is that of names, labels, sizes and first bytes: to read all of the
        data at every start may take hours.
        """
        # Names come from file systems, where they are any bytes.
        classes = "\0".join(self.class_names)
        crc = google_crc32c.value(classes.encode(errors="surrogateescape"))
        for index in range(len(self.labels)):
            name = self.storage.name(index)
            encoded = name.encode(errors="surrogateescape")
            crc = google_crc32c.extend(crc, encoded + b"\0")
        columns = [
            (self.labels, "<i4"),
            (self.num_bytes, "<i8"),
            (self.crcs, "<u4"),
        ]
        if np.any(self.orientations != headers.UPRIGHT):
            columns.append((self.orientations, "u1"))
        for array, kind in columns:
            crc = google_crc32c.extend(crc, array.astype(kind).tobytes())
        return f"images:{crc:08x}"

    def sample_shape(self, wanted: Wanted) -> tuple[int, int, int]:
        """Returns (H, W, C) of the samples.

        Raises:
          DataError: the sizes differ, and none is wanted.
        """
        channels = wanted.channels or int(self.channels.max())
        if wanted.image_size is not None:
            return (*wanted.image_size, channels)
        sides = (self.heights.tolist(), self.widths.tolist())
        sizes = Counter(zip(*sides, strict=True))
        [((height, width), count), *others] = sizes.most_common()
        if others:
            raise errors.DataError(
                f"The images have {len(sizes):,} different sizes, most often"
                f" {height}x{width} (height x width, {count:,} of"
                f" {len(self.labels):,}), and a network makes one. Choose it"
                f" with --image_size, such as --image_size={height}x{width};"
                " --resize says how."
            )
        return height, width, channels


def make_list(
    entries: Sequence[Entry],
    make_storage: Callable[[list[Any]], Storage],
    *,
    class_names: tuple[str, ...],
    quarantine: Quarantine,
) -> ImageList:
    """Makes a list of entries in their order.

    Args:
      entries: at least one.
      make_storage: takes their places.
      class_names: of the labels.
      quarantine: what is left out.
    """
    found = [entry.header for entry in entries]
    return ImageList(
        storage=make_storage([entry.place for entry in entries]),
        labels=np.array([entry.label for entry in entries], np.int32),
        class_names=class_names,
        num_bytes=np.array([entry.num_bytes for entry in entries], np.int64),
        crcs=np.array([entry.crc for entry in entries], np.uint32),
        formats=np.array(
            [headers.FORMATS.index(h.format) for h in found], np.uint8
        ),
        heights=np.array([h.height for h in found], np.int32),
        widths=np.array([h.width for h in found], np.int32),
        channels=np.array([h.channels for h in found], np.uint8),
        orientations=np.array([h.orientation for h in found], np.uint8),
        quarantine=quarantine,
    )


def classes_without_images(image_list: ImageList) -> list[str]:
    """Returns the names of the classes that no image has."""
    counts = np.bincount(
        image_list.labels, minlength=len(image_list.class_names)
    )
    return [
        name
        for name, count in zip(image_list.class_names, counts, strict=False)
        if not count
    ]


def warn_of_empty_classes(image_list: ImageList) -> None:
    """Tells of classes without images, where that may be on purpose."""
    if names := classes_without_images(image_list):
        logging.warning(
            "%d of %d classes have no image: %s%s.",
            len(names),
            len(image_list.class_names),
            ", ".join(names[:5]),
            ", ..." if len(names) > 5 else "",
        )
