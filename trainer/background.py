"""Saves beside the training, which stands still only for the snapshot."""

import time
import traceback as tracebacks
from collections.abc import Callable
from concurrent import futures
from types import TracebackType
from typing import Any

from absl import logging

from trainer import errors
from trainer.checkpoint import Checkpointer, PendingCheckpoint
from trainer.storage import manifest

_MAX_FAILED_IN_A_ROW = 3
# A server that hands over to another is back after seconds; after a signal,
# there are not many more.
_PAUSE_SECS = 3.0
_SECS_BETWEEN_BEATS = 1.0
# What takes longer hangs, and whoever watches may end it.
_MAX_WAIT_SECS = 3600.0


class BackgroundSaver:
    """Takes the state in the caller's thread and publishes it in its own.

    Enter it, so that the last save is finished at the end. At most one save is
    under way at a time. One that fails is logged and does not end the run, but
    three in a row do. What is no StorageError is a defect, which is logged at
    once, never counted as a failed save, keeps no later save from being made,
    and is raised by `check` or at the end.

    Attributes:
        num_failed: How many saves have failed.
        standstill_secs: How long the last `save` took, its waiting for the one
            before included; 0 before the first.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        on_saved: Callable[[str], None] | None = None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts nothing yet.

        Args:
            checkpointer: What saves; nobody else may use it meanwhile.
            on_saved: Is told the name of what has become durable, in the
                background thread.
            on_wait: Is called again and again, for an hour at most, while the
                caller waits for a save.
        """
        self._on_saved = on_saved
        self._on_wait = on_wait
        self.num_failed = 0
        self.standstill_secs = 0.0
        self._checkpointer = checkpointer
        self._thread = futures.ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="checkpoint"
        )
        self._under_way: futures.Future[None] | None = None
        self._defect: BaseException | None = None
        self._failed_in_a_row = 0
        self._is_saved = True
        # Its text only: an error holds the frames that it came through, and
        # one of those the whole state.
        self._last_failure = ""

    def save(self, step: int, host_state: dict[str, Any]) -> None:
        """Saves the state after a global step; returns before it is durable.

        After it, the variables may change. See `Checkpointer.take` for the
        arguments.

        Raises:
            DivergedError: If a variable holds a number that is not finite.
            UnsavedError: If the last three saves have failed, of which this
                may be the last.
        """
        start_secs = time.monotonic()
        try:
            self.finish()
            # Not a fourth time: the user must know.
            self._give_up_after(_MAX_FAILED_IN_A_ROW)
            self._begin(step, host_state)
            if self._under_way is None:
                self._give_up_after(_MAX_FAILED_IN_A_ROW)
        finally:
            self.standstill_secs = time.monotonic() - start_secs

    def save_last(self, step: int, host_state: dict[str, Any]) -> None:
        """Saves the state that nothing comes after; waits until it is durable.

        However many have failed before; and if this one does, it is tried once
        more after some seconds.

        Raises:
            DivergedError: If a variable holds a number that is not finite.
            UnsavedError: If it has failed twice.
            Exception: A defect, even one of an earlier save.
        """
        start_secs = time.monotonic()
        try:
            self.finish()
            self._begin(step, host_state)
            self.finish()
            if not self._is_saved:
                logging.info("The last save is tried once more.")
                time.sleep(_PAUSE_SECS)
                # Taken again, since it may be half there by now.
                self._begin(step, host_state)
            self.wait()
        finally:
            self.standstill_secs = time.monotonic() - start_secs

    @property
    def has_defect(self) -> bool:
        """Whether `check` would raise; asks nobody, and waits for nothing."""
        if self._under_way is not None and self._under_way.done():
            self.finish()
        return self._defect is not None

    def check(self) -> None:
        """Raises the defect of a save that has ended, once."""
        if self.has_defect:
            self._raise_defect()

    def wait(self) -> None:
        """Waits until what was saved is durable.

        Raises:
            UnsavedError: If the last save has failed.
            Exception: A defect.
        """
        self.finish()
        self._raise_defect()
        self._give_up_after(1)

    def __enter__(self) -> "BackgroundSaver":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits as `wait` does; behind another error, it raises nothing."""
        try:
            if exc is None:
                self.wait()
            else:
                self.finish()
        finally:
            self._thread.shutdown()

    def _begin(self, step: int, host_state: dict[str, Any]) -> None:
        """Takes the state, and has it published if there is need to."""
        self._is_saved = False
        try:
            pending = self._checkpointer.take(step, host_state)
        except errors.StorageError as error:
            self._note_failure(step, error)
            return
        if pending is None:
            self._note_success()
        else:
            self._under_way = self._thread.submit(self._publish, pending)

    def _publish(self, pending: PendingCheckpoint) -> None:
        try:
            self._checkpointer.publish(pending)
            self._note_success()
            if self._on_saved is not None:
                self._on_saved(manifest.checkpoint_name(pending.step))
        except errors.StorageError as error:
            self._note_failure(pending.step, error)
        except BaseException:
            logging.error(
                "Saving step %d has failed as it never should; the training "
                "ends for it, after another save.",
                pending.step,
                exc_info=True,
            )
            raise

    def finish(self) -> None:
        """Waits for the save under way; keeps what is no StorageError."""
        if self._under_way is None:
            return
        start_secs = time.monotonic()
        while not futures.wait([self._under_way], _SECS_BETWEEN_BEATS).done:
            if time.monotonic() - start_secs < _MAX_WAIT_SECS:
                self._on_wait()
        defect, self._under_way = self._under_way.exception(), None
        if defect is not None:
            # See `_last_failure`; what the lines were stays known.
            tracebacks.clear_frames(defect.__traceback__)
            self._defect = self._defect or defect

    def _raise_defect(self) -> None:
        defect, self._defect = self._defect, None
        if defect is not None:
            raise defect

    def _note_success(self) -> None:
        self._is_saved = True
        self._failed_in_a_row = 0
        self._last_failure = ""

    def _note_failure(self, step: int, error: errors.StorageError) -> None:
        self.num_failed += 1
        self._failed_in_a_row += 1
        self._last_failure = (
            f"The state of step {step} is not saved; failures in a row: "
            f"{self._failed_in_a_row}. The last one: {error}"
        )
        logging.warning(
            "The state of step %d is not saved (failure %d in a row; %d end "
            "the run): %s",
            step,
            self._failed_in_a_row,
            _MAX_FAILED_IN_A_ROW,
            str(error),  # Whoever keeps the log's records keeps no state.
        )

    def _give_up_after(self, num_failures: int) -> None:
        """Raises if at least so many of the last saves have failed."""
        if self._failed_in_a_row >= num_failures:
            raise errors.UnsavedError(
                self._last_failure, newest_good=self._checkpointer.newest_good
            )
