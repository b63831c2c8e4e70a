"""Reading the files of a checkpoint on a local disk, and nothing else there."""

import errno
import os
import pathlib
import stat
from typing import BinaryIO

import google_crc32c

from trainer.storage import manifest

_CHUNK_BYTES = 1 << 20


def describe(
    directory: pathlib.Path, *, step: int, attempt: str, config_digest: str
) -> manifest.Manifest:
    """Makes the manifest of the files in a directory.

    TensorFlow puts a bundle together in `state_temp/` and removes that, in
    silence if it cannot, which happens on network file systems. The bundle is
    complete then, and the directory no part of it.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If an entry is no regular file with a plain name.
    """
    names = sorted(
        entry.name
        for entry in directory.iterdir()
        if not (entry.name.endswith("_temp") and _is_directory(entry))
    )
    return manifest.Manifest(
        step=step,
        attempt=attempt,
        config_digest=config_digest,
        files=tuple(measure(directory / name) for name in names),
    )


def measure(path: pathlib.Path) -> manifest.FileRecord:
    """Reads a file once, in chunks, for its size and crc32c.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no regular file or has no plain name.
    """
    if not manifest.is_plain_name(path.name):
        raise ValueError(f"{path.name!r} is not a plain file name")
    checksum = google_crc32c.Checksum()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum.update(chunk)
        size = file.tell()
    return manifest.FileRecord(
        name=path.name, size=size, crc32c=checksum.digest().hex()
    )


def open_regular(path: pathlib.Path) -> BinaryIO:
    """Opens a regular file for reading bytes, and nothing else.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is a symbolic link, directory, pipe or device.
    """
    # Without O_NONBLOCK, opening a pipe would wait for a writer for ever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(f"{path.name} is a symbolic link") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path.name} is not a regular file")
    return open(descriptor, "rb")


def _is_directory(path: pathlib.Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)
