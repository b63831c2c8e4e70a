"""The TFRecord format, record by record, at known places.

TensorFlow reads such a file only from its beginning. A record is its length
(64 bits, little-endian), the masked crc32c of the length, the payload and the
masked crc32c of the payload.
"""

import struct
from collections.abc import Iterator
from typing import IO

import google_crc32c

HEADER_BYTES = 12
FOOTER_BYTES = 4
_MASK_DELTA = 0xA282EAD8


class BadRecord(Exception):
    """A record that is damaged; the text is the reason."""


class BrokenOff(Exception):
    """A file that cannot be read any further.

    Attributes:
      offset: of the first byte that makes no sense.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.offset = offset


def frame(payload: bytes) -> bytes:
    """Returns the record of a payload."""
    length = struct.pack("<Q", len(payload))
    return length + _masked_crc(length) + payload + _masked_crc(payload)


def read_at(file: IO[bytes], offset: int, num_bytes: int) -> bytes:
    """Returns the payload of the record at an offset.

    Args:
      file: open to read.
      offset: where its header starts.
      num_bytes: of the payload.

    Raises:
      BadRecord: something else is there.
      OSError: the file cannot be read.
    """
    file.seek(offset)
    return check(file.read(size_of(num_bytes)), num_bytes)


def size_of(num_bytes: int) -> int:
    """Returns the size of the record of a payload."""
    return HEADER_BYTES + num_bytes + FOOTER_BYTES


def check(record: bytes, num_bytes: int) -> bytes:
    """Returns the payload of a record.

    Args:
      record: what was read where it should be.
      num_bytes: of the payload.

    Raises:
      BadRecord: it is something else.
    """
    payload = record[HEADER_BYTES:-FOOTER_BYTES]
    if record[:8] != struct.pack("<Q", num_bytes) or record[
        -FOOTER_BYTES:
    ] != _masked_crc(payload):
        raise BadRecord("its checksum is wrong")
    return payload


def scan(file: IO[bytes], num_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yields (offset, payload) of all records; None for a damaged payload.

    Args:
      file: open to read, at its beginning.
      num_bytes: its size.

    Raises:
      BrokenOff: a record's length is damaged, or the file ends within one.
      OSError: the file cannot be read.
    """
    offset = 0
    while offset < num_bytes:
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise BrokenOff("it ends within a record", offset)
        if _masked_crc(header[:8]) != header[8:]:
            raise BrokenOff("it is no TFRecord file from there on", offset)
        [length] = struct.unpack("<Q", header[:8])
        size = HEADER_BYTES + length + FOOTER_BYTES
        if offset + size > num_bytes:
            raise BrokenOff("it ends within a record", offset)
        payload = file.read(length)
        is_good = _masked_crc(payload) == file.read(FOOTER_BYTES)
        yield offset, payload if is_good else None
        offset += size


def _masked_crc(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    rotated = (crc >> 15 | crc << 17) + _MASK_DELTA
    return struct.pack("<I", rotated & 0xFFFFFFFF)
