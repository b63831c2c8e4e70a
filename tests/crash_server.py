"""Runs the trainer again and again, with signals to itself at named points.

Prints "ready" first. Reads one JSON object a line: {"flags": [...], "point": a
name of `POINTS` or null, "count": which time the point is meant, "signals":
what it sends itself there, "after_secs": when it kills itself wherever it is,
or null, "counts_from": "start" or "first steps", for that}. Answers each with
another: {"code": the exit status, negative for a signal, "first_step": the
global step of the variables when it began to train, or null if it did not}.
Every run is a fork of this process, which has imported TensorFlow and not
started it: that saves the seconds of the import.
"""

import functools
import http.client
import json
import mmap
import os
import pathlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import google.cloud.storage

from tests import tiny
from trainer import (
    atomic_file,
    data,
    main,
    models,
    outputs,
    snapshot,
    train_step,
)
from trainer.storage import lease, local
from trainer.storage.bucket import Bucket
from trainer.storage.mirror_checkpoints import MirrorCheckpoints


class _Bomb:
    """Sends signals to this process at the n-th call.

    SIGKILL ends it as the loss of the machine would.
    """

    def __init__(self, count: int, signals: list[int]) -> None:
        self._left = count
        self._signals = signals

    def tick(self) -> None:
        self._left -= 1
        if self._left == 0:
            for number in self._signals:
                os.kill(os.getpid(), number)
                time.sleep(0.3)  # A thread takes them.


class _Clock:
    """Kills this process so many seconds after the first tick."""

    def __init__(self, secs: float) -> None:
        kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
        self._timer = threading.Timer(secs, kill)

    def tick(self) -> None:
        if self._timer.ident is None:
            self._timer.start()


def _of_the_run(path: Any) -> bool:
    """Whether it belongs to a checkpoint, not to the trial at the start."""
    path = pathlib.Path(path)
    return path.parent.name == "checkpoints" and "scratch" not in path.name


def _wrap(
    owner: Any,
    name: str,
    bomb: _Bomb | _Clock,
    *,
    before: bool = False,
    when: Callable[..., bool] = lambda *args, **kwargs: True,
) -> None:
    function = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        matches = when(*args, **kwargs)
        if before and matches:
            bomb.tick()
        result = function(*args, **kwargs)
        if not before and matches:
            bomb.tick()
        return result

    setattr(owner, name, wrapper)


def _is_stage(store: Any, name: str, *, attempt: str) -> bool:
    return _of_the_run(pathlib.Path(store.location, f"{name}.tmp-{attempt}"))


def _is_data(path: pathlib.Path) -> bool:
    return _of_the_run(path.parent) and path.name != "MANIFEST.json"


def _is_manifest(path: pathlib.Path, data: bytes) -> bool:
    return _of_the_run(path.parent) and path.name == "MANIFEST.json"


def _is_commit(source: Any, target: Any) -> bool:
    return _of_the_run(source) and ".tmp-" in str(source)


def _is_removal(path: pathlib.Path) -> bool:
    return _of_the_run(path)


def _is_upload(bucket: Bucket, path: Any, name: str, *args: Any) -> bool:
    return name.startswith("checkpoints/step-")


def _is_remote_commit(
    bucket: Bucket, data: bytes, name: str, **kwargs: Any
) -> bool:
    return _is_upload(bucket, data, name) and name.endswith("MANIFEST.json")


def _is_remote_removal(bucket: Bucket, name: str, *, generation: int) -> bool:
    return name.startswith("checkpoints/step-")


def _cut_a_body(bomb: _Bomb, is_meant: Callable[[bytes], object]) -> None:
    """Lets the bomb tick when half of what is sent at once is on its way."""
    send = http.client.HTTPConnection.send

    def send_in_halves(self: Any, data: Any) -> None:
        if not isinstance(data, bytes) or not is_meant(data):
            return send(self, data)
        half = len(data) // 2
        send(self, data[:half])
        bomb.tick()
        return send(self, data[half:])

    http.client.HTTPConnection.send = send_in_halves


# Of one upload of a small file: its metadata, then its bytes.
_BODY = re.compile(rb"^--=+[0-9]+==.*checkpoints/step-[^}]*state[.]data", re.S)


def _cut_a_small_file(bomb: _Bomb) -> None:
    _cut_a_body(bomb, lambda data: _BODY.search(data[:4096]))


def _cut_a_large_file(bomb: _Bomb) -> None:
    """Lets the weights be sent as a large file is.

    A first request asks for an address; the next one is the bytes alone.
    """
    google.cloud.storage.blob._MAX_MULTIPART_SIZE = 1 << 16
    size = None
    upload_file = Bucket.upload_file

    def note_size(bucket: Any, path: Any, name: str, expected: Any) -> Any:
        nonlocal size
        if _is_upload(bucket, path, name) and "state.data" in name:
            size = expected.size
        return upload_file(bucket, path, name, expected)

    Bucket.upload_file = note_size
    _cut_a_body(bomb, lambda data: len(data) == size)


POINTS: dict[str, Callable[[_Bomb], None]] = {
    "after the temporary directory": lambda bomb: _wrap(
        local.LocalStore, "stage", bomb, when=_is_stage
    ),
    "before the bundle": lambda bomb: _wrap(
        snapshot.Snapshot, "write", bomb, before=True
    ),
    "after the bundle": lambda bomb: _wrap(snapshot.Snapshot, "write", bomb),
    "before fsync": lambda bomb: _wrap(
        atomic_file, "fsync_file", bomb, before=True, when=_is_data
    ),
    "after fsync": lambda bomb: _wrap(
        atomic_file, "fsync_file", bomb, when=_is_data
    ),
    "before the manifest": lambda bomb: _wrap(
        pathlib.Path, "write_bytes", bomb, before=True, when=_is_manifest
    ),
    "after the manifest": lambda bomb: _wrap(
        pathlib.Path, "write_bytes", bomb, when=_is_manifest
    ),
    "before the rename": lambda bomb: _wrap(
        os, "rename", bomb, before=True, when=_is_commit
    ),
    "after the rename": lambda bomb: _wrap(os, "rename", bomb, when=_is_commit),
    "during retention": lambda bomb: _wrap(
        local, "_remove", bomb, before=True, when=_is_removal
    ),
    "during sampling": lambda bomb: _wrap(
        outputs.Outputs, "draw_samples", bomb, before=True
    ),
    "after sampling": lambda bomb: _wrap(outputs.Outputs, "draw_samples", bomb),
    "mid-upload": lambda bomb: _wrap(
        Bucket, "upload_file", bomb, when=_is_upload
    ),
    "mid-body": _cut_a_small_file,
    "mid-body of a large file": _cut_a_large_file,
    "during remote retention": lambda bomb: _wrap(
        Bucket, "delete", bomb, before=True, when=_is_remote_removal
    ),
    "before the remote manifest": lambda bomb: _wrap(
        Bucket, "upload_bytes", bomb, before=True, when=_is_remote_commit
    ),
    "after the remote manifest": lambda bomb: _wrap(
        Bucket, "upload_bytes", bomb, when=_is_remote_commit
    ),
    "before adopting what was downloaded": lambda bomb: _wrap(
        MirrorCheckpoints, "adopt", bomb, before=True
    ),
    "while compiling": lambda bomb: _wrap(
        train_step.TrainStep, "_trace_steps", bomb, before=True
    ),
    "while loading": lambda bomb: _wrap(data, "load", bomb),
    "mid-epoch": lambda bomb: _wrap(train_step.TrainStep, "run", bomb),
}


def _note_first_step(note: mmap.mmap) -> None:
    """Writes down, for the parent, the step that the training begins after."""
    run = train_step.TrainStep.run

    def noting(self: Any, num_steps: int) -> Any:
        if not any(note[:]):
            step = int(self._state.global_step.numpy())
            note[:] = json.dumps(step).encode().ljust(len(note))
        return run(self, num_steps)

    train_step.TrainStep.run = noting


def _start_clock(command: dict[str, Any]) -> None:
    clock = _Clock(command["after_secs"])
    if command["counts_from"] == "first steps":
        _wrap(train_step.TrainStep, "run", clock)
    elif any(flag.startswith("--workdir=gs://") for flag in command["flags"]):
        # Without the wait for the lease of the one before.
        _wrap(lease.Lease, "acquire", clock)
    else:
        clock.tick()


def _run(command: dict[str, Any]) -> dict[str, int | None]:
    note = mmap.mmap(-1, 16)  # Shared with the child.
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        step = json.loads(note[:]) if any(note[:]) else None
        return {"code": code, "first_step": step}
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    models.MODELS["dcgan28"] = models.Model(
        tiny.build_generator, tiny.build_discriminator
    )
    # The next start waits for the lease of one that was killed.
    lease.Lease.__init__.__kwdefaults__["duration_secs"] = 2.0
    _note_first_step(note)
    if command["point"] is not None:
        bomb = _Bomb(command["count"], command["signals"])
        POINTS[command["point"]](bomb)
    if command["after_secs"] is not None:
        _start_clock(command)
    code = 1
    try:
        code = main.main(["main.py", *command["flags"]])
    finally:
        sys.stderr.flush()
        os._exit(code)
    return {}


if __name__ == "__main__":
    data.load = functools.cache(data.load)
    data.load("digits", data_dir=None)  # For all children.
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)
