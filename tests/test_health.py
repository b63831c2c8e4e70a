"""A heartbeat is written whatever happens, and judged with patience."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import health, heartbeat
from trainer.heartbeat import Heartbeat

_ROOT = Path(health.__file__).parent.parent


@pytest.fixture(name="directory", autouse=True)
def _directory(tmp_path, monkeypatch):
    """A temporary directory without other trainers' heartbeats."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # Other tests' trainers run at the same time.
    monkeypatch.setattr(health, "_pid_without_heartbeat", lambda: None)
    return heartbeat.directory()


def _check():
    naps = []
    alive, line = health.check(sleep=naps.append)
    assert "\n" not in line
    # Nothing is called dead at first sight.
    assert len(naps) == (0 if alive else 1)
    return alive, line


def _path(directory):
    [path] = directory.glob("*.json")
    return path


def _age(directory, secs):
    """Makes the heartbeat look as if it was written some time ago."""
    path = _path(directory)
    record = json.loads(path.read_text())
    record["monotonic_secs"] -= secs
    path.write_text(json.dumps(record))


def _quiet(stall_timeout_secs=300.0):
    """A heartbeat that is written only when it is entered."""
    return Heartbeat(stall_timeout_secs=stall_timeout_secs, interval_secs=3600)


def test_without_a_trainer_there_is_none(directory):
    assert _check() == (False, "no trainer runs here")
    assert not directory.exists()


def test_the_file_says_what_the_process_does(directory):
    with Heartbeat(stall_timeout_secs=300, interval_secs=0.01) as pulse:
        record = json.loads(_path(directory).read_text())
        assert record["pid"] == os.getpid()
        assert (record["phase"], record["step"]) == ("starting", None)
        assert record["limit_secs"] == 1800
        pulse.note("saving", 1200)
        while json.loads(_path(directory).read_text())["step"] != 1200:
            time.sleep(0.01)
        record = json.loads(_path(directory).read_text())
        assert record["phase"] == "saving"
        assert record["limit_secs"] == 300
        alive, line = _check()
    assert alive
    assert line == (
        f"alive: saving after step 1200, process {os.getpid()}, "
        "heartbeat 0 s old, 300 s allowed"
    )
    # A trainer that has ended leaves nothing.
    assert list(directory.iterdir()) == []
    assert not _check()[0]


def test_it_is_written_at_a_bounded_rate(directory, monkeypatch):
    writes = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda *paths: (writes.append(1), replace(*paths))
    )
    start_secs = time.monotonic()
    with Heartbeat(stall_timeout_secs=300, interval_secs=0.1) as pulse:
        for step in range(100_000):
            pulse.note("training", step)
        time.sleep(0.35)
    num_intervals = (time.monotonic() - start_secs) / 0.1
    assert 2 <= len(writes) <= num_intervals + 1


@pytest.mark.parametrize(
    ("stall_timeout_secs", "age_secs", "is_alive"),
    [
        (300, 1790, True),  # Six times as much at the start.
        (300, 1810, False),
        (5, 50, True),  # Never less than a minute.
        (5, 70, False),
        (0, 10**6, True),
    ],
)
def test_how_old_it_may_get_follows_the_stall_timeout(
    directory, stall_timeout_secs, age_secs, is_alive
):
    with _quiet(stall_timeout_secs):
        _age(directory, age_secs)
        alive, line = _check()
    assert alive is is_alive
    assert line.startswith("alive: " if is_alive else "stale: ")
    if stall_timeout_secs == 300:
        assert line.endswith(f"heartbeat {age_secs} s old, 1800 s allowed")


def test_one_that_comes_late_is_seen_at_the_second_look(directory):
    # As after the pause of a virtual machine.
    with _quiet() as pulse:
        _age(directory, 10_000)
        alive, _ = health.check(sleep=lambda _: pulse._write())
    assert alive


def _start_process(code, **kwargs):
    process = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "from trainer.heartbeat import Heartbeat\n" + code,
        ],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **kwargs,
    )
    assert process.stdout.readline() == "ready\n"
    return process


_WAIT = """
with Heartbeat(stall_timeout_secs=300):
    print("ready", flush=True)
    input()
"""


@pytest.fixture(name="process")
def _process():
    with _start_process(_WAIT) as process:
        yield process
        process.kill()


def test_a_stopped_process_is_alive(process, directory):
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    _age(directory, 10**6)
    alive, line = _check()
    assert alive
    assert line.startswith("alive but stopped: starting")
    process.send_signal(signal.SIGCONT)
    while heartbeat.process_status(process.pid)[0] in "Tt":
        time.sleep(0.01)
    assert not _check()[0]


def test_a_killed_process_is_none_and_its_file_is_swept(process, directory):
    path = _path(directory)
    assert _check()[0]
    process.kill()
    while heartbeat.process_status(process.pid)[0] != "Z":
        time.sleep(0.01)
    # Its parent has not taken notice yet.
    assert _check() == (False, "no trainer runs here")
    process.wait()
    assert _check() == (False, "no trainer runs here")
    assert path.exists()
    with _quiet():
        assert not path.exists()


def test_one_of_several_that_is_stale_makes_all_unhealthy(process, directory):
    _age(directory, 10_000)
    with _quiet():
        alive, line = _check()
    assert not alive
    assert line.startswith(f"stale: starting, process {process.pid}, ")
    assert line.endswith("; 1 of 2 are alive")


def test_the_file_of_an_earlier_process_1_is_not_taken_for_this_ones(directory):
    with _quiet():
        path = _path(directory)
        record = json.loads(path.read_text())
        record["start_ticks"] -= 1
        record["monotonic_secs"] -= 10_000
        path.write_text(json.dumps(record))
        assert _check() == (False, "no trainer runs here")


def test_a_process_that_keeps_pythons_lock_in_c_becomes_stale(
    directory, monkeypatch
):
    """The case that the watchdog, a thread of the process, cannot see."""
    monkeypatch.setattr(heartbeat, "_MIN_LIMIT_SECS", 1.0)
    code = """
import ctypes
from trainer import heartbeat
heartbeat._MIN_LIMIT_SECS = 1.0
with Heartbeat(stall_timeout_secs=0.2, interval_secs=0.05) as pulse:
    pulse.note("training", 7)
    import time; time.sleep(0.2)
    print("ready", flush=True)
    ctypes.PyDLL(None).sleep(600)  # Unlike CDLL, it does not let go.
"""
    with _start_process(code) as process:
        assert _check()[0]
        time.sleep(1.2)
        alive, line = _check()
        process.kill()
    assert not alive
    assert line.startswith("stale: training after step 7, ")


def test_a_full_disk_removes_what_would_look_stale(directory, monkeypatch):
    def is_full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Heartbeat(stall_timeout_secs=300, interval_secs=0.01):
        path = _path(directory)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", is_full)
            while path.exists():
                time.sleep(0.01)
        # It comes back when there is room again.
        while not path.exists():
            time.sleep(0.01)


def test_a_directory_that_cannot_be_written_is_a_warning(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file" / "below"))
    (tmp_path / "file").touch()
    with _quiet():
        assert "No heartbeat for health checks: cannot write" in caplog.text
        assert not _check()[0]


def test_somebody_elses_directory_is_not_used(tmp_path, directory, caplog):
    directory.symlink_to(tmp_path)
    with Heartbeat(stall_timeout_secs=300, interval_secs=0.01):
        assert "somebody else's" in caplog.text
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == [directory]


def test_a_trainer_without_a_heartbeat_is_alive(monkeypatch, tmp_path):
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").touch()
    (tmp_path / "trainer" / "main.py").write_text(code)
    with subprocess.Popen(
        [sys.executable, "-m", "trainer.main"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        assert health._is_trainer(process.pid)
        assert not health._is_trainer(os.getpid())
        monkeypatch.undo()
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        alive, line = _check()
        process.kill()
    assert alive
    assert line.endswith(", without a heartbeat")


def test_the_command_says_one_line_and_the_exit_code(process, tmp_path):
    def run(*flags):
        return subprocess.run(
            [sys.executable, "-m", "trainer.health", *flags],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    result = run()
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"alive: starting, process {process.pid}, ")
    assert result.stdout.count("\n") == 1
    assert run("--workdir=x").returncode == 2
    assert "usage: python -m trainer.health" in run("--help").stdout
