"""Brings a local run directory to a bucket, behind the back of the training.

A run in a bucket is first a complete run in a local directory. One thread
uploads what is new: metrics and pictures before the checkpoint, so that none in
the bucket is ahead of them, and then the rest. What fails is logged
and tried again later; the training never waits and never fails for it.
"""

import pathlib
import threading
import time
from collections.abc import Callable

from absl import logging

from trainer import errors
from trainer.storage import durability
from trainer.storage.bucket import Bucket
from trainer.storage.lease import Lease
from trainer.storage.local import LocalStore
from trainer.storage.manifest import BadCheckpointError
from trainer.storage.mirror_checkpoints import MirrorCheckpoints, Parcel
from trainer.storage.mirror_files import MirrorFiles

# Of the run directory: what is on its way, on the same disk for hard links.
_CACHE = ".mirror"
_POLL_SECS = 1.0


class Mirror:
    """The uploads of one run; see `download` for when they begin.

    Attributes:
        num_failed: How many times something could not be uploaded.
    """

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
            seconds_between_file_uploads: Between two uploads of one file that
                changes, at least. So long may a checkpoint have to wait.
        """
        self.num_failed = 0
        self._root = root
        self._location = bucket.location
        self._bucket = bucket
        self._lease = lease
        self._files = MirrorFiles(
            root,
            bucket,
            secs_between_uploads=seconds_between_file_uploads,
            may_go_on=self._may_go_on,
        )
        self._checkpoints = MirrorCheckpoints(
            local,
            bucket,
            cache=root / _CACHE,
            config_digest=config_digest,
            attempt=attempt,
            keep_checkpoints=keep_checkpoints,
            keep_every_steps=keep_every_steps,
        )
        self._secs_between_rounds = seconds_between_file_uploads
        self._next_round_secs = 0.0
        self._last_reason: str | None = None
        self._newest_local: str | None = None
        self._newest_remote: str | None = None
        self._waiting: Parcel | None = None
        self._lock = threading.Lock()  # Of what is waiting.
        self._wake = threading.Event()
        self._deadline_secs: float | None = None
        self._thread = threading.Thread(
            target=self._run, name="mirror", daemon=True
        )

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
        self._newest_remote = newest.remote
        uploads = None
        if self._newest_local != self._newest_remote:
            uploads = self._newest_local
        if uploads is not None:
            self._pack(uploads)
        self._thread.start()
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
        self._wake.set()

    def close(self, deadline_secs: float) -> None:
        """Uploads what is left, once more, and ends; never raises.

        Args:
            deadline_secs: After so long it returns, whatever the network does.
        """
        self._deadline_secs = time.monotonic() + deadline_secs
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(deadline_secs)

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
            newest_remote=self._newest_remote,
            changed_files=self._files.changed(),
            lost=self.lost,
        )

    def _pack(self, name: str) -> None:
        """Lets a checkpoint wait for its upload, in place of an older one."""
        try:
            parcel = self._checkpoints.pack(name)
        except (errors.StorageError, BadCheckpointError) as error:
            self.num_failed += 1
            logging.warning("%s is not uploaded: %s", name, error)
            return
        with self._lock:
            replaced, self._waiting = self._waiting, parcel
        if replaced is not None:
            self._checkpoints.discard(replaced)

    def _run(self) -> None:
        """Uploads until `close`, and then until all is there or it is late."""
        while True:
            self._wake.wait(min(_POLL_SECS, self._secs_between_rounds))
            self._wake.clear()
            end_secs = self._deadline_secs
            try:
                is_done = self._upload(is_last=end_secs is not None)
            # Whatever it is, a defect of ours too: the training goes on.
            except Exception as error:
                self._note_failure(error)
                is_done = False
            if end_secs is not None and (
                is_done or self.lost or time.monotonic() >= end_secs
            ):
                return

    def _upload(self, *, is_last: bool) -> bool:
        """Uploads what is due; tells whether that was done.

        Raises:
            BadCheckpointError: If a checkpoint does not arrive as it was sent.
            StorageError: If the bucket refuses.
        """
        if not self._may_go_on():
            return False  # The lease says why.
        if not is_last and time.monotonic() < self._next_round_secs:
            if self._last_reason is None:
                self._files.upload_new_pictures()
            return True
        with self._lock:
            parcel, self._waiting = self._waiting, None
        sends_checkpoint = parcel is not None
        try:
            if parcel is not None:
                # What it stands for: a machine that goes on from it makes no
                # earlier record or picture again.
                self._files.upload_records()
                self._files.upload_new_pictures()
                if self._may_go_on():
                    self._checkpoints.send(parcel)
                    self._newest_remote, parcel = parcel.manifest.name, None
            # After it: whoever is given a few seconds needs the checkpoint.
            self._files.upload_changed(
                all_files=is_last or sends_checkpoint,
                # Once a round is enough.
                records=not sends_checkpoint,
            )
        except BadCheckpointError:
            if parcel is not None:
                self._checkpoints.discard(parcel)
                parcel = None
            raise
        finally:
            if parcel is not None:
                self._put_back(parcel)
            self._next_round_secs = time.monotonic() + self._secs_between_rounds
        if self._last_reason is not None:
            logging.info("%s takes uploads again.", self._location)
        self._last_reason = None
        return parcel is None and self._may_go_on()

    def _may_go_on(self) -> bool:
        end_secs = self._deadline_secs
        is_late = end_secs is not None and time.monotonic() > end_secs
        return self._lease.held and not is_late

    def _put_back(self, parcel: Parcel) -> None:
        """Lets a checkpoint wait again, unless a newer one does."""
        with self._lock:
            if self._waiting is None:
                self._waiting = parcel
                return
        self._checkpoints.discard(parcel)

    def _note_failure(self, error: Exception) -> None:
        """Counts a failure, and logs it unless it is the last one again."""
        self.num_failed += 1
        if str(error) == self._last_reason:
            return
        self._last_reason = str(error)
        is_known = isinstance(error, errors.TrainerError | BadCheckpointError)
        logging.warning(
            "The upload to %s fails; the training goes on, and it is tried "
            "again every %g s: %s",
            self._location,
            self._secs_between_rounds,
            error,
            exc_info=None if is_known else error,
        )
