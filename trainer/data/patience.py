"""Reads that outlast an outage of a server or a network disk.

What cannot be read now is not bad: to go on without it would give other batches
than an undisturbed run.
"""

import time
from collections.abc import Callable

from absl import logging

from trainer import errors

# Shorter than the default of --stall_timeout_secs, whose message says less.
_PATIENCE_SECS = 240.0
_FIRST_WAIT_SECS = 0.25
_LONGEST_WAIT_SECS = 10.0


def read(
    name: str, read_once: Callable[[], bytes], is_gone: Callable[[], bool]
) -> bytes | None:
    """Returns what is read at last; None for a file that was removed.

    Args:
      name: of what is read, for people.
      read_once: reads it, or raises OSError.
      is_gone: tells whether a file that is not found was removed by itself.

    Raises:
      StorageError: it could not be read for minutes.
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
        time.sleep(wait_secs)
        wait_secs = min(2 * wait_secs, _LONGEST_WAIT_SECS)
