"""Images within records of TFRecord files, read in any order."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from trainer.data import files, headers, images, record_file
from trainer.data.quarantine import Quarantine

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
