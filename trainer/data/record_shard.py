"""Finds the images in one TFRecord file, by reading all of it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, cast

import google_crc32c

from trainer import errors
from trainer.data import files, headers, images, patience, record_file
from trainer.data.record_index import Bad, Found
from trainer.data.record_storage import Place

# The names that converters give: ours, those of tensorflow-datasets, and those
# of TensorFlow's old image classification library.
IMAGE_KEYS = ("image", "image/encoded", "image_raw")
LABEL_KEYS = ("label", "image/class/label")
# Of a record without one whole number as its label; it is also what
# tensorflow-datasets writes where the label is not known.
NO_LABEL = -1


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


class Scanner:
    """Finds the images in shards."""

    def __init__(
        self,
        *,
        image_key: str | None,
        label_key: str | None,
        max_pixels: int,
        on_read: Callable[[int], object],
    ) -> None:
        """Takes what is known of the shards.

        Args:
          image_key: of the examples; None: the first of `IMAGE_KEYS` there is.
          label_key: the same with `LABEL_KEYS`.
          max_pixels: of an image that can be used.
          on_read: is called again and again with the bytes read.
        """
        self._image_keys = (image_key,) if image_key else IMAGE_KEYS
        self._label_keys = (label_key,) if label_key else LABEL_KEYS
        self._max_pixels = max_pixels
        self._on_read = on_read

    def scan(self, number: int, shard: Shard, size: int) -> Found:
        """Returns the images of a shard, in their order.

        Args:
          number: of the shard.
          shard: to read.
          size: of its file, in bytes.

        Raises:
          DataError: it is of another kind.
          StorageError: it could not be read for minutes.
        """
        end = None if shard.take is None else shard.skip + shard.take
        name = shard.path.rpartition("/")[2]
        entries: list[images.Entry] = []
        bad: list[Bad] = []
        with _PatientFile(shard.path, self._on_read) as file:
            if file.read(2) == b"\x1f\x8b":
                raise errors.DataError(
                    f"{shard.path} is compressed as a whole, so that no record"
                    " can be read without those before it. Decompress it;"
                    " images are compressed already."
                )
            file.rewind()
            records = record_file.scan(cast(IO[bytes], file), size)
            try:
                for record, (offset, payload) in enumerate(records):
                    if end is not None and record >= end:
                        break
                    if record < shard.skip:
                        continue
                    try:
                        entries.append(
                            self._entry(shard, number, record, offset, payload)
                        )
                    except headers.BadImage as reason:
                        bad.append(Bad(f"{name}, record {record}", str(reason)))
            except record_file.BrokenOff as error:
                lost = _guess_lost(entries, size - error.offset)
                bad.append(
                    Bad(
                        f"{name} from byte {error.offset} on",
                        f"{error}; about {lost} record(s) are lost",
                        lost,
                    )
                )
        return Found(entries, bad)

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
        label = NO_LABEL if label is None else label
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
            label=label,
            num_bytes=len(content),
            crc=google_crc32c.value(content),
            header=headers.read_bytes(content, max_pixels=self._max_pixels),
        )


class _PatientFile:
    """A file that is read from its beginning on, whatever happens meanwhile.

    A server's bad minute is waited for, as it is when images are read, and
    reading goes on where it was.
    """

    def __init__(self, path: str, on_read: Callable[[int], object]) -> None:
        self._path = path
        self._on_read = on_read
        self._file: IO[bytes] | None = None
        self._offset = 0

    def __enter__(self) -> "_PatientFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def rewind(self) -> None:
        self._close()
        self._offset = 0

    def read(self, size: int) -> bytes:
        """Returns the next bytes, fewer at the end.

        Raises:
          DataError: the file is not there, or may not be read.
          StorageError: it could not be read for minutes.
        """
        content = cast(
            bytes,
            patience.read(
                self._path, lambda: self._read_once(size), lambda: False
            ),
        )
        self._offset += len(content)
        self._on_read(len(content))
        return content

    def _read_once(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = files.open_binary(self._path)
                self._file.seek(self._offset)
            return self._file.read(size)
        except OSError as error:
            self._close()
            if _is_lasting(self._path, error):
                raise _cannot_read(self._path, error) from error
            raise

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _is_lasting(path: str, error: OSError) -> bool:
    """Tells whether waiting would not help: it is gone, or not for reading."""
    if isinstance(error, FileNotFoundError):
        folder = path.rpartition("/")[0] or "."
        return files.is_missing(path) and files.holds_anything(folder)
    return isinstance(error, (PermissionError, IsADirectoryError))


def _cannot_read(path: str, error: OSError) -> errors.DataError:
    """Returns what to say of a shard that waiting would not help."""
    return errors.DataError(
        f"{path} cannot be read: {error}. Correct --dataset, or fetch the file"
        " again."
    )


def state(path: str) -> files.FileState:
    """Returns a shard's size and time.

    Raises:
      DataError: the file is not there, or may not be read.
      StorageError: the disk or server did not answer for minutes.
    """

    def read_once() -> files.FileState:
        try:
            return files.state(path)
        except OSError as error:
            if _is_lasting(path, error):
                raise _cannot_read(path, error) from error
            raise

    found = patience.read(path, read_once, lambda: False)
    return cast(files.FileState, found)


def _guess_lost(entries: Sequence[images.Entry], num_bytes: int) -> int:
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
