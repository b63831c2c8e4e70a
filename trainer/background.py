"""Saves beside the training, which stands still only for the snapshot."""

import time
from collections.abc import Callable
from concurrent import futures
from types import TracebackType
from typing import Any

from absl import logging

from trainer import errors
from trainer.checkpoint import Checkpointer, PendingCheckpoint
from trainer.storage import manifest

_MAX_FAILED_IN_A_ROW = 3


class BackgroundSaver:
    """Takes the state in the caller's thread and publishes it in its own.

    Enter it, so that the last save is finished at the end. At most one save is
    under way at a time. One that fails is logged and does not end the run, but
    three in a row do. What is no StorageError is never counted as a failed
    save: it is raised as it is, by the next call.

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
    ) -> None:
        """Starts nothing yet.

        Args:
            checkpointer: What saves; nobody else may use it meanwhile.
            on_saved: Is told the name of what has become durable, in the
                background thread.
        """
        self._on_saved = on_saved
        self.num_failed = 0
        self.standstill_secs = 0.0
        self._checkpointer = checkpointer
        self._thread = futures.ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="checkpoint"
        )
        self._under_way: futures.Future[None] | None = None
        self._failed_in_a_row = 0
        self._last_error: errors.StorageError | None = None

    def save(self, step: int, host_state: dict[str, Any]) -> None:
        """Saves the state after a global step; returns before it is durable.

        After it, the variables may change. See `Checkpointer.take` for the
        arguments.

        Raises:
            DivergedError: If a variable holds a number that is not finite.
            StorageError: If the last three saves have failed, of which this
                may be the last.
            Exception: What the save before raised, if it is no StorageError.
        """
        start_secs = time.monotonic()
        try:
            self._finish()
            # Not a fourth time: the user must know.
            self._give_up_after(_MAX_FAILED_IN_A_ROW)
            try:
                pending = self._checkpointer.take(step, host_state)
            except errors.StorageError as error:
                self._note_failure(step, error)
                self._give_up_after(_MAX_FAILED_IN_A_ROW)
                return
            if pending is None:
                self._note_success()
            else:
                self._under_way = self._thread.submit(self._publish, pending)
        finally:
            self.standstill_secs = time.monotonic() - start_secs

    def wait(self) -> None:
        """Waits until what was saved is durable.

        Raises:
            StorageError: If the last save has failed.
            Exception: What it raised, if that is no StorageError.
        """
        self._finish()
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
        finally:
            self._thread.shutdown()
        if self._under_way and (hidden := self._under_way.exception()):
            logging.error("The last save failed.", exc_info=hidden)

    def _publish(self, pending: PendingCheckpoint) -> None:
        try:
            self._checkpointer.publish(pending)
        except errors.StorageError as error:
            self._note_failure(pending.step, error)
        else:
            self._note_success()
            if self._on_saved is not None:
                self._on_saved(manifest.checkpoint_name(pending.step))

    def _finish(self) -> None:
        """Waits for the save under way; raises what is no StorageError."""
        if self._under_way is not None:
            try:
                self._under_way.result()
            finally:
                self._under_way = None

    def _note_success(self) -> None:
        self._failed_in_a_row = 0
        self._last_error = None

    def _note_failure(self, step: int, error: errors.StorageError) -> None:
        self.num_failed += 1
        self._failed_in_a_row += 1
        self._last_error = error
        logging.warning(
            "The state of step %d is not saved (failure %d in a row; %d end "
            "the run): %s",
            step,
            self._failed_in_a_row,
            _MAX_FAILED_IN_A_ROW,
            error,
        )

    def _give_up_after(self, num_failures: int) -> None:
        """Raises if at least so many of the last saves have failed."""
        if self._failed_in_a_row < num_failures:
            return
        newest = self._checkpointer.newest_good
        raise errors.StorageError(
            f"The state is not saved; failures in a row: "
            f"{self._failed_in_a_row}. The last one: {self._last_error} "
            + (
                f"What is durable is {newest}: the same command goes on there."
                if newest
                else "Nothing of this run is durable."
            )
        ) from self._last_error
