"""Bringing single checkpoints from a local store to a bucket and back."""

import contextlib
import dataclasses
import os
import pathlib
import shutil

from absl import logging

from trainer import atomic_file, errors, preflight
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
    best: str | None
    is_kept: bool  # However many newer ones come: the best, or for ever.


@dataclasses.dataclass(frozen=True)
class Newest:
    """The names of the newest good checkpoints, None where there is none.

    Attributes:
        local: Of those here.
        remote: Of those in the bucket.
        fetched: That of the bucket, if it is newer; see `adopt`.
    """

    local: str | None
    remote: str | None
    fetched: StoredCheckpoint | None


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
        scheduled_every_steps: int,
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
            scheduled_every_steps: See `Retention`.
        """
        self._local = local
        self._remote = RemoteStore(bucket, cache=cache)
        self._cache = LocalStore(cache)
        self._cache_directory = cache
        self._config_digest = config_digest
        self._attempt = attempt
        self._retention = Retention(
            self._remote,
            keep_checkpoints=keep_checkpoints,
            keep_every_steps=keep_every_steps,
            scheduled_every_steps=scheduled_every_steps,
            config_digest=config_digest,
        )

    def probe(self) -> None:
        """Really saves a small checkpoint in the bucket, and deletes it.

        Raises:
            StorageError: If anything of that is not permitted.
        """
        # A bucket has no end, so that the size does not matter.
        preflight.probe(
            self._remote,
            keep_checkpoints=1,
            checkpoint_bytes=0,
            attempt=self._attempt,
        )

    def compare(self) -> Newest:
        """Finds the newest on both sides, and fetches what is newer there.

        Raises:
            CheckpointError: If there are some and none is good, or if one was
                written with another configuration.
            StorageError: If one of the two places cannot be used.
        """
        remote_name = self._newest_in_bucket()
        local = self._newest_local(remote_name)
        local_name = local.name if local else None
        if local is not None and not _is_newer(remote_name, local.name):
            return Newest(local_name, remote_name, None)
        # Raises if the bucket has some and none is good.
        remote = finder.find_newest(
            self._remote, config_digest=self._config_digest
        )
        if remote is None or not _is_newer(remote.name, local_name):
            return Newest(local_name, remote.name if remote else None, None)
        return Newest(local_name, remote.name, remote)

    def adopt(self, stored: StoredCheckpoint) -> None:
        """Puts what was fetched into the local store.

        Raises:
            StorageError: If the disk refuses.
        """
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

    def clean_up(self) -> None:
        """Removes what was fetched, also by a process that was killed."""
        for name in self._cache.list_names():
            self._cache.delete(name)
        with contextlib.suppress(OSError):  # Unless something is on its way.
            self._cache_directory.rmdir()

    def pack(self, name: str) -> Parcel:
        """Makes a local checkpoint safe from being pruned before it is sent.

        Raises:
            BadCheckpointError: If it has no good manifest.
            StorageError: If the disk refuses.
        """
        record = self._local.read_manifest(name)
        best = finder.best_name(
            finder.read_host_state(self._local.fetch(record))
        )
        staging = self._remote.stage(name, attempt=self._attempt)
        try:
            _link_files(self._local.fetch(record), staging, record)
        except BaseException:
            self._remote.discard(staging)
            raise
        is_kept = name == best or self._retention.is_for_ever(name)
        return Parcel(record, staging, best, is_kept)

    def discard(self, parcel: Parcel) -> None:
        """Drops what will not be sent."""
        self._remote.discard(parcel.directory)

    def send(self, parcel: Parcel) -> None:
        """Uploads a checkpoint, verifies it and deletes older ones there.

        The very same one stays as it is; one of other content is replaced, for
        who has the lease is right. After an error, the parcel can be sent
        again.

        Raises:
            BadCheckpointError: If it does not read back as it was sent.
            StorageError: If the bucket refuses.
        """
        name = parcel.manifest.name
        found = self._find_good(name)
        if found is not None and found.files == parcel.manifest.files:
            self._remote.discard(parcel.directory)
        elif not parcel.directory.is_dir():
            # Sent before, and no longer there or no longer good.
            raise BadCheckpointError(f"{name} is damaged in the bucket")
        else:
            if found is None:
                self._remote.commit(parcel.directory, parcel.manifest)
            else:
                # The same step on another way there, before a rollback perhaps.
                logging.warning(
                    "%s in %s is replaced: attempt %s has saved something else",
                    *(name, self._remote.location, found.attempt),
                )
                self._remote.replace(parcel.directory, parcel.manifest)
            self._retention.verify(name)
        self._retention.protect_best(parcel.best)
        self._retention.prune(name)

    def _newest_in_bucket(self) -> str | None:
        """Finds it by what the server says, without a download."""
        for name in finder.newest_first(self._remote):
            try:
                self._retention.verify(name)
                return name
            except BadCheckpointError as error:
                logging.warning(
                    "%s in %s is skipped: %s",
                    name,
                    self._remote.location,
                    error,
                )
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

    def _find_good(self, name: str) -> Manifest | None:
        """Returns a good one's record; the place of a bad one is made free."""
        if name not in self._remote.list_names():
            return None
        try:
            return self._retention.verify(name)
        except BadCheckpointError as error:
            logging.warning(
                "%s in %s is replaced: %s", name, self._remote.location, error
            )
        self._remote.delete(name)
        return None


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
