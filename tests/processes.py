"""Commands as processes of their own."""

import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT_SECS = 120


class Command:
    """A running trainer; what it says goes to a file that can be watched."""

    # What the command line begins with.
    prefix: tuple[str, ...] = ()

    def __init__(
        self,
        workdir: pathlib.Path,
        *flags: str,
        program: tuple[str, ...] = ("trainer.main",),
    ) -> None:
        """Starts it.

        Args:
          workdir: of the run.
          flags: the trainer's others.
          program: a module, and what comes before the trainer's flags.
        """
        self.workdir = workdir
        self._stderr_path = workdir.with_name(f"{workdir.name}.stderr")
        with open(self._stderr_path, "w") as stderr:
            self._process = subprocess.Popen(
                [
                    *(*self.prefix, sys.executable, "-m", *program, *flags),
                    f"--workdir={workdir}",
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )
        self.pid = self._process.pid

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._stderr_path.read_text()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition, while the command runs."""
        deadline = time.monotonic() + TIMEOUT_SECS
        while not condition():
            assert self._process.poll() is None, self.stderr
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.02)

    def wait_for_records(self, count: int) -> None:
        """Waits until so many lines of metrics are written."""
        metrics = self.workdir / "metrics.jsonl"
        self.wait_until(
            lambda: (
                metrics.exists() and metrics.read_text().count("\n") >= count
            )
        )

    def wait_for_text(self, text: str) -> None:
        """Waits until it has said a text."""
        self.wait_until(lambda: text in self.stderr)

    def send(self, number: int) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def finish(self) -> int:
        """Waits for the end; returns the exit code."""
        return self._process.wait(timeout=TIMEOUT_SECS)
