"""Moving the bytes of one object, with nothing believed that can be checked.

`trainer.storage.bucket` is the only user.
"""

from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import google_crc32c
from absl import logging

from trainer import errors
from trainer.storage import cloud_requests
from trainer.storage.cloud_requests import Patience
from trainer.storage.manifest import FileRecord

# Each thread holds one in memory. For uploads, a multiple of 256 KiB.
UPLOAD_CHUNK_BYTES = 1 << 25
DOWNLOAD_CHUNK_BYTES = 1 << 24
_MAX_TRANSFERS = 3

_T = TypeVar("_T")


class DamagedError(Exception):
    """The bytes did not arrive as they were sent."""


def repeat(location: str, transfer: Callable[[], _T]) -> _T:
    """Repeats a transfer, a few times, while its bytes arrive damaged.

    Args:
        location: The object, as a gs:// address.
        transfer: Moves all bytes once.

    Raises:
        StorageError: If they never arrive whole.
    """
    damages: list[DamagedError] = []
    while len(damages) < _MAX_TRANSFERS:
        try:
            return transfer()
        except DamagedError as error:
            damages.append(error)
            logging.warning("Cloud Storage: %s: %s.", location, error)
    raise errors.StorageError(
        f"The bytes of {location} do not arrive as they are sent, "
        f"{_MAX_TRANSFERS} times: {damages[-1]}. They must be the same on both "
        "sides: check the network and the memory, then run the same command "
        "again."
    ) from damages[-1]


def send(
    blob: Any,
    source: BinaryIO,
    size: int,
    generation: int | None,
    patience: Patience,
) -> None:
    """Uploads an object once; afterwards the blob has what the server reports.

    Args:
        blob: A `google.cloud.storage.Blob`.
        source: Its content, from the beginning.
        size: Bytes of the content.
        generation: Which one it replaces, 0 for none; None for any.
        patience: How long to wait.

    Raises:
        DamagedError: If it has to be sent again from the beginning.
        Exception: What the client library raises for all the rest.
    """
    from google.api_core import exceptions
    from google.cloud.storage.exceptions import DataCorruption

    blob.chunk_size = UPLOAD_CHUNK_BYTES
    try:
        blob.upload_from_file(
            source,
            size=size,
            checksum="crc32c",
            if_generation_match=generation,
            **cloud_requests.options(patience),
        )
    # The library's own state of a long upload is lost.
    except (DataCorruption, ValueError) as error:
        raise DamagedError(cloud_requests.reason(error)) from error
    except exceptions.GoogleAPICallError as error:
        # 400: another crc32c than announced. 404, 410: the server's state of a
        # long upload is lost, unless the bucket does not exist.
        if error.code not in (400, 404, 410):
            raise
        raise DamagedError(cloud_requests.reason(error)) from error


def receive(
    blob: Any, expected: FileRecord, file: BinaryIO, patience: Patience
) -> None:
    """Downloads an object once, and never more than the expected bytes.

    Args:
        blob: A `google.cloud.storage.Blob`.
        expected: The size and crc32c that it must have.
        file: Where the content goes.
        patience: How long to wait.

    Raises:
        DamagedError: If other bytes arrive.
        OSError: If the file does not take them.
        Exception: What the client library raises for all the rest.
    """
    from google.api_core import exceptions

    checksum = google_crc32c.Checksum()
    for start in range(0, expected.size, DOWNLOAD_CHUNK_BYTES):
        end = min(start + DOWNLOAD_CHUNK_BYTES, expected.size)
        try:
            data = blob.download_as_bytes(
                start=start,
                end=end - 1,
                checksum=None,  # The library's is of whole objects.
                **cloud_requests.options(patience),
            )
        except exceptions.RequestRangeNotSatisfiable:
            data = b""
        if len(data) != end - start:
            raise DamagedError(
                f"{start + len(data)} bytes arrive, not {expected.size}"
            )
        checksum.update(data)
        file.write(data)
    crc32c = checksum.digest().hex()
    if crc32c != expected.crc32c:
        raise DamagedError(
            f"what arrives has crc32c {crc32c}, not {expected.crc32c}"
        )
