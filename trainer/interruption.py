"""Ctrl-C and SIGTERM stop after the running steps, twice now; SIGUSR1 saves.

Python runs a signal handler only between two bytecodes of the main thread,
which may sit in one TensorFlow call for seconds. The signals are therefore
taken from a pipe by a thread of their own.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from trainer import errors

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What Slurm's --signal=USR1 sends some time before the end of a job.
_SAVE_SIGNAL = signal.SIGUSR1
_SIGNALS = (*_STOP_SIGNALS, _SAVE_SIGNAL)


class Interruption:
    """While entered, the first signal to stop sets `requested`; a second exits.

    Use it in the main thread, the only one that may set signal handlers.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._save_requested = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether to save and stop."""
        return self._first is not None

    @property
    def exit_code(self) -> int:
        """128 + the number of the first signal, as shells count: 130 or 143.

        Without a signal, 0.
        """
        return 0 if self._first is None else 128 + self._first

    def check(self) -> None:
        """Ends what waits before the training and has nothing to save.

        Raises:
            StoppedError: If a signal to stop has come.
        """
        if self.requested:
            raise errors.StoppedError(self.exit_code)

    def take_save_request(self) -> bool:
        """Whether SIGUSR1 has asked to save since this was last called."""
        if not self._save_requested.is_set():
            return False
        self._save_requested.clear()
        return True

    def take_signals_back(self) -> None:
        """Handles the signals again after a library has taken them.

        TensorFlow does, silently, where several workers form a cluster, and a
        SIGTERM would then do nothing at all.
        """
        for number in _SIGNALS:
            signal.signal(number, _leave_to_thread)

    def __enter__(self) -> "Interruption":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # As set_wakeup_fd asks.
        self._old_wakeup_fd = signal.set_wakeup_fd(self._writer)
        self._old_handlers = {
            number: signal.signal(number, _leave_to_thread)
            for number in _SIGNALS
        }
        self._thread = threading.Thread(
            target=self._listen, name="interruption", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        os.close(self._writer)  # Ends the thread.
        self._thread.join()
        os.close(self._reader)

    def _listen(self) -> None:
        while number := os.read(self._reader, 1):
            if number[0] in _STOP_SIGNALS:
                self._receive(number[0])
            elif number[0] == _SAVE_SIGNAL:
                self._save_requested.set()
                _tell("SIGUSR1: saving after the running steps.")

    def _receive(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._first is None:
            self._first = number
            _tell(
                f"{name}: finishing the running steps, then saving. "
                "Once more stops at once."
            )
            return
        _tell(f"{name} again: stopping at once; what was saved stays.")
        # Nothing is left half-written: files appear by renames.
        os._exit(128 + number)


@contextlib.contextmanager
def end_at_once() -> Iterator[None]:
    """While entered, a signal to stop ends the process, with 130 or 143.

    It is for the seconds before there is anything to save, in which TensorFlow
    is imported. Without a handler the kernel drops what is sent to process 1,
    a container's first, and SIGUSR1 ends any other process.
    """
    handlers = dict.fromkeys(_STOP_SIGNALS, _end_at_once)
    old_handlers = {
        number: signal.signal(number, handlers.get(number, _leave_to_thread))
        for number in _SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):
        # Not by `sys.stderr`, which may be in the middle of a line.
        os.write(2, f"{name}: not training yet, stopping at once.\n".encode())
    # An exception might be caught by what is being imported.
    os._exit(128 + number)


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    """Replaces the default action; the byte is in the pipe by now."""


def _tell(message: str) -> None:
    # Ctrl-C ends the whole pipeline, so nobody may be reading any more.
    with contextlib.suppress(OSError):
        # A progress bar may have left the cursor in the middle of its line.
        sys.stderr.write(f"\n{message}\n")
        sys.stderr.flush()
