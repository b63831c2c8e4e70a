"""Images in TFRecord files: ours, of tensorflow-datasets, or anybody's.

A record is a tf.train.Example with an encoded image and perhaps a label. Where
each image lies is found once, at the start; from then on any of them can be
read in any order, which is what a shuffle is made of.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from absl import logging

from trainer import errors
from trainer.data import files, headers, images, packed, record_file
from trainer.data.dataset import Wanted
from trainer.data.quarantine import Quarantine

# The names that converters give: ours, those of tensorflow-datasets, and those
# of TensorFlow's old image classification library.
IMAGE_KEYS = ("image", "image/encoded", "image_raw")
LABEL_KEYS = ("label", "image/class/label")

_REMOTE_THREADS = 64


class Place(NamedTuple):
    """Where an image is.

    Attributes:
      shard: of the list of shards.
      record: the how-manieth of its shard.
      offset: of the record in the shard.
      num_bytes: of the record's payload.
      image_start: of the image in the payload.
      image_bytes: of the image.
    """

    shard: int
    record: int
    offset: int
    num_bytes: int
    image_start: int
    image_bytes: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """A TFRecord file, or a part of one.

    Attributes:
      path: of the file.
      skip: records at its beginning that do not belong to it.
      take: records after these that do; None: all.
    """

    path: str
    skip: int = 0
    take: int | None = None


class RecordStorage:
    """Images that are each within a record of a shard."""

    def __init__(self, paths: Sequence[str], places: Sequence[Place]) -> None:
        """Takes the shards' paths, and where each image is."""
        self.is_remote = any(files.is_remote(path) for path in paths)
        self._paths = list(paths)
        # Numbers, because tuples take ten times the memory.
        self._places = np.array(places, np.int64).reshape(
            -1, len(Place._fields)
        )
        self._pool = ThreadPoolExecutor(_REMOTE_THREADS)

    def name(self, index: int) -> str:
        place = Place(*self._places[index].tolist())
        shard = self._paths[place.shard].rpartition("/")[2]
        return f"{shard}, record {place.record}"

    def read(self, index: int) -> bytes:
        place = Place(*self._places[index].tolist())
        try:
            with files.open_binary(self._paths[place.shard]) as file:
                payload = record_file.read_at(
                    file, place.offset, place.num_bytes
                )
        except record_file.BadRecord as error:
            raise headers.BadImage(str(error)) from error
        start = place.image_start
        return payload[start : start + place.image_bytes]

    def graph_reader(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        import tensorflow as tf

        def fetch(indices: Any) -> Any:
            contents = tf.numpy_function(
                self._read_many, [indices], tf.string, stateful=False
            )
            return tf.ensure_shape(contents, indices.shape)

        return fetch, lambda content: content

    def _read_many(self, indices: np.ndarray) -> np.ndarray:
        run = self._pool.map if self.is_remote else map
        contents = list(run(self._read_or_nothing, indices.tolist()))
        return np.array(contents, object)

    def _read_or_nothing(self, index: int) -> bytes:
        try:
            return self.read(index)
        except (OSError, headers.BadImage):
            return b""  # It will be read again, with more patience.


def list_images(
    pattern: str, *, data_dir: str | None, wanted: Wanted
) -> images.ImageList:
    """Lists the images in the files that a glob pattern matches.

    Args:
      pattern: such as "/data/train-*.tfrecord"; a relative one is looked up in
        `data_dir`.
      data_dir: or None.
      wanted: what to do with them.

    Raises:
      DataError: no file matches, they are of another kind, or bad.
      UsageError: a split is wanted.
    """
    if wanted.split is not None:
        raise errors.UsageError(
            f"--split={wanted.split} has no use with --dataset=tfrecord: its"
            " pattern chooses the files. Leave --split out."
        )
    pattern = files.locate(pattern, data_dir)
    try:
        paths = files.list_glob(pattern)
    except OSError as error:
        raise errors.DataError(
            f"{pattern} cannot be listed: {error}. Correct --dataset."
        ) from error
    if not paths:
        raise errors.DataError(
            f"No file matches {pattern}. Correct --dataset=tfrecord:<glob>, in"
            " quotes, or --data_dir."
        )
    if packed.is_packed(paths):
        entries, class_names = packed.read_lists(paths)
        return make_list(
            paths,
            [images.Entry(Place(*place), *rest) for place, *rest in entries],
            class_names=class_names,
            quarantine=Quarantine(wanted.max_bad_fraction),
        )
    return scan_shards([Shard(path) for path in paths], wanted=wanted)


def scan_shards(
    shards: Sequence[Shard],
    *,
    wanted: Wanted,
    image_key: str | None = None,
    label_key: str | None = None,
    class_names: tuple[str, ...] = (),
) -> images.ImageList:
    """Lists the images in shards, by reading all of them once.

    Args:
      shards: at least one.
      wanted: what to do with the images.
      image_key: of the examples; None: the first of `IMAGE_KEYS` there is.
      label_key: the same with `LABEL_KEYS`; without any, all labels are 0.
      class_names: of the labels, if they are known.

    Raises:
      DataError: they are of another kind, or too much of them is bad.
    """
    logging.info("Reading %d TFRecord file(s) once.", len(shards))
    quarantine = Quarantine(wanted.max_bad_fraction)
    scanner = _Scanner(image_key, label_key, wanted.max_pixels, quarantine)
    results = files.map_in_threads(
        lambda numbered: scanner.scan(*numbered),
        list(enumerate(shards)),
        remote=True,  # One shard is work enough for a thread.
    )
    entries = [entry for result in results for entry in result]
    quarantine.check(len(entries))
    if not entries:
        raise errors.DataError(
            f"{shards[0].path} and the other {len(shards) - 1} file(s) hold no"
            " image that can be used. Correct --dataset."
            f" {quarantine.summary()}"
        )
    labels = {entry.label for entry in entries}
    if min(labels) < 0 or (class_names and max(labels) >= len(class_names)):
        raise errors.DataError(
            f"The labels in {shards[0].path} and the other files are from"
            f" {min(labels)} to {max(labels)}; they must be 0 to"
            f" {len(class_names) - 1 if class_names else 'the last class'}."
            " Write them again."
        )
    image_list = make_list(
        [shard.path for shard in shards],
        entries,
        class_names=class_names or tuple(map(str, range(max(labels) + 1))),
        quarantine=quarantine,
    )
    images.warn_of_empty_classes(image_list)
    return image_list


def make_list(
    paths: Sequence[str],
    entries: Sequence[images.Entry],
    *,
    class_names: tuple[str, ...],
    quarantine: Quarantine,
) -> images.ImageList:
    """Returns the list of images whose places are known."""
    return images.make_list(
        entries,
        lambda places: RecordStorage(paths, places),
        class_names=class_names,
        quarantine=quarantine,
    )


class _Scanner:
    """Finds the images in shards."""

    def __init__(
        self,
        image_key: str | None,
        label_key: str | None,
        max_pixels: int,
        quarantine: Quarantine,
    ) -> None:
        self._image_keys = (image_key,) if image_key else IMAGE_KEYS
        self._label_keys = (label_key,) if label_key else LABEL_KEYS
        self._max_pixels = max_pixels
        self._quarantine = quarantine

    def scan(self, number: int, shard: Shard) -> list[images.Entry]:
        """Returns the usable images of a shard, in their order."""
        end = None if shard.take is None else shard.skip + shard.take
        name = shard.path.rpartition("/")[2]
        entries = []
        record = -1
        try:
            with files.open_binary(shard.path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                if file.read(2) == b"\x1f\x8b":
                    raise errors.DataError(
                        f"{shard.path} is compressed as a whole, so that no"
                        " record can be read without those before it."
                        " Decompress it; images are compressed already."
                    )
                file.seek(0)
                for record, (offset, payload) in enumerate(
                    record_file.scan(file, size)
                ):
                    if end is not None and record >= end:
                        break
                    if record < shard.skip:
                        continue
                    try:
                        entries.append(
                            self._entry(shard, number, record, offset, payload)
                        )
                    except headers.BadImage as bad:
                        self._quarantine.add(
                            f"{name}, record {record}", str(bad)
                        )
        except record_file.BrokenOff as error:
            lost = self._guess_lost(entries, size - error.offset)
            self._quarantine.add(
                f"{name} from byte {error.offset} on",
                f"{error}; about {lost} record(s) are lost",
                count=lost,
            )
        except OSError as error:
            raise errors.DataError(
                f"{shard.path} cannot be read: {error}. Correct --dataset, or"
                " fetch the file again."
            ) from error
        return entries

    def _entry(
        self,
        shard: Shard,
        number: int,
        record: int,
        offset: int,
        payload: bytes | None,
    ) -> images.Entry:
        if payload is None:
            raise headers.BadImage("its checksum is wrong")
        features = _parse(payload)
        content = _one(features, self._image_keys, "bytes_list")
        if content is None:
            raise errors.DataError(
                f"{shard.path} has no image under"
                f" {' or '.join(self._image_keys)}: record {record} has"
                f" {', '.join(sorted(features)) or 'nothing'}. Write the"
                " encoded image as a bytes feature of one of these names."
            )
        label = _one(features, self._label_keys, "int64_list")
        return images.Entry(
            place=Place(
                shard=number,
                record=record,
                offset=offset,
                num_bytes=len(payload),
                # Wherever these bytes are found first: they are the same.
                image_start=payload.find(content),
                image_bytes=len(content),
            ),
            label=label or 0,
            num_bytes=len(content),
            crc=google_crc32c.value(content),
            header=headers.read_bytes(content, max_pixels=self._max_pixels),
        )

    def _guess_lost(
        self, entries: Iterable[images.Entry], num_bytes: int
    ) -> int:
        sizes = [entry.place.num_bytes for entry in entries]
        if not sizes:
            return 1
        return max(1, round(num_bytes / (sum(sizes) / len(sizes))))


def _parse(payload: bytes) -> Any:
    """Returns the features of an example, by name."""
    # Here, because the import takes seconds.
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        return tf.train.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise headers.BadImage("it is no tf.train.Example") from error


def _one(features: Any, keys: Iterable[str], kind: str) -> Any:
    """Returns the only value of the first of the features there is."""
    for key in keys:
        if key in features:
            values = getattr(features[key], kind).value
            if len(values) == 1:
                return values[0]
    return None
