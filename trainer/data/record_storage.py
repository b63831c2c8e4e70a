"""Images within records of TFRecord files, read in any order."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple

import numpy as np

from trainer.data import files, headers, images, record_file
from trainer.data.quarantine import Quarantine

_REMOTE_THREADS = 64
# Processes may have 1,024 files open, and other parts want some.
_MAX_OPEN_SHARDS = 128


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


def name_of(paths: Sequence[str], place: Place) -> str:
    """Returns an image's name, given the paths of all shards."""
    return f"{paths[place.shard].rpartition('/')[2]}, record {place.record}"


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
        self._open_shards = _OpenShards()

    def name(self, index: int) -> str:
        return name_of(self._paths, Place(*self._places[index].tolist()))

    def read(self, index: int) -> bytes:
        place = Place(*self._places[index].tolist())
        path = self._paths[place.shard]
        try:
            if self.is_remote:
                with files.open_binary(path) as file:
                    payload = record_file.read_at(
                        file, place.offset, place.num_bytes
                    )
            else:
                payload = record_file.check(
                    self._open_shards.read(
                        path,
                        place.offset,
                        record_file.size_of(place.num_bytes),
                    ),
                    place.num_bytes,
                )
        except record_file.BadRecord as error:
            raise headers.BadImage(str(error)) from error
        start = place.image_start
        return payload[start : start + place.image_bytes]

    def is_gone(self, index: int) -> bool:
        return False  # Without its shard, thousands would be missing.

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


class _OpenShards:
    """Keeps local shards open: to open one takes longer than to read of it."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, num_bytes: int) -> bytes:
        """Returns the bytes at an offset, fewer at the end of the file.

        Raises:
          OSError: it cannot be opened or read; it will be opened anew.
        """
        file = self._open(path)
        try:
            # Of its own offset, so that threads do not disturb each other.
            return os.pread(file.fileno(), num_bytes, offset)
        except OSError:
            with self._lock:
                self._files.pop(path, None)
            raise

    def _open(self, path: str) -> IO[bytes]:
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = open(path, "rb", buffering=0)
                if len(self._files) > _MAX_OPEN_SHARDS:
                    # Closed when the last thread that reads it is through.
                    self._files.popitem(last=False)
            self._files.move_to_end(path)
            return file


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
