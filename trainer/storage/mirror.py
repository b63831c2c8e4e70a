"""Brings a local run directory to a bucket, behind the back of the training.

A run in a bucket is first a complete run in a local directory; what is new
there is uploaded (`trainer.storage.uploader`) while the training goes on.
"""

import pathlib
from collections.abc import Callable

from absl import logging

from trainer import errors
from trainer.storage import durability
from trainer.storage.bucket import Bucket
from trainer.storage.lease import Lease
from trainer.storage.local import LocalStore
from trainer.storage.manifest import BadCheckpointError
from trainer.storage.mirror_checkpoints import MirrorCheckpoints
from trainer.storage.mirror_files import MirrorFiles
from trainer.storage.uploader import Uploader

# Of the run directory: what is on its way, on the same disk for hard links.
_CACHE = ".mirror"


class Mirror:
    """A run here and in its bucket; see `download` for when uploads begin."""

    def __init__(
        self,
        root: pathlib.Path,
        local: LocalStore,
        bucket: Bucket,
        *,
        lease: Lease,
        config_digest: str,
        attempt: str,
        keep_checkpoints: int,
        keep_every_steps: int | None,
        scheduled_every_steps: int = 1,
        seconds_between_file_uploads: float = 60.0,
    ) -> None:
        """Touches nothing yet.

        Args:
            root: The local run directory.
            local: The store of its checkpoints.
            bucket: Where the run is kept.
            lease: What allows to write there; nothing is uploaded while it is
                not held.
            config_digest: The digest of what must not change within a run.
            attempt: The id of this process, a plain file name.
            keep_checkpoints: How many good ones stay in the bucket.
            keep_every_steps: Keeps those of each multiple of it for ever;
                None keeps none for ever.
            scheduled_every_steps: See `Retention`.
            seconds_between_file_uploads: Between two uploads of one file that
                changes, at least. So long may a checkpoint have to wait.
        """
        self._root = root
        self._location = bucket.location
        self._bucket = bucket
        self._lease = lease
        self._checkpoints = MirrorCheckpoints(
            local,
            bucket,
            cache=root / _CACHE,
            config_digest=config_digest,
            attempt=attempt,
            keep_checkpoints=keep_checkpoints,
            keep_every_steps=keep_every_steps,
            scheduled_every_steps=scheduled_every_steps,
        )
        self._files = MirrorFiles(
            root, bucket, secs_between_uploads=seconds_between_file_uploads
        )
        self._uploader = Uploader(
            self._files,
            self._checkpoints,
            lease=lease,
            location=bucket.location,
            secs_between_rounds=seconds_between_file_uploads,
        )
        self._newest_local: str | None = None
        self._num_not_packed = 0

    def download(
        self,
        *,
        check_config: Callable[[], object],
        check_stop: Callable[[], object] = lambda: None,
    ) -> str | None:
        """Brings here what only the bucket has; from then on, uploads.

        Call it once, before anything else is written to the run directory. The
        newest checkpoint comes last: it stands for the files up to it, and a
        start that was cut off finds that it is still missing.

        Args:
            check_config: Is called when `config.json` is here, and raises if
                the command does not continue that run.
            check_stop: Is called again and again, and raises to end this.

        Returns:
            What was done, as a sentence; None for a run that begins.

        Raises:
            CheckpointError: If there are checkpoints in one of the two places
                and none is good, or one of another configuration.
            StorageError: If the bucket does not exist, refuses or cannot be
                reached, or if the disk refuses.
        """
        with self._bucket.ended_by(check_stop):
            stored = self._bucket.list_objects("")
            num_files = self._files.download_config(stored)
            check_config()
            self._checkpoints.probe()
            newest = self._checkpoints.compare()
            fetched = newest.fetched
            num_files += self._files.download(replace=fetched is not None)
            if fetched is not None:
                self._checkpoints.adopt(fetched)
        self._checkpoints.clean_up()
        self._newest_local = fetched.name if fetched else newest.local
        uploads = None
        if self._newest_local != newest.remote:
            uploads = self._newest_local
        if uploads is not None:
            self._pack(uploads)
        self._uploader.start(newest.remote)
        return durability.beginning(
            location=self._location,
            root=self._root,
            downloaded=fetched.name if fetched else None,
            num_files=num_files,
            uploads=uploads,
        )

    def checkpoint_saved(self, name: str) -> None:
        """Takes note of a new local checkpoint; returns at once.

        Never raises for a failure of the disk or the network.

        Args:
            name: The checkpoint, which is committed and good.
        """
        self._newest_local = name
        self._pack(name)

    def close(
        self,
        deadline_secs: float,
        *,
        urgent_deadline_secs: float | None = None,
        is_urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        """Uploads what is left, and ends; never raises.

        Args:
            deadline_secs: After so long it returns, whatever the network does.
            urgent_deadline_secs: The same once it is urgent, from then on; None
                if that makes no difference.
            is_urgent: Whether the process may be killed soon, so that the
                newest checkpoint goes before its pictures; asked repeatedly.
        """
        self._uploader.close(
            deadline_secs,
            urgent_deadline_secs=urgent_deadline_secs,
            is_urgent=is_urgent,
        )

    @property
    def num_failed(self) -> int:
        """How many times something could not be uploaded."""
        return self._num_not_packed + self._uploader.num_failed

    @property
    def holds_newest(self) -> bool:
        """Whether the newest checkpoint is in the bucket, as far as known."""
        return self._newest_local == self._uploader.newest

    @property
    def lost(self) -> str | None:
        """Who else writes in the bucket now, as a sentence; None if nobody."""
        return self._lease.lost

    def durability(self) -> str:
        """Says what is durable where, as a sentence for the last line."""
        return durability.sentence(
            location=self._location,
            root=self._root,
            newest_local=self._newest_local,
            newest_remote=self._uploader.newest,
            changed_files=self._files.changed(),
            lost=self.lost,
        )

    def _pack(self, name: str) -> None:
        """Lets a checkpoint wait for its upload, in place of an older one."""
        try:
            parcel = self._checkpoints.pack(name)
        except (errors.StorageError, BadCheckpointError) as error:
            self._num_not_packed += 1
            logging.warning("%s is not uploaded: %s", name, error)
            return
        self._uploader.offer(parcel)
