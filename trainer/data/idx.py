"""Reads the IDX format, in which MNIST was published.

A file is a big-endian header (magic number, then the size of each dimension,
32 bits each) followed by one byte per value, all of it compressed with gzip.
"""

import gzip
import math
import zlib

import numpy as np

from trainer import errors

_REMEDY = "Fetch the file again, or pass another --data_dir."


def read(path: str, *, rank: int) -> np.ndarray:
    """Returns the uint8 array with `rank` dimensions in a gzipped IDX file.

    Raises:
      DataError: the file is unreadable, of another kind, or not whole.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        # A truncated file is an EOFError, a flipped bit either of the others.
        raise errors.DataError(
            f"{path} cannot be read as a gzip file: {error}. {_REMEDY}"
        ) from error
    header_size = 4 * (1 + rank)
    # 0x08 stands for unsigned bytes; the last byte is the number of dimensions.
    expected_magic = 0x0800 + rank
    magic = int.from_bytes(content[:4], "big")
    if len(content) < header_size or magic != expected_magic:
        raise errors.DataError(
            f"{path} is not an IDX file of {rank} dimension(s): its"
            f" {len(content)} bytes start with {content[:4].hex()!r}, not with"
            f" '{expected_magic:08x}' and the sizes. {_REMEDY}"
        )
    sizes = np.frombuffer(content[4:header_size], ">u4")
    shape = tuple(int(size) for size in sizes)
    size = len(content) - header_size
    # Not NumPy's product, which would overflow on a nonsensical header.
    promised = math.prod(shape)
    if size != promised:
        raise errors.DataError(
            f"{path} promises {promised} values, of shape {list(shape)}, and"
            f" holds {size}. {_REMEDY}"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)
