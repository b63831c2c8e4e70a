"""Workers that are small Python programs, and end together."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launch import processes
from trainer import errors

_ROOT = Path(processes.__file__).parent.parent
_TIMEOUT_SECS = 60
# Waits that shall never be over outlast the test, but not by much.
_WORKER = """
import os, signal, sys, time
from pathlib import Path

index = int(os.environ["INDEX"])
forever = 2 * {timeout_secs}

def wait_for(name):
    for _ in range(forever * 50):
        if Path(name).exists():
            return
        time.sleep(0.02)
    sys.exit(99)

def say(text):
    print(text, flush=True)

{code}
"""
_LAUNCHER = """
import os, sys
from launch import processes

for name, value in {constants!r}.items():
    setattr(processes, name, value)
environments = [{{**os.environ, "INDEX": str(i)}} for i in range({workers})]
command = [sys.executable, "-I", "-S", "-c", {code!r}]
sys.exit(processes.run_workers(command, environments, {grace_secs}))
"""


@pytest.fixture
def start(tmp_path):
    """Starts the launcher, whose workers run `code` in `tmp_path`."""
    processes = []

    def start(code, workers=2, grace_secs=_TIMEOUT_SECS, constants=None, **to):
        worker = _WORKER.format(
            timeout_secs=_TIMEOUT_SECS, code=textwrap.dedent(code)
        )
        launcher = _LAUNCHER.format(
            code=worker,
            workers=workers,
            grace_secs=grace_secs,
            constants=constants or {},
        )
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [sys.executable, "-c", launcher],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            text=True,
            **{**pipes, **to},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def _finish(process):
    """Returns the exit code, what was left in stdout and in stderr."""
    out, err = process.communicate(timeout=_TIMEOUT_SECS)
    return process.returncode, out, err


def _wait_until(condition):
    deadline = time.monotonic() + _TIMEOUT_SECS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_that_all_succeed_make_a_success_without_a_word(start):
    assert _finish(start("", workers=3)) == (0, "", "")


def test_workers_read_nothing_from_the_terminal(start):
    process = start("say(repr(sys.stdin.read()))")
    # Standard input of the launcher is still open.
    assert process.stdout.readline() == "''\n"
    assert process.stderr.readline() == "[worker 1] ''\n"


def test_after_a_failure_the_others_may_end_by_themselves(start, tmp_path):
    process = start("""
        if index == 1:
            sys.exit(5)
        wait_for("go")
        sys.exit(142)
    """)
    assert process.stderr.readline() == "worker 1 exited with code 5\n"
    (tmp_path / "go").touch()
    assert _finish(process) == (5, "", "worker 0 exited with code 142\n")


def test_after_a_failure_those_who_do_not_end_are_ended(start):
    process = start(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        if index == 2:
            wait_for("ready 0")
            wait_for("ready 1")
            sys.exit(5)
        Path(f"ready {index}").touch()
        time.sleep(forever)
        """,
        workers=3,
        grace_secs=0.3,
    )
    code, _, err = _finish(process)
    assert code == 5
    lines = err.splitlines()
    assert lines[:3] == [
        "worker 2 exited with code 5",
        "worker 0 did not end within 0.3 s: sending SIGTERM",
        "worker 1 did not end within 0.3 s: sending SIGTERM",
    ]
    assert sorted(lines[3:]) == [
        "worker 0 exited with code 143",
        "worker 1 exited with code 143",
    ]


def test_a_worker_that_ignores_everything_is_killed(start):
    process = start(
        """
        if index == 1:
            wait_for("ready")
            sys.exit(5)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        Path("ready").touch()
        time.sleep(forever)
        """,
        grace_secs=0.1,
        constants={"_SIGTERM_TO_SIGKILL_SECS": 0.3},
    )
    assert _finish(process) == (
        5,
        "",
        "worker 1 exited with code 5\n"
        "worker 0 did not end within 0.1 s: sending SIGTERM\n"
        "worker 0 did not end within 0.3 s: sending SIGKILL\n"
        "worker 0 was killed by signal 9 (SIGKILL)\n",
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_means_that_the_same_command_goes_on(
    start, tmp_path, number
):
    process = start(f"""
        if index == 1:
            os.kill(os.getpid(), {int(number)})
        wait_for("go")
        sys.exit(3)
    """)
    assert process.stderr.readline() == (
        f"worker 1 was killed by signal {int(number)} ({number.name})\n"
    )
    (tmp_path / "go").touch()
    assert _finish(process)[0] == errors.EXIT_STALLED == 142


def test_workers_may_succeed_one_after_the_other(start, tmp_path):
    process = start("""
        if index == 1:
            Path("done").touch()
        else:
            wait_for("go")
    """)
    _wait_until((tmp_path / "done").exists)
    time.sleep(0.3)  # Lets the launcher see it.
    (tmp_path / "go").touch()
    assert _finish(process) == (0, "", "")


def test_a_worker_that_never_ends_is_no_success(start):
    process = start("time.sleep(forever if index == 0 else 0)", grace_secs=0.1)
    assert _finish(process) == (
        142,
        "",
        "worker 0 did not end within 0.1 s: sending SIGTERM\n"
        "worker 0 was killed by signal 15 (SIGTERM)\n",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_signal_is_passed_on_once_to_each_worker(start, number):
    process = start("""
        received = []
        def receive(number, _):
            received.append(number)
            # The next signal may come before `print` would be done.
            os.write(1, f"{number} for the {len(received)}. time\\n".encode())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, receive)
        # A terminal sends Ctrl-C to all processes of its group.
        assert os.getpgrp() == os.getpid() == os.getsid(0)
        say("ready")
        while len(received) < 2:
            time.sleep(0.02)
        sys.exit(128 + received[-1])
    """)
    streams = {process.stdout: "", process.stderr: "[worker 1] "}
    for stream, prefix in streams.items():
        assert stream.readline() == f"{prefix}ready\n"
    for count in (1, 2):
        process.send_signal(number)
        for stream, prefix in streams.items():
            assert stream.readline() == (
                f"{prefix}{int(number)} for the {count}. time\n"
            )
    assert _finish(process) == (128 + number, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_that_ignore_a_stop_are_killed_after_the_grace(
    start, tmp_path, number
):
    process = start(
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        Path(f"ready {index}").touch()
        time.sleep(forever)
        """,
        grace_secs=0.5,
    )
    for index in (0, 1):
        _wait_until((tmp_path / f"ready {index}").exists)
    start_secs = time.monotonic()
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)  # Gives no more time.
    code, _, err = _finish(process)
    assert 0.5 <= time.monotonic() - start_secs < 10
    assert code == errors.EXIT_STALLED
    assert err.splitlines()[:2] == [
        f"worker {index} did not end within 0.5 s: sending SIGKILL"
        for index in (0, 1)
    ]


def test_a_stop_while_the_workers_start_is_no_failure(start):
    # They are killed then, as they have no handlers yet.
    process = start("say('ready'); time.sleep(forever)")
    assert process.stdout.readline() == "ready\n"
    assert process.stderr.readline() == "[worker 1] ready\n"
    process.send_signal(signal.SIGTERM)
    assert _finish(process) == (143, "", "")


def test_the_launcher_never_leaves_workers_behind(start, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = start(
        """
        writer = os.open("fifo", os.O_WRONLY)
        os.write(writer, b".")
        time.sleep(forever)
        """,
        workers=3,
    )
    received = b""

    def all_have_started():
        nonlocal received
        try:
            received += os.read(reader, 3)
        except BlockingIOError:
            pass
        return received == b"..."

    def all_have_ended():
        try:
            return os.read(reader, 1) == b""  # Nobody has it open any more.
        except BlockingIOError:
            return False

    try:
        _wait_until(all_have_started)
        assert not all_have_ended()
        process.kill()
        _wait_until(all_have_ended)
    finally:
        os.close(reader)


def test_lines_of_the_others_have_their_number_and_stay_whole(start):
    process = start(
        """
        for i in range(100):
            file = sys.stderr if index and i % 2 else sys.stdout
            print(f"line {i} of", end=" ", file=file, flush=True)
            print(f"worker {index}", file=file, flush=True)
        print("no end", end="")
        """,
        workers=3,
    )
    code, out, err = _finish(process)
    assert code == 0
    expected = [f"line {i} of worker 0" for i in range(100)]
    assert out.splitlines() == [*expected, "no end"]
    lines = err.splitlines()
    for index in (1, 2):
        prefix = f"[worker {index}] "
        expected = [f"{prefix}line {i} of worker {index}" for i in range(100)]
        assert [line for line in lines if line.startswith(prefix)] == (
            [*expected, f"{prefix}no end"]
        )


# More than the pipes hold that lead to and from the launcher.
_SAY_MUCH = """
if index == 1:
    for _ in range(5000):
        say("much" * 100)
    Path("done").touch()
    wait_for("go")
"""


def test_nobody_waits_for_a_slow_reader(start, tmp_path):
    process = start(_SAY_MUCH)
    _wait_until((tmp_path / "done").exists)
    (tmp_path / "go").touch()
    code, _, err = _finish(process)
    assert code == 0
    assert err.splitlines() == ["[worker 1] " + "much" * 100] * 5000


def test_lines_that_nobody_reads_do_not_pile_up(start, tmp_path):
    process = start(_SAY_MUCH, constants={"_MAX_WAITING_LINES": 10})
    _wait_until((tmp_path / "done").exists)
    (tmp_path / "go").touch()
    code, _, err = _finish(process)
    assert code == 0
    assert 10 <= len(err.splitlines()) < 1000


def test_without_a_reader_the_launcher_ends_all_the_same(start, tmp_path):
    (tmp_path / "go").touch()
    process = start(_SAY_MUCH, constants={"_DRAIN_SECS": 0.2})
    assert process.wait(timeout=_TIMEOUT_SECS) == 0


def test_lines_that_cannot_be_written_do_not_end_the_others(start, tmp_path):
    # A terminal that another program has left in this state is like that.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    start(
        _SAY_MUCH
        + """
    for _ in range(500):
        say("more")
        if Path("stop").exists():
            break
        time.sleep(0.02)
""",
        stderr=writer,
    )
    os.close(writer)
    _wait_until((tmp_path / "done").exists)
    (tmp_path / "go").touch()
    with open(reader) as stderr:
        assert any(line.endswith("[worker 1] more\n") for line in stderr)
    (tmp_path / "stop").touch()


def test_the_last_lines_are_waited_for(start):
    process = start(
        """
        # What a worker has started may speak after it.
        if index == 1 and os.fork() == 0:
            time.sleep(0.5)
            say("late")
        """,
        constants={"_DRAIN_SECS": _TIMEOUT_SECS},
    )
    assert _finish(process) == (0, "", "[worker 1] late\n")


def test_worker_0_has_the_screen_and_lines_replace_its_bar(start):
    screen, terminal = pty.openpty()
    process = start(
        """
        if index == 1:
            wait_for("bar")
            sys.exit(5)
        assert sys.stderr.isatty()
        print("bar", end="", file=sys.stderr, flush=True)
        Path("bar").touch()
        """,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        assert process.wait(timeout=_TIMEOUT_SECS) == 5
        assert os.read(screen, 1000) == (
            b"bar\r\x1b[Kworker 1 exited with code 5\r\n"
        )
    finally:
        os.close(screen)
