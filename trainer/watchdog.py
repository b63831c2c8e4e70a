"""Ends a process in which nothing moves any more.

A collective operation that waits for a lost GPU waits for ever, and Python
cannot interrupt it: a rented machine would stand idle for days.
"""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from trainer import errors

_NUM_INTERVALS = 50
# A sample grid and a checkpoint may take many times as long as a step.
_USUAL_TIMES_ALLOWED = 20
# TensorFlow compiles, and data are loaded.
_TIMEOUTS_BEFORE_THE_FIRST_BEAT = 6
_LAST_WORDS_SECS = 10.0


class Patience:
    """Counts how long nothing was finished, and knows how long is too long.

    The methods may be called from any thread.
    """

    def __init__(
        self,
        *,
        stall_timeout_secs: float,
        max_reading_secs: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts to count.

        Args:
          stall_timeout_secs: what is allowed at least.
          max_reading_secs: the most that counts between two looks at `clock`.
          clock: returns seconds.
        """
        self._stall_timeout_secs = stall_timeout_secs
        self._max_reading_secs = max_reading_secs
        self._clock = clock
        self._lock = threading.Lock()
        self._last_reading = clock()
        self._idle_secs = 0.0
        self._began = False
        self._intervals_secs: deque[float] = deque(maxlen=_NUM_INTERVALS)

    def beat(self) -> None:
        """Notes that something was finished."""
        with self._lock:
            self._read_clock()
            if self._began:
                self._intervals_secs.append(self._idle_secs)
            self._began = True
            self._idle_secs = 0.0

    def excuse(self) -> None:
        """Counts anew, and learns nothing of how long things usually take."""
        with self._lock:
            self._read_clock()
            self._idle_secs = 0.0

    def complaint(self) -> str | None:
        """Returns what took too long, or None while nothing did.

        Call it often: what counts between two calls is bounded.
        """
        with self._lock:
            self._read_clock()
            usual_secs = 0.0
            if not self._began:
                usual = "it is the first that is waited for"
                factor = _TIMEOUTS_BEFORE_THE_FIRST_BEAT
            else:
                usual = "there was only one before"
                factor = 1
                if self._intervals_secs:
                    usual_secs = statistics.median(self._intervals_secs)
                    usual = f"usually it takes {_format(usual_secs)}"
            allowed_secs = max(
                factor * self._stall_timeout_secs,
                _USUAL_TIMES_ALLOWED * usual_secs,
            )
            if self._idle_secs < allowed_secs:
                return None
            return (
                "no training step, sample grid or checkpoint was finished for "
                f"{_format(self._idle_secs)}; {usual}, and "
                f"{_format(allowed_secs)} are allowed"
            )

    def _read_clock(self) -> None:
        # A process that was stopped (Ctrl-Z, a suspended laptop, a paused
        # container) finds the clock far ahead when it goes on. Nobody looked
        # meanwhile, so only a little of that counts.
        now = self._clock()
        self._idle_secs += min(now - self._last_reading, self._max_reading_secs)
        self._last_reading = now


class Watchdog:
    """While entered, ends the process when no beat comes for too long.

    Too long is the larger of `stall_timeout_secs` and 20 times the median time
    between the last beats; before the first one, it is 6 times
    `stall_timeout_secs`. Enter it once only.
    """

    def __init__(
        self,
        *,
        stall_timeout_secs: float,
        stream: TextIO = sys.stderr,
        tick_secs: float = 1.0,
        end_process: Callable[[int], None] = os._exit,
    ) -> None:
        """Prepares a watch, which begins when it is entered.

        Args:
          stall_timeout_secs: what is allowed at least; 0 allows any time.
          stream: takes the message and, if it is a file, all threads' stacks.
          tick_secs: between two looks.
          end_process: takes the exit code, `errors.EXIT_STALLED`.
        """
        self._stall_timeout_secs = stall_timeout_secs
        self._stream = stream
        self._tick_secs = tick_secs
        self._end_process = end_process
        self._patience = Patience(
            stall_timeout_secs=stall_timeout_secs,
            # Twice, since a tick may come late on a busy machine.
            max_reading_secs=2.0 * tick_secs,
        )
        self._left = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="watchdog", daemon=True
        )

    def beat(self) -> None:
        """Tells that something was finished: steps, a grid, a checkpoint."""
        self._patience.beat()

    def excuse(self) -> None:
        """Tells that something known to be slow is still waited for."""
        self._patience.excuse()

    def __enter__(self) -> "Watchdog":
        if self._stall_timeout_secs:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the watch."""
        self._left.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._left.wait(self._tick_secs):
            if complaint := self._patience.complaint():
                self._give_up(complaint)
                return

    def _give_up(self, complaint: str) -> None:
        # In a thread of its own, since a pipe that nobody empties blocks its
        # writer; it may even be what the process hangs on.
        last_words = threading.Thread(
            target=self._tell, args=[complaint], daemon=True
        )
        last_words.start()
        last_words.join(_LAST_WORDS_SECS)
        self._end_process(errors.EXIT_STALLED)

    def _tell(self, complaint: str) -> None:
        # Nobody may be reading any more (OSError), or the stream is closed
        # (ValueError) or no file, which faulthandler needs (both).
        with contextlib.suppress(OSError, ValueError):
            # A progress bar may have left the cursor in the middle of its line.
            self._stream.write(
                f"\nStalled: {complaint}. The stacks of all threads follow. "
                "The newest checkpoint stands, and the same command goes on.\n"
                "To allow more, raise --stall_timeout_secs (0 allows any "
                "time). If this happens again at the start on several GPUs, "
                "set NCCL_P2P_DISABLE=1 or give the container more shared "
                "memory (docker's --shm-size).\n"
            )
            self._stream.flush()
            faulthandler.dump_traceback(self._stream, all_threads=True)
            self._stream.flush()


def _format(secs: float) -> str:
    return f"{secs:.3g} s" if secs < 100 else f"{secs:,.0f} s"
