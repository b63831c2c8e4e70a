"""Reads that outlast an outage of a server or a network disk.

What cannot be read now is not bad: to go on without it would give other batches
than an undisturbed run.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from absl import logging

from trainer import errors

# Shorter than the default of --stall_timeout_secs, whose message says less.
_PATIENCE_SECS = 240.0
_FIRST_WAIT_SECS = 0.25
_LONGEST_WAIT_SECS = 10.0
_SECS_BETWEEN_CHECKS = 0.2

Result = TypeVar("Result")


def _never() -> int:
    return 0


# Of the process, as signals are.
_exit_code: Callable[[], int] = _never


@contextlib.contextmanager
def stoppable(exit_code: Callable[[], int]) -> Iterator[None]:
    """While entered, all waits end as soon as there is an exit code but 0.

    The steps that a wait is part of cannot be finished, and whoever has sent
    the signal will not wait for minutes.
    """
    global _exit_code
    _exit_code = exit_code
    try:
        yield
    finally:
        _exit_code = _never


def read(
    name: str, read_once: Callable[[], Result], is_gone: Callable[[], bool]
) -> Result | None:
    """Returns what is read at last; None for a file that was removed.

    Args:
      name: of what is read, for people.
      read_once: reads it, or raises OSError.
      is_gone: tells whether a file that is not found was removed by itself.

    Raises:
      StorageError: it could not be read for minutes.
      StoppedError: a signal came meanwhile; see `stoppable`.
    """
    wait_secs = _FIRST_WAIT_SECS
    end_secs = time.monotonic() + _PATIENCE_SECS
    while True:
        try:
            return read_once()
        except OSError as error:
            if isinstance(error, FileNotFoundError) and is_gone():
                return None
            if time.monotonic() + wait_secs > end_secs:
                raise errors.StorageError(
                    f"{name} could not be read for {_PATIENCE_SECS:.0f}"
                    f" seconds: {error}. Images that cannot be read are not"
                    " replaced, because the result would be another. See that"
                    " the data can be read, then run the same command again."
                ) from error
            logging.warning("%s cannot be read yet: %s.", name, error)
        _wait(wait_secs)
        wait_secs = min(2 * wait_secs, _LONGEST_WAIT_SECS)


def _wait(secs: float) -> None:
    end_secs = time.monotonic() + secs
    while (left_secs := end_secs - time.monotonic()) > 0:
        if exit_code := _exit_code():
            raise errors.StoppedError(
                exit_code,
                "Stopped while it waited for data that cannot be read. The same"
                " command goes on from the newest checkpoint, if there is one.",
            )
        time.sleep(min(left_secs, _SECS_BETWEEN_CHECKS))
