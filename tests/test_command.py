"""The command as a user runs it: processes, signals, exit codes, messages."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

_ROOT = pathlib.Path(__file__).parent.parent
_TIMEOUT_SECS = 120
# The real networks, on two replicas, at a batch that makes steps short.
_TRAIN = (
    "--strategy=mirrored",
    "--num_logical_cpus=2",
    "--batch_size=16",
    "--log_every_steps=1",
    "--steps_per_loop=2",
)


def _start(*flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.main", *flags],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=_TIMEOUT_SECS)
    return process.returncode, stderr


def _wait_until_logged(
    process: subprocess.Popen[str], workdir: pathlib.Path, num_records: int
) -> None:
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + _TIMEOUT_SECS
    while time.monotonic() < deadline:
        if metrics.exists():
            if metrics.read_text().count("\n") >= num_records:
                return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    pytest.fail(f"no {num_records} records within {_TIMEOUT_SECS} s")


def _newest_step(workdir: pathlib.Path) -> int:
    names = [p.name for p in (workdir / "checkpoints").iterdir()]
    return max(int(name.removeprefix("step-")) for name in names)


def _bundle(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    directory = workdir / "checkpoints" / f"step-{step:09d}"
    reader = tf.train.load_checkpoint(str(directory / "state"))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }


def test_ctrl_c_saves_and_the_same_command_ends_in_the_same_weights(
    tmp_path: pathlib.Path,
) -> None:
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    process = _start(*_TRAIN, f"--workdir={stopped}")
    _wait_until_logged(process, stopped, num_records=3)
    process.send_signal(signal.SIGINT)
    exit_code, stderr = _finish(process)
    assert exit_code == 130, stderr
    assert "finishing the running steps" in stderr
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    step = _newest_step(stopped)

    last = step + 5
    exit_code, stderr = _finish(
        _start(*_TRAIN, f"--workdir={stopped}", f"--max_steps={last}")
    )
    assert exit_code == 0, stderr
    assert f"Going on after step {step}" in stderr
    exit_code, stderr = _finish(
        _start(*_TRAIN, f"--workdir={straight}", f"--max_steps={last}")
    )
    assert exit_code == 0, stderr
    one, other = _bundle(stopped, last), _bundle(straight, last)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_ctrl_c_twice_stops_at_once(tmp_path: pathlib.Path) -> None:
    # One call into TensorFlow lasts long after the first logged step.
    process = _start(
        *_TRAIN,
        f"--workdir={tmp_path}",
        "--log_every_steps=112",
        "--batch_size=8",
        "--steps_per_loop=100000",
    )
    _wait_until_logged(process, tmp_path, num_records=1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    start_secs = time.monotonic()
    process.send_signal(signal.SIGINT)
    exit_code, stderr = _finish(process)
    assert time.monotonic() - start_secs < 1.0
    assert exit_code == 130, stderr
    assert "stopping at once" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "checkpoints").exists()


def test_sigterm_saves_and_exits_143(tmp_path: pathlib.Path) -> None:
    process = _start(*_TRAIN, f"--workdir={tmp_path}")
    _wait_until_logged(process, tmp_path, num_records=1)
    process.send_signal(signal.SIGTERM)
    exit_code, stderr = _finish(process)
    assert exit_code == 143, stderr
    assert _newest_step(tmp_path) >= 1


def test_missing_data_is_one_clear_error(tmp_path: pathlib.Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    workdir = tmp_path / "run"
    # A proxy that refuses connections stands for a machine without a network.
    environment = dict(os.environ)
    environment.update(
        {
            name: "http://127.0.0.1:9"
            for name in ("http_proxy", "https_proxy", "all_proxy")
        }
    )
    result = subprocess.run(
        [
            *(sys.executable, "-m", "trainer.main", "--dataset=mnist"),
            *(f"--data_dir={empty}", f"--workdir={workdir}"),
        ],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECS,
    )
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    assert "--data_dir" in result.stderr
    assert "train-images-idx3-ubyte.gz" in result.stderr
    assert not workdir.exists()


def test_an_unwritable_workdir_is_one_clear_error(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    exit_code, stderr = _finish(_start(f"--workdir={workdir}"))
    assert exit_code == 6, stderr
    assert str(workdir) in stderr
    assert "Traceback" not in stderr
