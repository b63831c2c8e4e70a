"""Two workers as a user runs them: signals, losses, errors, the same end."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import runs
from tests.processes import ROOT, TIMEOUT_SECS, Command

_LAUNCHER = (
    *("launch.main", "submit", "--platform=local", "--num_workers=2"),
    "--",
)
# The real networks: 14 steps an epoch, a checkpoint each.
_TRAIN = (
    "--batch_size=128",
    "--epochs=2",
    "--checkpoint_every_epochs=1",
    "--log_every_steps=1",
    "--steps_per_loop=2",
)


def _start(workdir: pathlib.Path, *flags: str) -> Command:
    return Command(workdir, *_TRAIN, *flags, program=_LAUNCHER)


def _pid(launcher: Command, index: int) -> int:
    """Returns the process of a worker."""
    children = pathlib.Path(
        f"/proc/{launcher.pid}/task/{launcher.pid}/children"
    )
    for pid in children.read_text().split():
        environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
        if f'"index": {index}}}'.encode() in environment:
            return int(pid)
    raise AssertionError(f"Worker {index} does not run.")


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("workers") / "undisturbed"
    command = _start(workdir)
    assert command.finish() == 0, command.stderr
    return workdir


def test_one_worker_speaks_and_writes_for_both(
    undisturbed: pathlib.Path,
) -> None:
    stderr = undisturbed.with_name("undisturbed.stderr").read_text()
    assert "Worker 0 of 2, localhost:" in stderr
    assert "[worker 1] Worker 1 of 2, localhost:" in stderr
    assert "Global batch 128 = 2 replicas x 64. 14 steps an epoch" in stderr
    assert stderr.count("Finished: 2 epochs, 28 steps.") == 1
    assert "Traceback" not in stderr
    assert runs.checkpoint_names(undisturbed) == [
        "step-000000014",
        "step-000000028",
    ]
    assert [r["step"] for r in runs.records(undisturbed)] == [*range(1, 29)]


def test_stopped_and_lost_workers_end_in_the_same_weights(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    # One worker is told to stop: both stop at the same step, saved.
    command = _start(workdir)
    command.wait_for_records(3)
    os.kill(_pid(command, 1), signal.SIGTERM)
    assert command.finish() == 143, command.stderr
    assert "Worker 1 was told to stop, and all stop with it." in command.stderr
    stopped_at = runs.newest_step(workdir)
    assert 3 <= stopped_at < 14

    # One worker is lost: the other ends soon, and may be started again.
    for index in (1, 0):
        command = _start(workdir)
        command.wait_for_text("Going on after")
        command.wait_for_records(17)
        os.kill(_pid(command, index), signal.SIGKILL)
        start_secs = time.monotonic()
        assert command.finish() == 142, command.stderr
        assert time.monotonic() - start_secs < 45
        assert f"worker {index} was killed by signal 9" in command.stderr
        assert f"worker {1 - index} exited with code 142" in command.stderr
        assert "error: Another worker was lost" in command.stderr
        assert "Traceback" not in command.stderr
        assert runs.newest_step(workdir) == 14

    command = _start(workdir)
    assert command.finish() == 0, command.stderr
    assert "Going on after step 14" in command.stderr
    runs.assert_same(workdir, undisturbed)

    # A signal to the launcher stops both, too.
    command = _start(workdir, "--epochs=3")
    command.wait_for_records(30)
    command.send(signal.SIGTERM)
    assert command.finish() == 143, command.stderr
    assert 30 <= runs.newest_step(workdir) < 42

    # And any other number of workers may go on with it.
    command = Command(workdir, *_TRAIN, "--epochs=3")
    assert command.finish() == 0, command.stderr
    assert "Going on after step " in command.stderr
    assert runs.newest_step(workdir) == 42


def test_an_error_of_the_chief_is_the_exit_code_of_both(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    result = subprocess.run(
        [sys.executable, "-m", *_LAUNCHER, f"--workdir={workdir}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECS,
    )
    assert result.returncode == 6, result.stderr
    errors = [
        line
        for line in result.stderr.splitlines()
        if line.startswith(("error: ", "[worker 1] error: "))
    ]
    assert len(errors) == 2, result.stderr
    assert any(f"--workdir={workdir}" in line for line in errors)
    assert any("Worker 0 has ended with exit code 6" in e for e in errors)
    assert "Traceback" not in result.stderr


def test_workers_started_with_other_flags_are_refused(
    tmp_path: pathlib.Path,
) -> None:
    # By hand, as a launcher for clouds would.
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for index, batch_size in enumerate((64, 128)):
        cluster = {"worker": [f"localhost:{port}", f"localhost:{port + 1}"]}
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": cluster, "task": task})
        processes.append(
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "trainer.main"),
                    "--strategy=multi_worker",
                    f"--batch_size={batch_size}",
                    f"--workdir={tmp_path}/run",
                ],
                cwd=ROOT,
                env=os.environ | {"TF_CONFIG": config},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        stderr = process.communicate(timeout=TIMEOUT_SECS)[1]
        assert process.returncode == 2, stderr
        for text in ("--batch_size", "64", "128", "worker 1"):
            assert text in stderr
        assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


def test_without_a_cluster_there_is_a_remedy(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    command = Command(tmp_path / "run", "--strategy=multi_worker")
    assert command.finish() == 2, command.stderr
    for text in ("TF_CONFIG", "srun", "launch.main"):
        assert text in command.stderr


# Several kinds of each, so that together they are the parts of a step.
_OBJECTIVES = {
    "all that keeps a state": (
        *("--conditional", "--penalty=r1", "--penalty_every_steps=2"),
        *("--ema_half_life_images=500", "--augment=translate,flip"),
        *("--augment_target=0.6", "--augment_speed_images=2000"),
        *("--evaluate_every_epochs=1", "--num_evaluation_samples=200"),
    ),
    "several updates": (
        *("--loss=wasserstein", "--penalty=wgan_gp"),
        *("--num_discriminator_steps=2", "--gradient_accumulation_steps=2"),
    ),
    "pairs": ("--loss=relativistic", "--penalty=r1_r2"),
    "noise": ("--loss=hinge", "--penalty=dragan", "--conditional"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "noise" else pytest.mark.slow)
        for name in _OBJECTIVES
    ],
)
def test_two_workers_equal_two_replicas_of_one(
    name: str, tmp_path: pathlib.Path
) -> None:
    flags = (
        *("--model=dcgan", "--model_width=4", "--max_steps=20"),
        f"--cache_dir={tmp_path / 'cache'}",
        *_OBJECTIVES[name],
    )
    together = _start(tmp_path / "workers", *flags)
    assert together.finish() == 0, together.stderr
    alone = Command(
        tmp_path / "one",
        *_TRAIN,
        *flags,
        "--strategy=mirrored",
        "--num_logical_cpus=2",
    )
    assert alone.finish() == 0, alone.stderr
    runs.assert_same(tmp_path / "workers", tmp_path / "one")
