"""Killed anywhere, the same command ends in the weights of an undisturbed run.

By default some of the points; all of them, and many moments by the clock, with
`python -m pytest -m slow tests/test_kill_matrix.py`.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

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
# How often each point is passed before it kills: in the second of three saves,
# but for retention, which has nothing to do before.
_POINTS = {
    "after the temporary directory": 2,
    "before the bundle": 2,
    "after the bundle": 2,
    "before fsync": 4,
    "after fsync": 5,
    "before the manifest": 2,
    "after the manifest": 2,
    "before the rename": 2,
    "after the rename": 2,
    "during retention": 1,
    "during sampling": 2,
    "after sampling": 2,
    "mid-epoch": 5,
}
# Uploads are a thread's own affair: the newer of two saves may overtake.
_REMOTE_POINTS = {
    "mid-upload": 2,
    "mid-body": 1,
    "before the remote manifest": 1,
    "after the remote manifest": 1,
    # Of an older one the manifest goes first, then a file.
    "during remote retention": 2,
}


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

    def run(
        self,
        workdir: pathlib.Path | str,
        point: str | None = None,
        count: int = 0,
        *more: str,
        signals: tuple[int, ...] = (signal.SIGKILL,),
        after_secs: float | None = None,
    ) -> int:
        flags = [*_FLAGS, f"--workdir={workdir}", *more]
        command = {
            "flags": flags,
            "point": point,
            "count": count,
            "signals": signals,
            "after_secs": after_secs,
        }
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._log.read_text()
        return int(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


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
) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("kill_matrix") / "undisturbed"
    assert server.run(workdir) == 0
    return workdir


@pytest.mark.parametrize("point", _POINTS)
def test_killed_at_a_point_the_same_command_ends_the_same(
    server: _Server,
    undisturbed: pathlib.Path,
    tmp_path: pathlib.Path,
    point: str,
) -> None:
    workdir = tmp_path / "run"
    killed = server.run(workdir, point, _POINTS[point])
    assert killed == -signal.SIGKILL
    assert server.run(workdir) == 0
    runs.assert_same(workdir, undisturbed)
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
            pytest.param(point, keeps, marks=pytest.mark.slow)
            for point in {**_POINTS, **_REMOTE_POINTS}
            for keeps in (True, False)
            if keeps or point not in _REMOTE_POINTS
        ),
    ],
)
def test_killed_with_a_bucket_any_machine_ends_the_same(
    fake: FakeGcs,
    server: _Server,
    undisturbed: pathlib.Path,
    tmp_path: pathlib.Path,
    point: str,
    keeps_its_disk: bool,
) -> None:
    fake.objects.add_bucket(bucket := f"bucket-{tmp_path.name[-20:].lower()}")
    workdir = f"gs://{bucket}/run"
    first = tmp_path / "first"
    second = first if keeps_its_disk else tmp_path / "second"
    count = {**_POINTS, **_REMOTE_POINTS}[point]
    if point == "during remote retention":
        # There must be an older one, whatever overtakes what.
        assert (
            server.run(
                *(workdir, None, 0, f"--local_dir={first}", "--max_steps=7")
            )
            == 0
        )
    killed = server.run(workdir, point, count, f"--local_dir={first}")
    assert killed == -signal.SIGKILL
    assert server.run(workdir, None, 0, f"--local_dir={second}") == 0
    runs.assert_same(second, undisturbed)
    names = fake.objects.names(bucket)
    assert "run/checkpoints/step-000000021/MANIFEST.json" in names
    assert sum(name.endswith("MANIFEST.json") for name in names) == 1


# And the step that is durable then, if it is to stop; another thread's work
# may be anywhere between two steps.
_PHASES = {
    "while loading": (1, {0}),
    "while compiling": (1, {2}),
    "mid-epoch": (5, {8}),
    "during sampling": (2, {14}),
    "before the bundle": (2, {14}),
    "before fsync": (4, set(range(14, 22))),
    "before the rename": (2, set(range(14, 22))),
    "during retention": (1, set(range(14, 22))),
}


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(
            phase,
            marks=() if phase == "while compiling" else pytest.mark.slow,
            id=phase,
        )
        for phase in _PHASES
    ],
)
def test_sigterm_in_any_phase_saves_and_a_second_one_does_not_wait(
    server: _Server,
    undisturbed: pathlib.Path,
    tmp_path: pathlib.Path,
    phase: str,
) -> None:
    count, durable_steps = _PHASES[phase]
    once, twice = (signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM)
    for workdir, signals in (
        (tmp_path / "once", once),
        (tmp_path / "twice", twice),
    ):
        code = server.run(workdir, phase, count, signals=signals)
        if signals == once:
            step = runs.newest_step(workdir)
            assert step in durable_steps
            # One that comes when nothing is left to do stops nothing.
            assert code == (0 if step == 21 else 143)
        else:
            # Nothing but what the schedule asked for was saved.
            assert code == 143
            saved = {int(n[5:]) for n in runs.checkpoint_names(workdir)}
            assert saved <= {7, 14, 21}
        assert server.run(workdir) == 0
        runs.assert_same(workdir, undisturbed)


def test_sigterm_while_uploading_leaves_the_newest_state_in_the_bucket(
    fake: FakeGcs,
    server: _Server,
    undisturbed: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    fake.objects.add_bucket("stopped")
    workdir, signals = "gs://stopped/run", (signal.SIGTERM,)
    first, second = tmp_path / "first", tmp_path / "second"
    code = server.run(
        *(workdir, "mid-body", 1, f"--local_dir={first}"), signals=signals
    )
    step = runs.newest_step(first)
    assert code == (0 if step == 21 else 143)
    name = f"run/checkpoints/step-{step:09d}/MANIFEST.json"
    assert name in fake.objects.names("stopped")
    assert server.run(workdir, None, 0, f"--local_dir={second}") == 0
    runs.assert_same(second, undisturbed)


@pytest.mark.slow
def test_killed_at_every_save_in_turn(
    server: _Server, undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    for point in ("after the manifest", "after the rename", "after sampling"):
        assert server.run(workdir, point, 1) == -signal.SIGKILL
    assert server.run(workdir) == 0
    runs.assert_same(workdir, undisturbed)


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(s, marks=() if s == 0 else pytest.mark.slow)
        for s in range(9)
    ],
)
def test_killed_by_the_clock_the_same_command_ends_the_same(
    server: _Server,
    undisturbed: pathlib.Path,
    tmp_path: pathlib.Path,
    seed: int,
) -> None:
    workdir = tmp_path / "run"
    draw = random.Random(seed)
    # From before the first trace to after the last save.
    codes = [
        server.run(workdir, after_secs=draw.uniform(0.2, 1.5)) for _ in range(4)
    ]
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert -signal.SIGKILL in codes
    assert server.run(workdir) == 0
    runs.assert_same(workdir, undisturbed)
