"""Files that are either the old ones or the new ones, never half of each.

A process can be killed, and a machine can lose its power, between any two
instructions. What is written here appears under its final name only after its
bytes are on the disk.
"""

import contextlib
import errno
import glob
import os
import pathlib
import secrets
import time

from trainer import errors

# No write takes as long; a shorter time could hit that of a live process.
_LEFTOVER_SECS = 3600


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes or replaces one small file at once and durably.

    Also removes what killed processes left behind of the same file.

    Args:
        path: The file. Its directory must exist.
        data: The whole content.

    Raises:
        StorageError: If the file cannot be written; what was there before
            is still there then.
    """
    # In the same directory, because a rename is atomic only within one file
    # system; with a random part, because two processes may write one name.
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)
    except OSError as error:
        raise storage_error("write", path, error) from error
    _remove_leftovers(path)


def make_directory(path: pathlib.Path) -> None:
    """Makes a directory and those above it, if they do not exist.

    Raises:
        StorageError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("create", path, error) from error


def fsync_file(path: pathlib.Path) -> None:
    """Puts a file's bytes on the disk.

    Raises:
        OSError: If the disk does not take them.
    """
    _fsync(path, os.O_RDONLY)


def fsync_directory(path: pathlib.Path) -> None:
    """Puts a directory's entries (new names, renames) on the disk.

    Raises:
        OSError: If the disk does not take them.
    """
    try:
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        # Some network and FUSE file systems know no fsync of a directory;
        # there is nothing more that could be done on them.
        if error.errno != errno.EINVAL:
            raise


def storage_error(
    action: str, path: pathlib.Path | str, error: Exception
) -> errors.StorageError:
    """Makes the error that tells a user what the disk refused.

    Args:
        action: What was tried, a verb such as "write".
        path: What it was tried on.
        error: The reason, as the operating system or TensorFlow gave it.
    """
    reason = getattr(error, "strerror", None) or str(error)
    return errors.StorageError(
        f"Cannot {action} {path}: {reason}. The directory must be writable "
        "and have free space: make room or repair it, or choose another one "
        "(--workdir, --cache_dir or --output, where it comes from), then run "
        "the same command again."
    )


def _remove_leftovers(path: pathlib.Path) -> None:
    oldest = time.time() - _LEFTOVER_SECS
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        # They take some room and do no harm, unlike an error here.
        with contextlib.suppress(OSError):
            if leftover.stat().st_mtime < oldest:
                leftover.unlink()


def _fsync(path: pathlib.Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
