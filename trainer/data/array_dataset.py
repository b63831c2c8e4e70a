"""A data set that fits in memory."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np

from trainer.data import dataset
from trainer.data.quarantine import Quarantine

_ROWS_PER_CHUNK = 4096
# What TensorFlow wants of a tensor's address.
_ALIGNMENT = 64


def aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Returns a uint8 array that TensorFlow can use where it is."""
    size = math.prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)


def _is_aligned(array: np.ndarray) -> bool:
    return (
        array.ctypes.data % _ALIGNMENT == 0
        and array.flags.c_contiguous
        and array.flags.writeable  # NumPy exports no others.
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Examples with labels, as NumPy arrays in the order of their source.

    Attributes:
      samples: uint8 [N, H, W, C], in 0..255.
      labels: int32 [N].
      class_names: of the labels 0, 1, ...; empty if they have no names.
      quarantine: the files that are not used.
      source_digest: the fingerprint of what the samples were made from, where
        that is known; else they are their own.
    """

    samples: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    quarantine: Quarantine = dataclasses.field(default_factory=Quarantine)
    source_digest: str | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample, such as (H, W, C)."""
        return self.samples.shape[1:]

    @property
    def num_threads(self) -> int | None:
        """None: it is in memory."""
        return None

    def at(self, indices: np.ndarray) -> np.ndarray:
        """Returns the samples at some places."""
        return self.samples[indices]

    def reader(self) -> Callable[[Any], Any]:
        """Returns a function for graphs: int64 [B] -> uint8 samples [B, ...].

        It shares the memory of samples from `aligned_empty`, and holds a copy
        of others.
        """
        # Here, because what only looks at data does without the import.
        import tensorflow as tf

        # Eager tensors are captured inputs of a map function, not constants of
        # its graph, which may not exceed 2 GB. On a GPU, they would come back
        # for each batch.
        with tf.device("CPU:0"):
            if _is_aligned(self.samples):
                capsule = self.samples.__dlpack__()
                samples = tf.experimental.dlpack.from_dlpack(capsule)
            else:
                samples = tf.constant(self.samples)
        return lambda indices: tf.gather(samples, indices)

    def digest(self) -> str:
        """Returns a fingerprint such as "crc32c:0a1b2c3d".

        Checkpoints store it, so that a run is not resumed on other data.
        """
        if self.source_digest:
            return self.source_digest
        shape = ",".join(str(size) for size in self.samples.shape)
        crc = google_crc32c.value(shape.encode())
        # Little-endian, so that the fingerprint is that of the numbers and not
        # of the machine.
        for array in (self.samples, self.labels.astype("<i4", copy=False)):
            # In chunks, because tobytes() copies.
            for start in range(0, len(array), _ROWS_PER_CHUNK):
                chunk = array[start : start + _ROWS_PER_CHUNK]
                crc = google_crc32c.extend(crc, chunk.tobytes())
        return f"crc32c:{crc:08x}"

    def describe(self) -> str:
        """Returns shape, classes and size, in words."""
        mebibytes = self.samples.nbytes / 2**20
        return dataset.describe(self, f"in memory ({mebibytes:,.0f} MiB)")
