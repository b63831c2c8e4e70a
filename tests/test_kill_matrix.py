"""Killed anywhere, the same command ends in the weights of an undisturbed run.

And it goes on from the newest checkpoint that is durable then: one that began
again would end in the same weights, days later. By default one kill at each
point; those with a bucket on both machines, and many moments by the clock, with
`python -m pytest -m slow tests/test_kill_matrix.py`.
"""

import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests import runs
from tests.fake_gcs import FakeGcs
from tests.processes import ROOT

_FLAGS = [
    "--num_logical_cpus=2",
    "--batch_size=256",
    "--latent_dim=10",
    "--epochs=3",
    "--checkpoint_every_epochs=1",
    "--keep_checkpoints=1",
    "--steps_per_loop=3",
    "--log_every_steps=2",
]
_LAST_STEP = 21
_SAVED_STEPS = {7, 14, _LAST_STEP}
# How often each point is passed before it kills, in the second of three saves
# or after it; and the steps that may be durable then. A save goes on beside the
# training, and only the next one waits for it.
_POINTS = {
    "after the temporary directory": (2, {7}),
    "before the bundle": (2, {7}),
    "after the bundle": (2, {7}),
    "before fsync": (4, {7}),
    "after fsync": (5, {7}),
    "before the manifest": (2, {7}),
    "after the manifest": (2, {7}),
    "before the rename": (2, {7}),
    "after the rename": (2, {14}),
    "during retention": (1, {14}),
    "during sampling": (3, {7, 14}),
    "after sampling": (3, {7, 14}),
    "mid-epoch": (9, {7, 14}),
}
# The same of a run that goes on from step 7, and the steps that the bucket may
# hold. Uploads are a thread's own affair: the newer of two saves may overtake.
_REMOTE_POINTS = {
    "mid-upload": (2, {7}),
    "mid-body": (1, {7}),
    "mid-body of a large file": (1, {7}),
    "before the remote manifest": (1, {7}),
    "after the remote manifest": (1, {14, 21}),
    # Of an older one the manifest goes first, then a file.
    "during remote retention": (2, {14, 21}),
}
# Kills by the clock.
_SEEDS = [
    pytest.param(seed, marks=() if seed == 0 else pytest.mark.slow)
    for seed in range(9)
]
_MIN_KILLED = 4
_MAX_STARTS = 30
# Compiling takes most of a run: the share of the kills that may fall into it.
_EARLY = 0.25


class _End(NamedTuple):
    """How a run ended, and the step that it trained on from, if it did."""

    code: int
    first_step: int | None


class _Server:
    """Runs commands in `tests.crash_server`."""

    def __init__(self, log: pathlib.Path, url: str) -> None:
        with open(log, "w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash_server"],
                cwd=ROOT,
                env=os.environ | {"STORAGE_EMULATOR_HOST": url},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._log = log
        assert self._process.stdout.readline() == "ready\n", log.read_text()

    def run(
        self,
        workdir: pathlib.Path | str,
        *more: str,
        point: str | None = None,
        count: int = 0,
        signals: tuple[int, ...] = (signal.SIGKILL,),
        after_secs: float | None = None,
        counts_from: str = "start",
    ) -> _End:
        command = {
            "flags": [*_FLAGS, f"--workdir={workdir}", *more],
            "point": point,
            "count": count,
            "signals": signals,
            "after_secs": after_secs,
            "counts_from": counts_from,
        }
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._log.read_text()
        return _End(**json.loads(answer))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


class _Undisturbed(NamedTuple):
    """A run that nobody disturbed, and how long it took up to where."""

    workdir: pathlib.Path
    secs: float
    first_epoch_secs: float


class _Bucket:
    """A bucket of the fake, with a run in it or none yet."""

    def __init__(self, fake: FakeGcs, name: str) -> None:
        fake.objects.add_bucket(name)
        self._objects = fake.objects
        self._name = name
        self.workdir = f"gs://{name}/run"

    def copy(self, other: "_Bucket") -> None:
        """Takes over all objects of another bucket."""
        for name in self._objects.names(other._name):
            data = self._objects.get(other._name, name).data
            self._objects.put(self._name, name, data)

    def steps(self) -> set[int]:
        """The steps of the checkpoints with a manifest."""
        paths = map(pathlib.PurePath, self._objects.names(self._name))
        return {
            int(path.parent.name.removeprefix("step-"))
            for path in paths
            if path.name == "MANIFEST.json"
        }

    def durable_step(self) -> int:
        """The step that a new machine must go on after; 0 for none."""
        time.sleep(0.1)  # What was sent before a kill may arrive after it.
        return max(self.steps(), default=0)


@pytest.fixture(name="fake", scope="module")
def _fake() -> Iterator[FakeGcs]:
    with FakeGcs() as fake:
        yield fake


@pytest.fixture(name="server", scope="module")
def _server(
    fake: FakeGcs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_Server]:
    log = tmp_path_factory.mktemp("crash_server") / "stderr"
    server = _Server(log, fake.url)
    yield server
    server.close()


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(
    server: _Server, tmp_path_factory: pytest.TempPathFactory
) -> _Undisturbed:
    workdir = tmp_path_factory.mktemp("kill_matrix") / "undisturbed"
    start_secs = time.time()
    assert server.run(workdir) == (0, 0)
    picture = workdir / "samples" / "epoch_0001.png"
    return _Undisturbed(
        workdir,
        secs=time.time() - start_secs,
        first_epoch_secs=picture.stat().st_mtime - start_secs,
    )


@pytest.fixture(name="begun", scope="module")
def _begun(
    fake: FakeGcs, server: _Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[_Bucket, pathlib.Path]:
    """A run of 7 steps: its bucket and its local directory, to be copied."""
    bucket = _Bucket(fake, "begun")
    local = tmp_path_factory.mktemp("kill_matrix") / "begun"
    assert _start(server, local, bucket, "--max_steps=7") == (0, 0)
    assert bucket.steps() == {7}
    return bucket, local


@pytest.fixture(name="bucket")
def _bucket(fake: FakeGcs, tmp_path: pathlib.Path) -> _Bucket:
    return _Bucket(fake, f"bucket-{tmp_path.name[-20:].lower()}")


@pytest.fixture(name="machine")
def _machine(
    bucket: _Bucket,
    begun: tuple[_Bucket, pathlib.Path],
    tmp_path: pathlib.Path,
) -> pathlib.Path:
    """The local directory of a run of 7 steps, which `bucket` holds, too."""
    bucket.copy(begun[0])
    return pathlib.Path(shutil.copytree(begun[1], tmp_path / "machine"))


def _start(
    server: _Server,
    workdir: pathlib.Path,
    bucket: _Bucket | None,
    *more: str,
    **how: Any,
) -> _End:
    """Runs the command for a run directory, or for a bucket and its local one.

    With more flags, and with an end as `_Server.run` takes it.
    """
    if bucket is None:
        return server.run(workdir, *more, **how)
    return server.run(bucket.workdir, f"--local_dir={workdir}", *more, **how)


def _durable_step(workdir: pathlib.Path, bucket: _Bucket | None) -> int:
    """The step that the next start there must go on after."""
    step = runs.durable_step(workdir)
    return step if bucket is None else max(step, bucket.durable_step())


def _finish(
    server: _Server,
    undisturbed: _Undisturbed,
    workdir: pathlib.Path,
    bucket: _Bucket | None = None,
) -> None:
    """Runs the same command to its end, from what is durable by now."""
    step = _durable_step(workdir, bucket)
    first_step = None if step == _LAST_STEP else step
    assert _start(server, workdir, bucket) == (0, first_step)
    runs.assert_same(workdir, undisturbed.workdir)


@pytest.mark.parametrize("point", _POINTS)
def test_killed_at_a_point_the_same_command_ends_the_same(
    server: _Server,
    undisturbed: _Undisturbed,
    tmp_path: pathlib.Path,
    point: str,
) -> None:
    workdir = tmp_path / "run"
    count, durable_steps = _POINTS[point]
    killed = server.run(workdir, point=point, count=count)
    assert killed.code == -signal.SIGKILL
    assert runs.durable_step(workdir) in durable_steps
    _finish(server, undisturbed, workdir)
    # And nothing is left over.
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == [
        "step-000000021"
    ]


@pytest.mark.parametrize(
    ("point", "keeps_its_disk"),
    [
        # A new machine, with an empty disk, is the harder case.
        *((point, False) for point in _REMOTE_POINTS),
        *(
            pytest.param(point, True, marks=pytest.mark.slow)
            for point in _REMOTE_POINTS
        ),
    ],
)
def test_killed_while_uploading_any_machine_ends_the_same(
    server: _Server,
    undisturbed: _Undisturbed,
    tmp_path: pathlib.Path,
    bucket: _Bucket,
    machine: pathlib.Path,
    point: str,
    keeps_its_disk: bool,
) -> None:
    count, durable_steps = _REMOTE_POINTS[point]
    killed = _start(server, machine, bucket, point=point, count=count)
    assert killed == (-signal.SIGKILL, 7)
    durable_step = bucket.durable_step()
    assert durable_step in durable_steps
    if not keeps_its_disk:
        machine = tmp_path / "another"
    _finish(server, undisturbed, machine, bucket)
    # With nothing left to save, the older ones stay.
    assert durable_step == _LAST_STEP or bucket.steps() == {_LAST_STEP}


@pytest.mark.slow
@pytest.mark.parametrize("keeps_its_disk", [True, False])
@pytest.mark.parametrize("point", _POINTS)
def test_killed_at_a_point_with_a_bucket_any_machine_ends_the_same(
    server: _Server,
    undisturbed: _Undisturbed,
    tmp_path: pathlib.Path,
    bucket: _Bucket,
    point: str,
    keeps_its_disk: bool,
) -> None:
    machine = tmp_path / "machine"
    count, _ = _POINTS[point]
    killed = _start(server, machine, bucket, point=point, count=count)
    assert killed.code == -signal.SIGKILL
    if not keeps_its_disk:
        machine = tmp_path / "another"
    _finish(server, undisturbed, machine, bucket)
    assert _LAST_STEP in bucket.steps()


def test_killed_while_it_downloads_to_an_older_disk_it_ends_the_same(
    server: _Server,
    undisturbed: _Undisturbed,
    tmp_path: pathlib.Path,
    bucket: _Bucket,
    machine: pathlib.Path,
) -> None:
    other = tmp_path / "other"
    assert _start(server, other, bucket, "--max_steps=14") == (0, 7)
    # By now the first machine has the records and pictures up to step 14, and
    # the checkpoint of step 7.
    point = "before adopting what was downloaded"
    killed = _start(server, machine, bucket, point=point, count=1)
    assert killed == (-signal.SIGKILL, None)
    assert runs.records(machine)[-1]["step"] == 14
    assert runs.durable_step(machine) == 7
    assert bucket.durable_step() == 14
    _finish(server, undisturbed, machine, bucket)


# And the step that is durable then, if it is to stop; another thread's work
# may be anywhere between two steps.
_PHASES = {
    "while loading": (1, 0),
    "while compiling": (1, 2),
    "mid-epoch": (5, 8),
    "during sampling": (2, 14),
    "before the bundle": (2, None),
    "before fsync": (1, None),
    "before the rename": (1, None),
    "during retention": (1, None),
}
_QUICK_PHASES = {
    "while compiling",
    "during sampling",
    "before the bundle",
    "before the rename",
}


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(
            phase, marks=() if phase in _QUICK_PHASES else pytest.mark.slow
        )
        for phase in _PHASES
    ],
)
def test_sigterm_in_any_phase_saves_and_a_second_one_does_not_wait(
    server: _Server,
    undisturbed: _Undisturbed,
    tmp_path: pathlib.Path,
    phase: str,
) -> None:
    workdir = tmp_path / "run"
    count, durable_step = _PHASES[phase]
    once, twice = (signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM)

    stopped = server.run(workdir, point=phase, count=count, signals=once)
    if durable_step is None:
        # Wherever the running steps ended: they all end with a record.
        durable_step = runs.records(workdir)[-1]["step"]
        assert durable_step > 7
    assert runs.newest_step(workdir) == durable_step
    if durable_step == _LAST_STEP:
        # It came when the last steps were running, and stopped nothing.
        assert stopped == (0, 0)
        return runs.assert_same(workdir, undisturbed.workdir)
    assert stopped.code == 143

    # What goes on from there gets two of them.
    stopped = server.run(workdir, point=phase, count=1, signals=twice)
    assert stopped.code == 143
    # Nothing but what the schedule asks for was saved.
    saved = {int(name[5:]) for name in runs.checkpoint_names(workdir)}
    assert saved <= {durable_step} | _SAVED_STEPS
    _finish(server, undisturbed, workdir)


def test_sigterm_while_uploading_leaves_the_newest_state_in_the_bucket(
    server: _Server,
    undisturbed: _Undisturbed,
    tmp_path: pathlib.Path,
    bucket: _Bucket,
) -> None:
    first = tmp_path / "first"
    stopped = _start(
        *(server, first, bucket),
        point="mid-body",
        count=1,
        signals=(signal.SIGTERM,),
    )
    step = runs.records(first)[-1]["step"]
    assert stopped == (0 if step == _LAST_STEP else 143, 0)
    assert runs.newest_step(first) == bucket.durable_step() == step
    _finish(server, undisturbed, tmp_path / "second", bucket)


def test_a_second_sigterm_does_not_wait_for_the_uploads_at_the_end(
    server: _Server,
    undisturbed: _Undisturbed,
    bucket: _Bucket,
    machine: pathlib.Path,
) -> None:
    # There is one upload, and nothing is left to do beside it.
    stopped = _start(
        *(server, machine, bucket, "--max_steps=14"),
        point="mid-body",
        count=1,
        signals=(signal.SIGTERM, signal.SIGTERM),
    )
    assert stopped == (143, 7)
    assert runs.newest_step(machine) == 14
    assert bucket.steps() == {7}
    # The same command uploads it, and trains nothing.
    assert _start(server, machine, bucket, "--max_steps=14") == (0, None)
    assert bucket.steps() == {14}
    _finish(server, undisturbed, machine, bucket)


@pytest.mark.slow
def test_killed_at_every_save_in_turn(
    server: _Server, undisturbed: _Undisturbed, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    for point, first_step in (
        ("after the manifest", 0),
        ("after the rename", 0),
        ("after sampling", 7),
    ):
        killed = server.run(workdir, point=point, count=1)
        assert killed == (-signal.SIGKILL, first_step)
    _finish(server, undisturbed, workdir)


@pytest.mark.parametrize("seed", _SEEDS)
def test_killed_by_the_clock_the_same_command_ends_the_same(
    server: _Server,
    undisturbed: _Undisturbed,
    tmp_path: pathlib.Path,
    seed: int,
) -> None:
    _kill_by_the_clock(server, undisturbed, tmp_path, seed, lambda: None)


@pytest.mark.parametrize("seed", _SEEDS)
def test_killed_by_the_clock_with_a_bucket_any_machine_ends_the_same(
    fake: FakeGcs,
    server: _Server,
    undisturbed: _Undisturbed,
    tmp_path: pathlib.Path,
    seed: int,
) -> None:
    numbers = itertools.count()
    _kill_by_the_clock(
        *(server, undisturbed, tmp_path, seed),
        lambda: _Bucket(fake, f"clock-{seed}-{next(numbers)}"),
    )


def _kill_by_the_clock(
    server: _Server,
    undisturbed: _Undisturbed,
    tmp_path: pathlib.Path,
    seed: int,
    make_bucket: Callable[[], _Bucket | None],
) -> None:
    """Kills at random moments, before, between and after the checkpoints.

    Until there were enough, and something is saved that is not yet the end;
    what comes last goes on from there.
    """
    draw, slowness, num_killed = random.Random(seed), 1.0, 0
    workdir, bucket = tmp_path / "0", make_bucket()
    for number in range(1, _MAX_STARTS):
        durable_step = _durable_step(workdir, bucket)
        if num_killed >= _MIN_KILLED and 0 < durable_step < _LAST_STEP:
            break
        if draw.random() < _EARLY:
            counts_from, secs = "start", undisturbed.first_epoch_secs
        else:
            counts_from = "first steps"
            secs = undisturbed.secs - undisturbed.first_epoch_secs
        end = _start(
            *(server, workdir, bucket),
            after_secs=slowness * draw.uniform(0.0, secs),
            counts_from=counts_from,
        )
        # One that was killed early has not begun to train.
        if end.first_step is not None:
            assert end.first_step == durable_step
        if end.code == 0:
            runs.assert_same(workdir, undisturbed.workdir)
            workdir, bucket = tmp_path / str(number), make_bucket()
            slowness *= 0.8
            continue
        assert end.code == -signal.SIGKILL
        num_killed += 1
        # A machine has slow minutes, in which nothing is ever saved.
        if _durable_step(workdir, bucket) == durable_step:
            slowness *= 1.2
        if bucket is not None and draw.choice([True, False]):
            workdir = tmp_path / str(number)
    assert num_killed >= _MIN_KILLED
    assert 0 < _durable_step(workdir, bucket) < _LAST_STEP
    _finish(server, undisturbed, workdir, bucket)
