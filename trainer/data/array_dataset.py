"""A data set that fits in memory."""

import dataclasses

import google_crc32c
import numpy as np

_ROWS_PER_CHUNK = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Examples with labels, as NumPy arrays in the order of their source.

    Attributes:
      samples: uint8 [N, H, W, C], in 0..255.
      labels: int32 [N].
    """

    samples: np.ndarray
    labels: np.ndarray

    def digest(self) -> str:
        """Returns a fingerprint such as "crc32c:0a1b2c3d".

        Checkpoints store it, so that a run is not resumed on other data.
        """
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
