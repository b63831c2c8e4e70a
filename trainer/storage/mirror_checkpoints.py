"""Bringing single checkpoints from a local store to a bucket and back."""

import contextlib
import dataclasses
import os
import pathlib
import shutil

from absl import logging

from trainer import atomic_file, errors
from trainer.retention import Retention
from trainer.storage import finder
from trainer.storage.bucket import Bucket
from trainer.storage.finder import StoredCheckpoint
from trainer.storage.local import LocalStore
from trainer.storage.manifest import BadCheckpointError, Manifest, step_of
from trainer.storage.remote import RemoteStore


@dataclasses.dataclass(frozen=True)
class Parcel:
    """A checkpoint on its way to the bucket, with files of its own."""

    manifest: Manifest
    directory: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Newest:
    """The names of the newest good checkpoints, None where there is none.

    Attributes:
        local: Of those here.
        remote: Of those in the bucket.
        downloaded: Whether the one here has just come from the bucket.
    """

    local: str | None
    remote: str | None
    downloaded: bool


class MirrorCheckpoints:
    """Two stores of the same run.

    Threads may pack, discard and send, but each only one at a time.
    """

    def __init__(
        self,
        local: LocalStore,
        bucket: Bucket,
        *,
        cache: pathlib.Path,
        config_digest: str,
        attempt: str,
        keep_checkpoints: int,
        keep_every_steps: int | None,
    ) -> None:
        """Touches nothing yet.

        Args:
            local: Where the run saves.
            bucket: Where the run is kept.
            cache: A directory on the disk of `local`, for what is on its way.
            config_digest: The digest of the run's configuration.
            attempt: The id of this process.
            keep_checkpoints: See `Retention`; so it is in the bucket.
            keep_every_steps: See `Retention`.
        """
        self._local = local
        self._remote = RemoteStore(bucket, cache=cache)
        self._cache = LocalStore(cache)
        self._config_digest = config_digest
        self._attempt = attempt
        self._retention = Retention(
            self._remote,
            keep_checkpoints=keep_checkpoints,
            keep_every_steps=keep_every_steps,
            config_digest=config_digest,
        )

    def synchronize(self) -> Newest:
        """Brings the newest good checkpoint here, if only the bucket has it.

        Raises:
            CheckpointError: If there are some and none is good, or if one was
                written with another configuration.
            StorageError: If one of the two places cannot be used.
        """
        remote_name = self._newest_in_bucket()
        local = self._newest_local(remote_name)
        if local is not None and not _is_newer(remote_name, local.name):
            return Newest(local.name, remote_name, False)
        # Raises if the bucket has some and none is good.
        remote = finder.find_newest(
            self._remote, config_digest=self._config_digest
        )
        downloads = remote is not None and _is_newer(
            remote.name, local.name if local else None
        )
        if remote is not None and downloads:
            self._adopt(remote)
            local = remote
        for name in self._cache.list_names():
            self._cache.delete(name)
        return Newest(
            local.name if local else None,
            remote.name if remote else None,
            downloads,
        )

    def pack(self, name: str) -> Parcel:
        """Makes a local checkpoint safe from being pruned before it is sent.

        Raises:
            BadCheckpointError: If it has no good manifest.
            StorageError: If the disk refuses.
        """
        record = self._local.read_manifest(name)
        staging = self._remote.stage(name, attempt=self._attempt)
        try:
            _link_files(self._local.fetch(record), staging, record)
        except BaseException:
            self._remote.discard(staging)
            raise
        return Parcel(record, staging)

    def discard(self, parcel: Parcel) -> None:
        """Drops what will not be sent."""
        self._remote.discard(parcel.directory)

    def send(self, parcel: Parcel) -> None:
        """Uploads a checkpoint, verifies it and deletes older ones there.

        One that is there already and good stays as it is. After an error, the
        parcel can be sent again.

        Raises:
            BadCheckpointError: If it does not read back as it was sent.
            StorageError: If the bucket refuses.
        """
        name = parcel.manifest.name
        if self._is_in_bucket(name):
            self._remote.discard(parcel.directory)
        elif not parcel.directory.is_dir():
            # Sent before, and no longer there or no longer good.
            raise BadCheckpointError(f"{name} is damaged in the bucket")
        else:
            self._remote.commit(parcel.directory, parcel.manifest)
            self._retention.verify(name)
        self._retention.prune(name)

    def _newest_in_bucket(self) -> str | None:
        """Finds it by what the server says, without a download."""
        for name in finder.newest_first(self._remote):
            with contextlib.suppress(BadCheckpointError):
                self._retention.verify(name)
                return name
        return None

    def _newest_local(self, remote_name: str | None) -> StoredCheckpoint | None:
        try:
            return finder.find_newest(
                self._local, config_digest=self._config_digest
            )
        except errors.CheckpointError as error:
            if remote_name is None:
                raise
            logging.warning(
                "%s from %s is taken instead: %s",
                remote_name,
                self._remote.location,
                error,
            )
            return None

    def _adopt(self, stored: StoredCheckpoint) -> None:
        """Puts a fetched checkpoint into the local store."""
        record = self._remote.read_manifest(stored.name)
        if stored.name in self._local.list_names():
            logging.warning(
                "%s in %s is not good and is replaced by that in %s.",
                stored.name,
                self._local.location,
                self._remote.location,
            )
            self._local.delete(stored.name)
        staging = self._local.stage(stored.name, attempt=self._attempt)
        try:
            _link_files(stored.directory, staging, record)
            self._local.commit(staging, record)
        except BaseException:
            self._local.discard(staging)
            raise

    def _is_in_bucket(self, name: str) -> bool:
        if name not in self._remote.list_names():
            return False
        try:
            self._retention.verify(name)
        except BadCheckpointError as error:
            logging.warning(
                "%s in %s is replaced: %s", name, self._remote.location, error
            )
            self._remote.delete(name)
            return False
        return True


def _is_newer(name: str | None, other: str | None) -> bool:
    """Compares the steps of two checkpoints; None is older than any."""
    return _step(name) > _step(other)


def _step(name: str | None) -> int:
    step = None if name is None else step_of(name)
    return -1 if step is None else step


def _link_files(
    source: pathlib.Path, target: pathlib.Path, record: Manifest
) -> None:
    """Links the files of a checkpoint, which nobody writes to any more.

    The manifest is none of them: each store writes its own.

    Raises:
        StorageError: If the disk refuses.
    """
    for file in record.files:
        try:
            try:
                os.link(source / file.name, target / file.name)
            except OSError:
                # Another disk, or a file system that has no links.
                shutil.copyfile(source / file.name, target / file.name)
        except OSError as error:
            raise atomic_file.storage_error(
                "write", target / file.name, error
            ) from error
