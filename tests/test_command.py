"""The command as a user runs it: processes, signals, exit codes, messages."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import runs
from tests.processes import ROOT, TIMEOUT_SECS, Command

# The real networks on two replicas: 14 steps an epoch, a checkpoint each.
_TRAIN = (
    "--strategy=mirrored",
    "--num_logical_cpus=2",
    "--batch_size=128",
    "--epochs=2",
    "--checkpoint_every_epochs=1",
    "--log_every_steps=1",
    "--steps_per_loop=2",
)


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("command") / "undisturbed"
    command = Command(workdir, *_TRAIN)
    assert command.finish() == 0, command.stderr
    return workdir


def test_the_command_says_what_it_does(undisturbed: pathlib.Path) -> None:
    stderr = undisturbed.with_name("undisturbed.stderr").read_text()
    assert "Training on CPU:0, CPU:1" in stderr
    assert "Global batch 128 = 2 replicas x 64. 14 steps an epoch" in stderr
    assert "epoch 2/2 step 28/28: g_loss" in stderr
    assert "images/s" in stderr
    assert "Finished: 2 epochs, 28 steps." in stderr
    assert f"tensorboard --logdir {undisturbed}/events" in stderr
    assert "Traceback" not in stderr


def test_ctrl_c_saves_and_the_same_command_ends_in_the_same_weights(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    command = Command(workdir, *_TRAIN)
    command.wait_for_records(3)
    command.send(signal.SIGINT)
    assert command.finish() == 130, command.stderr
    assert "finishing the running steps" in command.stderr
    assert "the same command goes on" in command.stderr
    assert "Traceback" not in command.stderr
    step = runs.newest_step(workdir)

    command = Command(workdir, *_TRAIN)
    assert command.finish() == 0, command.stderr
    assert f"Going on after step {step}" in command.stderr
    runs.assert_same(workdir, undisturbed)


def test_a_killed_run_ends_in_the_same_weights(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # In the second epoch: what was logged after the checkpoint is replayed.
    workdir = tmp_path / "run"
    command = Command(workdir, *_TRAIN)
    command.wait_for_records(18)
    command.send(signal.SIGKILL)
    assert command.finish() == -signal.SIGKILL
    assert runs.newest_step(workdir) == 14

    command = Command(workdir, *_TRAIN)
    assert command.finish() == 0, command.stderr
    assert "Going on after step 14" in command.stderr
    runs.assert_same(workdir, undisturbed)


def test_ctrl_c_twice_stops_at_once(tmp_path: pathlib.Path) -> None:
    # One call into TensorFlow lasts for an epoch of about 900 steps here.
    workdir = tmp_path / "run"
    command = Command(
        workdir,
        "--strategy=mirrored",
        "--batch_size=2",
        "--log_every_steps=100000",
        "--steps_per_loop=100000",
    )
    command.wait_until((workdir / "samples" / "real.png").exists)
    time.sleep(2)  # For the loop to be traced; what follows works in any case.
    command.send(signal.SIGINT)
    command.wait_for_text("finishing the running steps")
    start_secs = time.monotonic()
    command.send(signal.SIGINT)
    assert command.finish() == 130, command.stderr
    assert time.monotonic() - start_secs < 1.0
    assert "stopping at once" in command.stderr
    assert "Traceback" not in command.stderr
    assert not runs.checkpoint_names(workdir)


def test_sigterm_saves_and_exits_143(tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    command = Command(workdir, *_TRAIN)
    command.wait_for_records(1)
    command.send(signal.SIGTERM)
    assert command.finish() == 143, command.stderr
    assert runs.newest_step(workdir) >= 1


def test_missing_data_is_one_clear_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    # A proxy that refuses connections stands for a machine without a network.
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:9")
    workdir = tmp_path / "run"
    command = Command(workdir, "--dataset=mnist", f"--data_dir={empty}")
    assert command.finish() == 3, command.stderr
    assert len(re.findall("^error: ", command.stderr, re.MULTILINE)) == 1
    assert "warning:" not in command.stderr
    assert "Traceback" not in command.stderr
    assert "--data_dir" in command.stderr
    assert "train-images-idx3-ubyte.gz" in command.stderr
    assert not workdir.exists()


def test_an_unwritable_workdir_is_one_clear_error(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    result = subprocess.run(
        [sys.executable, "-m", "trainer.main", f"--workdir={workdir}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECS,
    )
    assert result.returncode == 6, result.stderr
    assert str(workdir) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_in_which_nothing_moves_ends_and_says_where(
    tmp_path: pathlib.Path,
) -> None:
    code = """
import sys, time
from trainer import main, train_step

real_run = train_step.TrainStep.run

def run(self, num_steps):
    if int(self._state.global_step.numpy()) >= 4:
        time.sleep(3600)  # As a collective does when a GPU is lost.
    return real_run(self, num_steps)

train_step.TrainStep.run = run
sys.exit(main.main(sys.argv))
"""
    workdir = tmp_path / "run"
    result = subprocess.run(
        [
            *(sys.executable, "-c", code, *_TRAIN),
            *("--stall_timeout_secs=3", f"--workdir={workdir}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECS,
    )
    assert result.returncode == 142, result.stderr
    assert "--stall_timeout_secs" in result.stderr
    assert "in _train" in result.stderr  # The stack of the thread that hangs.
    assert not runs.checkpoint_names(workdir)
