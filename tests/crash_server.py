"""Runs the trainer again and again, with signals to itself at named points.

Reads one JSON object a line: {"flags": [...], "point": a name of `POINTS` or
null, "count": which time the point is meant, "signals": what it sends itself
there, "after_secs": when it kills itself wherever it is, or null}. Answers each
with the exit status, negative for a signal. Every run is a fork of this
process, which has imported TensorFlow and not started it: that saves the
seconds of the import.
"""

import functools
import http.client
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tests import tiny
from trainer import atomic_file, data, main, models, outputs, train_step
from trainer.storage import lease, local
from trainer.storage.bucket import Bucket


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


def _of_the_run(path: Any) -> bool:
    """Whether it belongs to a checkpoint, not to the trial at the start."""
    return pathlib.Path(path).parent.name == "checkpoints"


def _wrap(
    owner: Any,
    name: str,
    bomb: _Bomb,
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
    return pathlib.Path(store.location).name == "checkpoints"


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


def _cut_a_body(bomb: _Bomb) -> None:
    """Lets the bomb tick when half of a checkpoint's file is on its way."""
    send = http.client.HTTPConnection.send

    def send_in_halves(self: Any, data: Any) -> None:
        if not isinstance(data, bytes) or not _BODY.search(data[:4096]):
            return send(self, data)
        half = len(data) // 2
        send(self, data[:half])
        bomb.tick()
        return send(self, data[half:])

    http.client.HTTPConnection.send = send_in_halves


# Of one upload of a small file: its metadata, then its bytes.
_BODY = re.compile(rb"^--=+[0-9]+==.*checkpoints/step-[^}]*state[.]data", re.S)

POINTS: dict[str, Callable[[_Bomb], None]] = {
    "after the temporary directory": lambda bomb: _wrap(
        local.LocalStore, "stage", bomb, when=_is_stage
    ),
    "before the bundle": lambda bomb: _wrap(
        tf.train.Checkpoint, "write", bomb, before=True
    ),
    "after the bundle": lambda bomb: _wrap(tf.train.Checkpoint, "write", bomb),
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
    "mid-body": _cut_a_body,
    "during remote retention": lambda bomb: _wrap(
        Bucket, "delete", bomb, before=True, when=_is_remote_removal
    ),
    "before the remote manifest": lambda bomb: _wrap(
        Bucket, "upload_bytes", bomb, before=True, when=_is_remote_commit
    ),
    "after the remote manifest": lambda bomb: _wrap(
        Bucket, "upload_bytes", bomb, when=_is_remote_commit
    ),
    "while compiling": lambda bomb: _wrap(
        train_step.TrainStep, "_trace_steps", bomb, before=True
    ),
    "while loading": lambda bomb: _wrap(data, "load", bomb),
    "mid-epoch": lambda bomb: _wrap(train_step.TrainStep, "run", bomb),
}


def _run(command: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    models.MODELS["dcgan28"] = models.Model(
        tiny.build_generator, tiny.build_discriminator
    )
    # The next start waits for the lease of one that was killed.
    lease.Lease.__init__.__kwdefaults__["duration_secs"] = 2.0
    if command["point"] is not None:
        bomb = _Bomb(command["count"], command["signals"])
        POINTS[command["point"]](bomb)
    if command["after_secs"] is not None:
        kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
        threading.Timer(command["after_secs"], kill).start()
    code = 1
    try:
        code = main.main(["main.py", *command["flags"]])
    finally:
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    for line in sys.stdin:
        print(_run(json.loads(line)), flush=True)
