"""Tells other processes that this one lives: a small file, written anew often.

`trainer.health` judges it, for Docker and Kubernetes. A thread of its own
writes, so neither a long step nor compiling, sampling or saving delays it. What
stands still while Python runs is ended by `trainer.watchdog`; what only another
process can see is one in which no thread runs any more, because one of them
sits in C and keeps Python's lock.
"""

import contextlib
import datetime
import json
import os
import platform
import threading
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from absl import logging

INTERVAL_SECS = 5.0
# However little is allowed to a step: on a busy machine a thread may wait.
_MIN_LIMIT_SECS = 60.0
# TensorFlow is loaded, perhaps from an image that itself comes over a network.
_TIMES_AT_THE_START = 6
_STOPPED_STATES = "Tt"
_DEAD_STATES = "ZXx"


class Heartbeat:
    """While entered, keeps this process's heartbeat file fresh.

    The file is removed when it is left, and where it cannot be written: an old
    one would speak of a process in which nothing moves.
    """

    def __init__(
        self,
        *,
        stall_timeout_secs: float,
        interval_secs: float = INTERVAL_SECS,
    ) -> None:
        """Prepares a heartbeat, which begins when it is entered.

        Args:
          stall_timeout_secs: how old it may get, but at least a minute, and 6
            times as much until a step is noted; 0 allows any age.
          interval_secs: between two writes.
        """
        self._stall_timeout_secs = stall_timeout_secs
        self._interval_secs = interval_secs
        self._path = directory() / f"{_host()}-{os.getpid()}.json"
        self._now: tuple[str, int | None] = ("starting", None)
        self._left = threading.Event()
        self._thread = threading.Thread(
            target=self._keep_fresh, name="heartbeat", daemon=True
        )

    def note(self, phase: str, step: int) -> None:
        """Says what is being done, after which finished step."""
        self._now = (phase, step)

    def __enter__(self) -> "Heartbeat":
        try:
            _make_directory(self._path.parent)
            self._write()
        except OSError as error:
            logging.warning(
                "No heartbeat for health checks: cannot write %s: %s.",
                self._path,
                error.strerror or error,
            )
        else:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the heartbeat."""
        if not self._thread.is_alive():
            return
        self._left.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _keep_fresh(self) -> None:
        while not self._left.wait(self._interval_secs):
            try:
                self._write()
            except OSError:
                with contextlib.suppress(OSError):
                    self._path.unlink()

    def _write(self) -> None:
        phase, step = self._now
        pid = os.getpid()
        now = datetime.datetime.now(datetime.timezone.utc)
        record = {
            "pid": pid,
            "start_ticks": process_status(pid)[1],
            "phase": phase,
            "step": step,
            "time": now.isoformat(timespec="seconds"),
            "monotonic_secs": monotonic(),
            "limit_secs": self._limit_secs(step),
        }
        # No fsync: after a crash nobody needs it, and a busy disk delays it.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(record) + "\n")
        os.replace(temporary, self._path)

    def _limit_secs(self, step: int | None) -> float | None:
        if not self._stall_timeout_secs:
            return None
        times = _TIMES_AT_THE_START if step is None else 1
        return max(times * self._stall_timeout_secs, _MIN_LIMIT_SECS)


def directory() -> Path:
    """Returns where this user's processes keep their heartbeats.

    Not by `tempfile`, which answers differently once a disk is full.
    """
    return Path(
        os.environ.get("TMPDIR") or "/tmp", f"gan-trainer-{os.getuid()}"
    )


def read_all() -> list[Mapping[str, Any]]:
    """Returns the heartbeats of this user's live processes on this machine.

    Raises:
      OSError: the directory cannot be read.
    """
    records: list[Mapping[str, Any]] = []
    for path in sorted(directory().glob(f"{_host()}-*.json")):
        try:
            record = json.loads(path.read_text())
            state, start_ticks = process_status(record["pid"])
        except (OSError, ValueError):
            continue  # It has ended, or a full disk has left an empty file.
        # The number may be another process's by now; in a container, whose
        # first process always has the same, it is that of the next attempt.
        is_same = start_ticks == record["start_ticks"]
        if is_same and state not in _DEAD_STATES:
            records.append({**record, "stopped": state in _STOPPED_STATES})
    return records


def process_status(pid: int) -> tuple[str, int]:
    """Returns a process's state letter and start time, as in proc(5)'s stat.

    Raises:
      OSError: there is no such process.
    """
    # The name in parentheses may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _host() -> str:
    # For temporary directories that several machines share.
    return platform.node()


def _make_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or not path.is_dir() or path.is_symlink():
        raise PermissionError(None, "its directory is somebody else's")
    for leftover in path.glob(f"{_host()}-*"):
        pid = leftover.stem.rpartition("-")[2]
        if not Path("/proc", pid).exists():
            leftover.unlink(missing_ok=True)
