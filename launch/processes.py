"""Runs a command as several processes, which end together."""

import contextlib
import ctypes
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from trainer import errors

_SIGTERM_TO_SIGKILL_SECS = 10
_POLL_SECS = 0.1
_DRAIN_SECS = 5.0  # For the last lines on their way to stderr.
_MAX_WAITING_LINES = 10_000
_PR_SET_PDEATHSIG = 1  # From linux/prctl.h.
_SIGNAL_NAMES = {int(number): number.name for number in signal.Signals}


def run_workers(
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    grace_secs: float,
) -> int:
    """Runs `command` in each environment until all have ended.

    Takes SIGINT, SIGTERM and SIGUSR1 over, and passes each on to all workers.
    Those that still run `grace_secs` after SIGINT or SIGTERM are killed. Call
    it in the main thread, before any other is started.

    Returns:
      0 if all workers ended with 0, else the code of the first that did not:
      142 if it was killed, but 128 + n by a signal n that was passed on.
    """
    # Its `put` is one of the few calls that are safe in a signal handler.
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: signals.put(number))
    workers: list[subprocess.Popen[bytes]] = []
    end_with_launcher = _end_with_launcher()
    try:
        for environment in environments:
            workers.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    # Worker 0 has the screen, for its progress bar.
                    stdout=subprocess.PIPE if workers else None,
                    stderr=subprocess.STDOUT if workers else None,
                    # Ctrl-C in the terminal reaches the launcher only.
                    start_new_session=True,
                    preexec_fn=end_with_launcher,
                )
            )
        output = _Output(workers)
        exit_code = _Supervisor(workers, grace_secs, output.tell).wait(signals)
        output.close()
        return exit_code
    finally:
        for worker in workers:
            worker.kill()  # Does nothing to those that have ended.


def _end_with_launcher() -> Callable[[], None] | None:
    """Returns what lets a new process end when the launcher was killed.

    It runs between fork and exec, where locks of other threads would stay
    locked for ever: the workers start before the first thread. The kernel
    takes the end of the thread that forked for the launcher's: they start in
    the main thread. While the launcher's threads die one by one, it may send
    the signal more than once; the trainer then stops without saving.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    launcher = os.getpid()

    def end_with_launcher() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:
            os._exit(1)  # It was killed before this.

    return end_with_launcher


class _Supervisor:
    """Waits for the workers, and ends those that do not end by themselves."""

    def __init__(
        self,
        workers: Sequence[subprocess.Popen[bytes]],
        grace_secs: float,
        tell: Callable[[str], None],
    ) -> None:
        self._running = dict(enumerate(workers))
        self._tell = tell
        self._exit_code = 0
        self._passed_on: set[int] = set()
        self._grace_secs = grace_secs
        # How long to wait before which signal, once a worker has ended.
        self._measures = [
            (grace_secs, signal.SIGTERM),
            (_SIGTERM_TO_SIGKILL_SECS, signal.SIGKILL),
        ]
        self._since_secs = math.inf

    def wait(self, signals: "queue.SimpleQueue[int]") -> int:
        """Returns the exit code once all workers have ended."""
        while self._running:
            with contextlib.suppress(queue.Empty):
                self._pass_on(signals.get(timeout=_POLL_SECS))
            for index, worker in list(self._running.items()):
                if worker.poll() is not None:
                    del self._running[index]
                    self._note_end(index, worker.returncode)
            self._end_the_late()
        return self._exit_code

    def _pass_on(self, number: int) -> None:
        stops = {signal.SIGINT, signal.SIGTERM}
        if number in stops and stops.isdisjoint(self._passed_on):
            self._expect_end()
        self._passed_on.add(number)
        for worker in self._running.values():
            worker.send_signal(number)

    def _expect_end(self) -> None:
        """Starts the clock to SIGKILL, unless SIGTERM was already sent."""
        if len(self._measures) > 1:
            self._measures = [(self._grace_secs, signal.SIGKILL)]
            self._since_secs = time.monotonic()

    def _note_end(self, index: int, code: int) -> None:
        self._since_secs = min(self._since_secs, time.monotonic())
        exit_code, how = code, f"exited with code {code}"
        if code < 0:
            name = _SIGNAL_NAMES.get(-code, "no name")
            how = f"was killed by signal {-code} ({name})"
            # While a worker starts, nothing handles what was passed on.
            passed_on = -code in self._passed_on
            exit_code = 128 - code if passed_on else errors.EXIT_STALLED
        self._exit_code = self._exit_code or exit_code
        if exit_code and exit_code - 128 not in self._passed_on:
            self._tell(f"worker {index} {how}")

    def _end_the_late(self) -> None:
        if not self._measures:
            return
        secs, number = self._measures[0]
        if time.monotonic() - self._since_secs < secs:
            return
        del self._measures[0]
        self._since_secs = time.monotonic()
        for index, worker in self._running.items():
            self._tell(
                f"worker {index} did not end within {secs} s: sending"
                f" {number.name}"
            )
            worker.send_signal(number)


class _Output:
    """Passes lines on to stderr, in threads that hold up nobody else."""

    def __init__(self, workers: Sequence[subprocess.Popen[bytes]]) -> None:
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        self._readers = []
        for index, worker in enumerate(workers):
            if worker.stdout:
                arguments = (f"[worker {index}] ".encode(), worker.stdout)
                reader = threading.Thread(
                    target=self._read, args=arguments, daemon=True
                )
                self._readers.append(reader)
                reader.start()

    def tell(self, text: str) -> None:
        """Says something of the launcher's own."""
        self._lines.put(f"{text}\n".encode())

    def close(self) -> None:
        """Waits until all is written, but not for somebody who never reads."""
        deadline_secs = time.monotonic() + _DRAIN_SECS
        # A process that a worker has left behind keeps its pipe open.
        for reader in self._readers:
            reader.join(max(0.0, deadline_secs - time.monotonic()))
        self._lines.put(None)
        self._writer.join(_DRAIN_SECS)

    def _read(self, prefix: bytes, pipe: IO[bytes]) -> None:
        for line in pipe:
            # Rather lose lines than memory where nobody reads them.
            if self._lines.qsize() < _MAX_WAITING_LINES:
                self._lines.put(prefix + line.rstrip(b"\r\n") + b"\n")

    def _write(self) -> None:
        # Below `sys.stderr`: a writer that waits there would not let go of its
        # lock when the process ends.
        stderr = sys.stderr.fileno()
        # Removes worker 0's progress bar, which comes again below the line.
        start = b"\r\x1b[K" if os.isatty(stderr) else b""
        while (line := self._lines.get()) is not None:
            line = start + line
            with contextlib.suppress(OSError):  # Nobody reads any more.
                while line:
                    line = line[os.write(stderr, line) :]
