"""Finds the images in TFRecord files, by reading all of them once."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import google_crc32c
from absl import logging

from trainer import errors
from trainer.data import files, headers, images, record_file, record_storage
from trainer.data.dataset import Wanted
from trainer.data.quarantine import Quarantine
from trainer.data.record_storage import Place

# The names that converters give: ours, those of tensorflow-datasets, and those
# of TensorFlow's old image classification library.
IMAGE_KEYS = ("image", "image/encoded", "image_raw")
LABEL_KEYS = ("label", "image/class/label")


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
    image_list = record_storage.make_list(
        [shard.path for shard in shards],
        entries,
        class_names=class_names or tuple(map(str, range(max(labels) + 1))),
        quarantine=quarantine,
    )
    images.warn_of_empty_classes(image_list)
    return image_list


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
