"""Checkpoints in a directory of a local or mounted file system.

    checkpoints/step-000000350/                the checkpoint
    checkpoints/step-000000350.tmp-ATTEMPT/    being written
    checkpoints/step-000000300.deleting-TOKEN/ being deleted

The final name appears by a rename, after every byte is on the disk, and goes
by a rename, before the first byte is removed.

A writer holds a lock (`flock`) on its staging directory until it is committed.
The kernel drops the lock with the process, so that a lock that can be had
means a dead owner, whichever host name or process id it had: both repeat in
containers. Where the file system has no locks, left-over staging directories
stay, because a second live process could own them.

Two live writers in one directory are the user's mistake. The worst that it can
do here is to fail one of their saves; what is committed stays.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator

from absl import logging

from trainer import atomic_file, errors
from trainer.storage import files
from trainer.storage.manifest import (
    FILE_NAME,
    MAX_MANIFEST_BYTES,
    BadCheckpointError,
    FileRecord,
    Manifest,
    checkpoint_name,
    parse,
    step_of,
)

_TEMPORARY = re.compile(r"step-[0-9]+\.tmp-.+")
_DELETING = re.compile(r"step-[0-9]+\.deleting-.+")


class LocalStore:
    """A `CheckpointStore` in one local directory."""

    def __init__(self, root: pathlib.Path) -> None:
        """Touches nothing: the directory is made by the first `stage`.

        Args:
            root: The directory whose subdirectories are the checkpoints.
        """
        self._root = root
        self._locks: dict[pathlib.Path, int] = {}

    @property
    def location(self) -> str:
        """The directory."""
        return str(self._root)

    def stage(self, name: str, *, attempt: str) -> pathlib.Path:
        """See `CheckpointStore.stage`."""
        staging = self._root / f"{name}.tmp-{attempt}"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            staging.mkdir()
            self._locks[staging] = os.open(
                staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except OSError as error:
            raise atomic_file.storage_error("write", staging, error) from error
        # Without locks nobody else removes a staging directory either.
        with contextlib.suppress(OSError):
            _lock(self._locks[staging])
        return staging

    def commit(self, staging: pathlib.Path, manifest: Manifest) -> None:
        """See `CheckpointStore.commit`."""
        target = self._root / manifest.name
        try:
            for file in manifest.files:
                atomic_file.fsync_file(staging / file.name)
            record = staging / FILE_NAME
            record.write_bytes(manifest.to_bytes())
            atomic_file.fsync_file(record)
            atomic_file.fsync_directory(staging)
            os.rename(staging, target)
            atomic_file.fsync_directory(self._root)
            # The first commit also made the root itself.
            atomic_file.fsync_directory(self._root.parent)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise errors.StorageError(
                    f"{target} exists already: another process wrote it "
                    "meanwhile. One run directory serves one run at a time: "
                    "end the other process, or choose another --workdir."
                ) from error
            raise atomic_file.storage_error("write", target, error) from error
        self._unlock(staging)

    def discard(self, staging: pathlib.Path) -> None:
        """See `CheckpointStore.discard`."""
        shutil.rmtree(staging, ignore_errors=True)
        self._unlock(staging)

    def list_names(self) -> list[str]:
        """See `CheckpointStore.list_names`."""
        return [name for name in self._entries() if step_of(name) is not None]

    def read_manifest(self, name: str) -> Manifest:
        """See `CheckpointStore.read_manifest`."""
        directory = self._root / name
        if directory.is_symlink() or not directory.is_dir():
            raise BadCheckpointError(f"{name} is no directory")
        try:
            with files.open_regular(directory / FILE_NAME) as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError as error:
            raise BadCheckpointError(f"{FILE_NAME} is missing") from error
        except (OSError, ValueError) as error:
            raise BadCheckpointError(
                f"{FILE_NAME} cannot be read: {error}"
            ) from error
        return parse(data, name=name)

    def problems(self, manifest: Manifest) -> list[str]:
        """See `CheckpointStore.problems`."""
        directory = self._root / manifest.name
        found = [_problem(directory, file) for file in manifest.files]
        return [problem for problem in found if problem is not None]

    def fetch(self, manifest: Manifest) -> pathlib.Path:
        """See `CheckpointStore.fetch`."""
        return self._root / manifest.name

    def delete(self, name: str) -> None:
        """See `CheckpointStore.delete`."""
        path = self._root / name
        doomed = self._root / f"{name}.deleting-{secrets.token_hex(4)}"
        try:
            os.rename(path, doomed)
            atomic_file.fsync_directory(self._root)
            _remove(doomed)
        except OSError as error:
            raise atomic_file.storage_error("delete", path, error) from error

    def free_bytes(self) -> int | None:
        """See `CheckpointStore.free_bytes`."""
        try:
            usage = shutil.disk_usage(self._root)
        except OSError as error:
            raise atomic_file.storage_error(
                "read", self._root, error
            ) from error
        # Some FUSE file systems answer with zeros only.
        return usage.free if usage.total else None

    @contextlib.contextmanager
    def scratch(self, *, attempt: str) -> Iterator["LocalStore"]:
        """See `CheckpointStore.scratch`."""
        # In a staging directory: no reader looks there, and if this process
        # dies, the next `stage` removes it.
        staging = self.stage(checkpoint_name(0), attempt=f"scratch-{attempt}")
        try:
            yield LocalStore(staging)
        finally:
            self.discard(staging)

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self._root)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise atomic_file.storage_error(
                "read", self._root, error
            ) from error

    def _remove_leftovers(self) -> None:
        for name in self._entries():
            path = self._root / name
            if _TEMPORARY.fullmatch(name):
                removable = _has_no_owner(path)
            else:
                # Whoever renamed it had decided; two may remove it at once.
                removable = _DELETING.fullmatch(name) is not None
            if not removable:
                continue
            logging.info("Removing %s, left over by a crash.", path)
            try:
                _remove(path)
            except OSError as error:
                logging.warning("Cannot remove %s: %s", path, error)

    def _unlock(self, staging: pathlib.Path) -> None:
        descriptor = self._locks.pop(staging, None)
        if descriptor is not None:
            os.close(descriptor)


def _problem(directory: pathlib.Path, record: FileRecord) -> str | None:
    path = directory / record.name
    try:
        size = path.lstat().st_size
        # Compared first: what has another size need not be read at all.
        if size != record.size:
            return f"{record.name} has {size} bytes, not {record.size}"
        crc32c = files.measure(path).crc32c
    except FileNotFoundError:
        return f"{record.name} is missing"
    except (OSError, ValueError) as error:
        return f"{record.name} cannot be read: {error}"
    if crc32c != record.crc32c:
        return f"{record.name} has crc32c {crc32c}, not {record.crc32c}"
    return None


def _has_no_owner(staging: pathlib.Path) -> bool:
    try:
        descriptor = os.open(
            staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )
    except OSError:
        return False
    try:
        _lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _lock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
