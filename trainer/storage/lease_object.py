"""The object that says who writes below a prefix, and the server's clock.

`trainer.storage.lease` is the only user. No clock of any machine is read here:
the age of a lease is the time between two writes, by the server's clock.
"""

import contextlib
import dataclasses
import json

from trainer import errors
from trainer.storage.bucket import Bucket
from trainer.storage.manifest import is_plain_name
from trainer.storage.objects import (
    ConflictError,
    MissingObjectError,
    StoredObject,
    record_of,
)

NAME = "lease.json"
_MAX_BYTES = 4096
_MAX_HOLDER_CHARS = 200
_MAX_TRIES = 3
# What a lease may claim, so that no object can bar a run for ever.
_MAX_DURATION_SECS = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What a lease says.

    Attributes:
        holder: Who has it, for a person.
        attempt: The id of the process that has it.
        duration_secs: How long it holds after each time that it is written.
    """

    holder: str
    attempt: str
    duration_secs: float

    def to_bytes(self) -> bytes:
        """Writes it as JSON: always the same bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode() + b"\n"


def find(bucket: Bucket) -> StoredObject | None:
    """Returns the lease as the server describes it, None if there is none.

    Raises:
        StorageError: If the bucket cannot be read.
    """
    stored = [file for file in bucket.list_objects(NAME) if file.name == NAME]
    return stored[0] if stored else None


def read(bucket: Bucket) -> Claim | None:
    """Reads what the lease says, None if that makes no sense.

    Raises:
        StorageError: If the bucket cannot be read.
    """
    try:
        record = json.loads(bucket.read_bytes(NAME, _MAX_BYTES))
        holder, attempt = record["holder"], record["attempt"]
        duration_secs = float(record["duration_secs"])
    except (
        MissingObjectError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):
        return None
    if not (
        isinstance(holder, str)
        and holder.isprintable()
        and is_plain_name(attempt)
        and 0 < duration_secs <= _MAX_DURATION_SECS
    ):
        return None
    return Claim(
        holder=holder[:_MAX_HOLDER_CHARS],
        attempt=attempt,
        duration_secs=duration_secs,
    )


def write(bucket: Bucket, data: bytes, *, generation: int) -> StoredObject:
    """Writes the lease, if nobody else has written it meanwhile.

    Args:
        bucket: Where the lease is.
        data: What it will say. If that is there already, it is ours: the
            answer to an earlier write was lost.
        generation: Which one it replaces; 0 for none.

    Raises:
        ConflictError: If another lease is there, or none although one must.
        StorageError: If the bucket cannot be written.
    """
    if generation == 0:
        return bucket.upload_bytes(data, NAME, create_only=True)
    from google.api_core import exceptions

    expected, blob = record_of(data, NAME), bucket._blob(NAME)
    with bucket._explained("write", NAME):
        for _ in range(_MAX_TRIES):
            try:
                blob.upload_from_string(
                    data,
                    checksum="crc32c",
                    if_generation_match=generation,
                    **bucket._options(),
                )
                return StoredObject.of(blob, bucket._prefix)
            except exceptions.PreconditionFailed as error:
                stored = find(bucket)
                if stored is None or not stored.agrees(expected):
                    raise ConflictError(NAME) from error
                # Written once more, for nobody knows how old that one is.
                generation = stored.generation
    raise errors.StorageError(
        f"The answers to {_MAX_TRIES} writes of {bucket.location}/{NAME} were "
        "lost: check the network, then run the same command again."
    )


def age_secs(bucket: Bucket, stored: StoredObject, *, attempt: str) -> float:
    """Returns how long ago an object was written, by the server's clock.

    A server tells the time only of what it has just written.

    Args:
        bucket: Where it is.
        stored: The object.
        attempt: The id of this process.

    Raises:
        StorageError: If the bucket cannot be written.
    """
    name = f"{NAME}.clock-{attempt}"
    now = bucket.upload_bytes(b"", name, create_only=False)
    # Nobody else has this name; a little object left over harms nobody.
    with contextlib.suppress(ConflictError):
        bucket.delete(name, generation=now.generation)
    return (now.created - stored.created).total_seconds()
