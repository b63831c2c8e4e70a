"""The trainer as a container's first process, for which signals are special."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import runs
from tests.processes import ROOT, Command

# What orchestrators wait at least between SIGTERM and SIGKILL.
_GRACE_SECS = 10.0
# A namespace's first process ends all others in it.
_UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def _can_unshare() -> bool:
    if not shutil.which("unshare"):
        return False
    result = subprocess.run([*_UNSHARE, "true"], capture_output=True)
    return result.returncode == 0


pytestmark = pytest.mark.skipif(
    not _can_unshare(), reason="needs root and PID namespaces"
)


class _FirstProcess(Command):
    """A trainer that is process 1 of a namespace of its own."""

    prefix = _UNSHARE

    def send(self, number: int) -> None:
        """Sends a signal to process 1, from outside as `docker stop` does."""
        os.kill(self.inner_pid(), number)

    def inner_pid(self) -> int:
        """Returns the process's number outside of the namespace."""
        children = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children")
        self.wait_until(lambda: children.read_text().strip() != "")
        return int(children.read_text())


def test_a_process_one_without_handlers_ignores_sigterm():
    """What all this is about; else the tests below would show nothing."""
    code = "print('ready', flush=True); input()"
    with subprocess.Popen(
        [*_UNSHARE, sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        os.kill(int(pathlib.Path(children).read_text()), signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.communicate("\n", timeout=20)
        assert process.returncode == 0


def test_sigterm_while_tensorflow_is_imported_ends_it_at_once(tmp_path):
    command = _FirstProcess(tmp_path / "run")
    maps = pathlib.Path(f"/proc/{command.inner_pid()}/maps")
    command.wait_until(lambda: "libtensorflow" in maps.read_text())
    start_secs = time.monotonic()
    command.send(signal.SIGTERM)
    assert command.finish() == 143, command.stderr
    assert time.monotonic() - start_secs < _GRACE_SECS
    assert "SIGTERM: not training yet, stopping at once." in command.stderr
    assert not (tmp_path / "run").exists()


def test_sigterm_in_training_saves_within_the_grace(tmp_path):
    workdir = tmp_path / "run"
    command = _FirstProcess(workdir, "--batch_size=64", "--steps_per_loop=2")
    command.wait_for_records(1)
    start_secs = time.monotonic()
    command.send(signal.SIGTERM)
    assert command.finish() == 143, command.stderr
    assert time.monotonic() - start_secs < _GRACE_SECS
    last = runs.records(workdir)[-1]["step"]
    assert runs.newest_step(workdir) == last
    manifest = workdir / "checkpoints" / runs.checkpoint_names(workdir)[-1]
    assert (manifest / "MANIFEST.json").exists()


def test_a_deadline_ends_it_with_its_code_under_pythons_lock():
    """A signal, which ends other processes, would not (see above)."""
    code = """
import ctypes
from trainer import deadline
with deadline.end_process_after(0.1, 142):
    ctypes.PyDLL(None).sleep(60)
"""
    result = subprocess.run(
        [*_UNSHARE, sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
    )
    assert result.returncode == 142, result.stderr
