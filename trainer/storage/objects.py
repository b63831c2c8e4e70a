"""An object in a bucket as its server describes it, and what can be amiss."""

import base64
import dataclasses
import datetime
from typing import Any

import google_crc32c

from trainer import errors
from trainer.storage.manifest import FileRecord


class MissingObjectError(Exception):
    """The bucket exists and holds no object of this name."""


class RefusedError(errors.StorageError):
    """The server refuses this request for good; others may be welcome."""


class ConflictError(Exception):
    """Under this name stands what another writer put there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object as the server describes it.

    Attributes:
        name: Its name below the bucket's prefix.
        size: Bytes.
        crc32c: Of the bytes, in hexadecimal as in a `FileRecord`.
        generation: Which of the objects that had this name in turn it is.
        created: When, by the server's clock.
    """

    name: str
    size: int
    crc32c: str
    generation: int
    created: datetime.datetime

    @classmethod
    def of(cls, blob: Any, prefix: str) -> "StoredObject":
        """Takes what the server said from a `google.cloud.storage.Blob`."""
        return cls(
            name=blob.name.removeprefix(prefix),
            size=blob.size or 0,  # Some servers leave a zero out.
            crc32c=base64.b64decode(blob.crc32c).hex(),
            generation=blob.generation,
            created=blob.time_created,
        )

    def record(self) -> FileRecord:
        """Returns what its bytes must be."""
        return FileRecord(name=self.name, size=self.size, crc32c=self.crc32c)

    def agrees(self, expected: FileRecord) -> bool:
        """Tells whether it has the expected bytes."""
        return (self.size, self.crc32c) == (expected.size, expected.crc32c)


def record_of(data: bytes, name: str) -> FileRecord:
    """Measures bytes as `trainer.storage.files.measure` does a file."""
    crc32c = google_crc32c.Checksum(data).digest().hex()
    return FileRecord(name=name, size=len(data), crc32c=crc32c)


def problem(record: FileRecord, stored: StoredObject | None) -> str | None:
    """Says in one line what is wrong with the object of a file, if anything."""
    if stored is None:
        return f"{record.name} is missing"
    if stored.size != record.size:
        return f"{record.name} has {stored.size} bytes, not {record.size}"
    if stored.crc32c != record.crc32c:
        return f"{record.name} has crc32c {stored.crc32c}, not {record.crc32c}"
    return None
