"""Ends a process whose Python stands still, with an exit code of our choice.

A call into a library that keeps Python's lock lets no Python code run: no
thread, no signal handler, no `trainer.watchdog`. What ends the process must be
native code, and of what is at hand little tells a scheduler why:

- A signal's default action (SIGALRM's would count as 142) does nothing in
  process 1, which the trainer is in a container.
- `faulthandler.dump_traceback_later(exit=True)` always exits with 1.
- A child process can kill its parent, but not choose its exit code.

So a timer of POSIX (`timer_create` with SIGEV_THREAD, see timer_create(2) and
sigevent(3type)) calls `_exit` of the C library in a thread that the C library
makes, which needs no lock. The timer hands over an argument of one word, which
is the exit code.
"""

import contextlib
import ctypes
import faulthandler
import platform
import sys
from collections.abc import Iterator

# For the stacks, which may go to a pipe that nobody empties.
_LAST_WORDS_SECS = 1.0
_STDERR = 2
_CLOCK_MONOTONIC = 1
_SIGEV_THREAD = 2
# Where a word in a register is the same for `union sigval` and for `int`.
_MACHINES = ("x86_64", "aarch64")


class _Value(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("pointer", ctypes.c_void_p)]


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux: 64 bytes, whatever is used of them."""

    _fields_ = [
        ("value", _Value),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_char * 32),
    ]


class _Timer(ctypes.Structure):
    """`struct itimerspec`: once, if the interval is zero."""

    _fields_ = [
        ("interval_secs", ctypes.c_long),
        ("interval_nanosecs", ctypes.c_long),
        ("secs", ctypes.c_long),
        ("nanosecs", ctypes.c_long),
    ]


@contextlib.contextmanager
def end_process_after(secs: float, exit_code: int) -> Iterator[None]:
    """While entered, ends the process once `secs` are over.

    All threads' stacks go to stderr before. On machines other than Linux on
    x86-64 or Arm, and where the system refuses a timer, the exit code is 1.

    Args:
      secs: more than 0.
      exit_code: that of the process, from 0 to 255.
    """
    timer = _start(secs + _LAST_WORDS_SECS, exit_code)
    faulthandler.dump_traceback_later(secs, exit=timer is None, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        if timer is not None:
            _library().timer_delete(timer)


def _start(secs: float, exit_code: int) -> ctypes.c_void_p | None:
    """Returns a timer that calls `_exit(exit_code)`, if there can be one."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return None
    library = _library()
    event = _Event(
        value=_Value(number=exit_code),
        notify=_SIGEV_THREAD,
        function=ctypes.cast(library._exit, ctypes.c_void_p),
    )
    timer = ctypes.c_void_p()
    if library.timer_create(
        _CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)
    ):
        return None
    when = _Timer(secs=int(secs), nanosecs=int(secs % 1 * 1e9))
    if library.timer_settime(timer, 0, ctypes.byref(when), None):
        library.timer_delete(timer)
        return None
    return timer


def _library() -> ctypes.CDLL:
    """Returns the C library, of which timers were a part of their own once."""
    library = ctypes.CDLL(None)
    if hasattr(library, "timer_create"):
        return library
    return ctypes.CDLL("librt.so.1")
