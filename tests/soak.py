"""Trains in a bucket, saves each step, prints what it holds; no test itself.

usage: python -m tests.soak <an empty directory> <number of saves>

Prints a line of JSON after a tenth of the saves, half of them and the last but
one. A process of its own: what other tests have left in one, their threads and
connections, comes and goes there.
"""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

from tests import tiny
from tests.benchmarks import bucket_server
from trainer import models, train
from trainer.assembly import steps
from trainer.config import Config
from trainer.heartbeat import Heartbeat
from trainer.outputs import Outputs
from trainer.storage.bucket import Bucket
from trainer.storage.mirror import Mirror

NUM_KEPT = 2
_LIMIT_SECS = 60.0


@dataclasses.dataclass(frozen=True)
class Use:
    """What a run holds at some moment."""

    num_saves: int
    threads: int
    descriptors: list[str]
    memory_bytes: int
    checkpoint_files: int
    temporary_files: int
    objects: int


class _Meter:
    """Waits after each save until the bucket has it, and measures some."""

    def __init__(self, root: pathlib.Path, at: set[int]) -> None:
        self._num_saves = 0
        self._root = root
        self._at = at
        self._bucket = Bucket("bucket", prefix="run")

    def note_save(self, *args: Any, **kwargs: Any) -> None:
        """Stands in for `Outputs.note_save`."""
        self._num_saves += 1
        kept = range(self._num_saves, 0, -1)[:NUM_KEPT]
        deadline = time.monotonic() + _LIMIT_SECS
        while self._steps_in_bucket() != set(kept):
            assert time.monotonic() < deadline, "It does not come."
            time.sleep(0.005)
        if self._num_saves in self._at:
            print(json.dumps(dataclasses.asdict(self._measure())), flush=True)

    def _steps_in_bucket(self) -> set[int]:
        names = [o.name for o in self._bucket.list_objects("checkpoints/")]
        steps = {name.split("/")[1] for name in names}
        return {int(step.removeprefix("step-")) for step in steps}

    def _measure(self) -> Use:
        # What another thread is about to end comes and goes.
        uses = [self._measure_once() for _ in range(20)]
        least = {
            field.name: min(
                (getattr(use, field.name) for use in uses),
                key=len if field.name == "descriptors" else None,
            )
            for field in dataclasses.fields(Use)
        }
        return Use(**least)

    def _measure_once(self) -> Use:
        time.sleep(0.05)
        resident_pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return Use(
            num_saves=self._num_saves,
            threads=len(os.listdir("/proc/self/task")),
            descriptors=_descriptors(),
            memory_bytes=int(resident_pages) * os.sysconf("SC_PAGE_SIZE"),
            checkpoint_files=_num_files(self._root / "checkpoints")
            + _num_files(self._root / ".mirror"),
            temporary_files=_num_files(pathlib.Path(tempfile.gettempdir())),
            objects=len(self._bucket.list_objects("")),
        )


def _descriptors() -> list[str]:
    """What each open descriptor stands for: a path, "socket", "pipe", ..."""
    directory = "/proc/self/fd"
    targets = []
    for name in os.listdir(directory):
        try:
            # A connection that was made anew has another number in brackets.
            targets.append(os.readlink(f"{directory}/{name}").split(":[")[0])
        except FileNotFoundError:  # The listing's own, or one just closed.
            pass
    return sorted(targets)


def _num_files(directory: pathlib.Path) -> int:
    return sum(1 for _ in directory.rglob("*"))


def main(directory: pathlib.Path, num_saves: int) -> int:
    """Returns the exit code of a training with so many saves."""
    temporary = directory / "temporary"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    models.MODELS["dcgan28"] = models.Model(
        tiny.build_generator, tiny.build_discriminator
    )
    make_schedule = steps.make_schedule
    steps.make_schedule = lambda *args: dataclasses.replace(
        make_schedule(*args), steps_per_epoch=1
    )
    defaults = Mirror.__init__.__kwdefaults__
    defaults["seconds_between_file_uploads"] = 0.01
    config = Config(
        workdir="gs://bucket/run",
        local_dir=str(directory / "run"),
        batch_size=16,
        latent_dim=10,
        num_logical_cpus=1,
        epochs=num_saves,
        checkpoint_every_epochs=1,
        keep_checkpoints=NUM_KEPT,
        sample_every_epochs=num_saves,
        log_every_steps=10,
    ).resolve()
    with bucket_server.start(latency_secs=0.0) as url:
        os.environ["STORAGE_EMULATOR_HOST"] = url
        at = {num_saves // 10, num_saves // 2, num_saves - 1}
        Outputs.note_save = _Meter(directory / "run", at).note_save
        return train.run(config, Heartbeat(stall_timeout_secs=300))


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), int(sys.argv[2])))
