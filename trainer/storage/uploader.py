"""Uploads what is new of a run, in a thread of its own.

Metrics and pictures go before the checkpoint, so that none in the bucket is
ahead of them, and then the rest. What fails is logged and tried again later;
the training never waits and never fails for it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from absl import logging

from trainer import errors
from trainer.storage.lease import Lease
from trainer.storage.manifest import BadCheckpointError
from trainer.storage.mirror_checkpoints import MirrorCheckpoints, Parcel
from trainer.storage.mirror_files import MirrorFiles
from trainer.storage.objects import RefusedError

_POLL_SECS = 1.0
# At the end, a file that is refused for good is tried so often.
_MAX_LAST_REFUSALS = 3


class Uploader:
    """The uploads of one run, from `start` to `close`.

    Attributes:
        newest: The newest checkpoint that was verified in the bucket, by name.
        num_failed: How many rounds have failed.
    """

    def __init__(
        self,
        files: MirrorFiles,
        checkpoints: MirrorCheckpoints,
        *,
        lease: Lease,
        location: str,
        secs_between_rounds: float,
    ) -> None:
        """Touches nothing yet.

        Args:
            files: Uploads the files beside the checkpoints.
            checkpoints: Uploads those.
            lease: What allows to write; nothing is uploaded while it is not
                held.
            location: The bucket and prefix, for messages.
            secs_between_rounds: So long may a checkpoint have to wait.
        """
        self.newest: str | None = None
        self.num_failed = 0
        self._files = files
        self._checkpoints = checkpoints
        self._lease = lease
        self._location = location
        self._secs_between_rounds = secs_between_rounds
        self._next_round_secs = 0.0
        self._last_reason: str | None = None
        self._num_last_refusals = 0
        self._waiting: list[Parcel] = []  # The newest last.
        self._lock = threading.Lock()  # Of what is waiting.
        self._wake = threading.Event()
        self._deadline_secs: float | None = None
        self._is_urgent = False
        self._thread = threading.Thread(
            target=self._run, name="uploader", daemon=True
        )

    def start(self, newest: str | None) -> None:
        """Begins; `newest` is the newest good checkpoint in the bucket."""
        self.newest = newest
        self._thread.start()

    def offer(self, parcel: Parcel) -> None:
        """Lets a checkpoint wait for its upload.

        It takes the place of older ones, but for those that are to be kept:
        they wait too, and hold their room on the disk as long.
        """
        with self._lock:
            replaced = [old for old in self._waiting if not old.is_kept]
            kept = [old for old in self._waiting if old.is_kept]
            self._waiting = [*kept, parcel]
        for old in replaced:
            self._drop(old)
        self._wake.set()

    def close(
        self,
        deadline_secs: float,
        *,
        urgent_deadline_secs: float | None,
        is_urgent: Callable[[], bool],
    ) -> None:
        """Uploads what is left, and ends; see `Mirror.close`."""
        end_secs = time.monotonic() + deadline_secs
        while True:
            if not self._is_urgent and is_urgent():
                self._is_urgent = True
                if urgent_deadline_secs is not None:
                    urgent_secs = time.monotonic() + urgent_deadline_secs
                    end_secs = min(end_secs, urgent_secs)
            if self._deadline_secs != end_secs:
                self._deadline_secs = end_secs
                self._wake.set()
            left_secs = end_secs - time.monotonic()
            if not self._thread.is_alive() or left_secs <= 0:
                return
            self._thread.join(min(left_secs, _POLL_SECS))

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
                is_done = end_secs is not None and self._is_refused(error)
            if end_secs is not None and (
                is_done or self._lease.lost or time.monotonic() >= end_secs
            ):
                return

    def _upload(self, *, is_last: bool) -> bool:
        """Uploads what is due; tells whether that was done.

        Raises:
            BadCheckpointError: If a checkpoint does not arrive as it was sent.
            RefusedError: If the bucket refuses some of it.
            StorageError: If the bucket cannot be written.
        """
        if not self._may_go_on():
            return False  # The lease says why.

        def may_upload_files() -> bool:
            # When the end comes, the newest checkpoint goes before what is left
            # of the round.
            is_awaited = self._deadline_secs is not None and not is_last
            return self._may_go_on() and not is_awaited

        if not is_last and time.monotonic() < self._next_round_secs:
            if self._last_reason is None:
                self._files.upload_new_pictures(may_upload_files)
            return True
        with self._lock:
            # After a signal, the seconds belong to the newest.
            next_one = -1 if self._is_urgent else 0
            parcel = self._waiting.pop(next_one) if self._waiting else None
        sends_checkpoint = parcel is not None
        refusals: list[RefusedError] = []
        try:
            if parcel is not None:
                # What it stands for: a machine that goes on from it makes no
                # earlier record or picture again.
                with _collected(refusals):
                    self._files.upload_records(self._may_go_on)
                with _collected(refusals):
                    if not self._is_urgent:
                        self._files.upload_new_pictures(may_upload_files)
                if self._may_go_on():
                    self._checkpoints.send(parcel)
                    name, parcel = parcel.manifest.name, None
                    self.newest = max(self.newest or name, name)
            with _collected(refusals):
                self._files.upload_changed(
                    may_upload_files,
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
        if refusals:
            raise refusals[0]
        if self._last_reason is not None:
            logging.info("%s takes uploads again.", self._location)
        self._last_reason = None
        return parcel is None and not self._waiting and self._may_go_on()

    def _may_go_on(self) -> bool:
        end_secs = self._deadline_secs
        is_late = end_secs is not None and time.monotonic() > end_secs
        return self._lease.held and not is_late

    def _put_back(self, parcel: Parcel) -> None:
        """Lets a checkpoint wait again, unless a newer one does."""
        name = parcel.manifest.name
        with self._lock:
            has_newer = any(w.manifest.name > name for w in self._waiting)
            if parcel.is_kept or not has_newer:
                self._waiting.append(parcel)
                self._waiting.sort(key=lambda w: w.manifest.name)
                return
        self._drop(parcel)

    def _drop(self, parcel: Parcel) -> None:
        name = parcel.manifest.name
        logging.info("%s is not uploaded: a newer one is there.", name)
        self._checkpoints.discard(parcel)

    def _is_refused(self, error: Exception) -> bool:
        """Whether the last rounds fail for a file that will not be taken."""
        if not isinstance(error, RefusedError) or self._waiting:
            return False
        self._num_last_refusals += 1
        return self._num_last_refusals >= _MAX_LAST_REFUSALS

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


@contextlib.contextmanager
def _collected(refusals: list[RefusedError]) -> Iterator[None]:
    """Goes on after a refusal: the rest of a round may be welcome."""
    try:
        yield
    except RefusedError as error:
        refusals.append(error)
