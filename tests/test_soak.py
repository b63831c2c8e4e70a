"""Many saves of one run in a bucket leave nothing behind."""

import dataclasses
import os
import pathlib
import tempfile
import time
from typing import Any

import pytest

from tests import runs, tiny
from tests.benchmarks import bucket_server
from trainer import models, train
from trainer.assembly import steps
from trainer.config import Config
from trainer.heartbeat import Heartbeat
from trainer.outputs import Outputs
from trainer.storage.bucket import Bucket
from trainer.storage.mirror import Mirror

_NUM_KEPT = 2
_LIMIT_SECS = 60.0
_MAX_GROWTH_BYTES = 32e6


@dataclasses.dataclass(frozen=True)
class _Use:
    """What a run holds at some moment."""

    threads: int
    descriptors: int
    memory_bytes: int
    checkpoint_files: int
    temporary_files: int
    objects: int


class _Meter:
    """Waits after each save until the bucket has it, and measures some."""

    def __init__(self, root: pathlib.Path, at: set[int]) -> None:
        self.uses: list[_Use] = []
        self.num_saves = 0
        self._root = root
        self._at = at
        self._bucket = Bucket("bucket", prefix="run")

    def note_save(self, *args: Any, **kwargs: Any) -> None:
        self.num_saves += 1
        kept = range(self.num_saves, 0, -1)[:_NUM_KEPT]
        deadline = time.monotonic() + _LIMIT_SECS
        while self._steps_in_bucket() != set(kept):
            assert time.monotonic() < deadline, "It does not come."
            time.sleep(0.005)
        if self.num_saves in self._at:
            self.uses.append(self._measure())

    def _steps_in_bucket(self) -> set[int]:
        names = [o.name for o in self._bucket.list_objects("checkpoints/")]
        steps = {name.split("/")[1] for name in names}
        return {int(step.removeprefix("step-")) for step in steps}

    def _measure(self) -> _Use:
        # What another thread is about to end comes and goes.
        uses = [self._measure_once() for _ in range(20)]
        return _Use(
            *map(min, zip(*map(dataclasses.astuple, uses), strict=True))
        )

    def _measure_once(self) -> _Use:
        time.sleep(0.05)
        resident_pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return _Use(
            threads=len(os.listdir("/proc/self/task")),
            descriptors=len(os.listdir("/proc/self/fd")),
            memory_bytes=int(resident_pages) * os.sysconf("SC_PAGE_SIZE"),
            checkpoint_files=_num_files(self._root / "checkpoints")
            + _num_files(self._root / ".mirror"),
            temporary_files=_num_files(pathlib.Path(tempfile.gettempdir())),
            objects=len(self._bucket.list_objects("")),
        )


def _num_files(directory: pathlib.Path) -> int:
    return sum(1 for _ in directory.rglob("*"))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "num_saves", [20, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_saves_leave_nothing_behind(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, num_saves: int
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    networks = models.Model(tiny.build_generator, tiny.build_discriminator)
    monkeypatch.setitem(models.MODELS, "dcgan28", networks)
    make_schedule = steps.make_schedule
    monkeypatch.setattr(
        steps,
        "make_schedule",
        lambda *args: dataclasses.replace(
            make_schedule(*args), steps_per_epoch=1
        ),
    )
    monkeypatch.setitem(
        Mirror.__init__.__kwdefaults__, "seconds_between_file_uploads", 0.01
    )
    config = Config(
        workdir="gs://bucket/run",
        local_dir=str(tmp_path / "run"),
        batch_size=16,
        latent_dim=10,
        num_logical_cpus=1,
        epochs=num_saves,
        checkpoint_every_epochs=1,
        keep_checkpoints=_NUM_KEPT,
        sample_every_epochs=num_saves,
        log_every_steps=10,
    ).resolve()
    with bucket_server.start(latency_secs=0.0) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        at = {num_saves // 10, num_saves // 2, num_saves - 1}
        meter = _Meter(tmp_path / "run", at)
        monkeypatch.setattr(Outputs, "note_save", meter.note_save)
        assert train.run(config, Heartbeat(stall_timeout_secs=300)) == 0
    assert meter.num_saves == num_saves
    assert runs.newest_step(tmp_path / "run") == num_saves
    first, *later = meter.uses
    print(*meter.uses, sep="\n")
    for use in later:
        growth = use.memory_bytes - first.memory_bytes
        assert growth < _MAX_GROWTH_BYTES
        # Descriptors are given back late: there may be fewer of them.
        assert use.descriptors <= first.descriptors
        assert _kept(use) == _kept(first)


def _kept(use: _Use) -> _Use:
    """Leaves out what may become less, and what is compared by size."""
    return dataclasses.replace(use, memory_bytes=0, descriptors=0)
