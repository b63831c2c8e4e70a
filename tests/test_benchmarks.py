"""The benchmarks' machinery: that it works, not what it measures."""

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.benchmarks import turns
from tests.benchmarks.turns import Contestant, Group

_ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    # Where `python -m tests.benchmarks.child` is found.
    monkeypatch.chdir(_ROOT)


# What contestants are built by, in processes of their own.


def sleeper(secs_per_step, log=os.devnull, name=""):
    def run(num_steps):
        with open(log, "a") as file:
            file.write(f"{name}{num_steps} ")
        print("Libraries print, too.")
        time.sleep(secs_per_step * num_steps)

    return run


def refuser():
    raise RuntimeError("no | compiler\nhere")


def leaver():
    os._exit(9)


def failing_later():
    calls = []

    def run(num_steps):
        calls.append(num_steps)
        if len(calls) == 3:
            raise MemoryError("in the second turn")

    return run


def contestant(builder, *, num_steps=2, **arguments):
    function = f"tests.test_benchmarks:{builder.__name__}"
    return Contestant(builder.__name__, function, arguments, num_steps)


def table(group, capsys, *, num_rounds=2):
    """Returns the rows that are printed for a group, as lists of cells."""
    turns.print_group(group, num_rounds)
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[c.strip() for c in row.split("|")[1:-1]] for row in rows]


def test_a_command_prints_a_table():
    result = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.table", "--groups=checkpoint"]
        + ["--rounds=1", "--steps=1", "--batch_size=8", "--dataset=digits"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "# Training speed"
    assert re.fullmatch(r"- CPU: .+, \d+ cores", lines[2])
    assert "## Checkpoint save" in lines
    number = r"[\d.,]+(e[+-]\d+)?"
    spread = f"{number} to {number}"
    rest = rf"\| {number} \| {spread} \| {number} \| {spread} \|.*"
    assert re.fullmatch(r"\| TensorFlow's CheckpointManager " + rest, lines[-2])
    assert re.fullmatch(r"\| ours " + rest, lines[-1])


def test_what_saves_cost_is_measured_in_a_run():
    result = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.saves"]
        + ["--rounds=2", "--steps=1", "--batch_size=8", "--latency_ms=1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "# Saves beside training"
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in lines[-5:]]
    names = ["CheckpointManager", "ours", "save_secs", "disk", "bucket"]
    medians = []
    for name, row in zip(names, rows, strict=True):
        assert name in row[0]
        median, spread, ratio, first = row[1:]
        low, high = map(float, spread.split(" to "))
        assert 0 < low <= float(median) <= high
        assert float(ratio) > 0 and float(first) > 0
        medians.append(float(median))
    _, stands_still, logged, on_disk, in_bucket = medians
    assert stands_still == pytest.approx(logged, rel=0.1)
    assert stands_still < on_disk < in_bucket


def test_an_unknown_group_is_refused():
    result = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.table", "--groups=speed"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert "Choose among precision, jit" in result.stderr


def test_contestants_alternate_after_a_warm_up_each(tmp_path, capsys):
    log = tmp_path / "log"
    rows = [
        contestant(sleeper, secs_per_step=0.0, log=str(log), name=name)
        for name in ("a", "b")
    ]
    table(Group("Title", "Note.", rows), capsys)
    assert log.read_text().split()[:6] == ["a3", "b3", "a2", "b2", "a2", "b2"]


def test_the_table_has_milliseconds_a_step_or_images_a_second(capsys):
    # Sleeping may take much longer on a busy machine, but not shorter.
    rows = [
        contestant(sleeper, secs_per_step=0.01, num_steps=20),
        contestant(sleeper, secs_per_step=0.2, num_steps=1),
    ]
    header, _, *durations = table(Group("Title", "Note.", rows), capsys)
    assert header[1] == "ms"
    assert 10 <= float(durations[0][1]) < 150
    assert float(durations[1][1]) >= 200
    assert float(durations[1][3]) > 2

    group = Group("Title", "Note.", rows, images_per_step=5)
    header, _, *rates = table(group, capsys)
    assert header[1] == "images/s"
    assert 500 >= float(rates[0][1]) > 30
    assert float(rates[1][1]) <= 25
    assert float(rates[1][3]) < 0.5


def test_ratios_are_those_of_neighbouring_turns():
    # A machine that becomes slower slows both.
    baseline, own = [1.0, 2.0, 4.0], [2.0, 4.0, 8.0]
    assert turns.ratios(own, baseline, more_is_better=False) == [2, 2, 2]
    assert turns.ratios(own, baseline, more_is_better=True) == [0.5, 0.5, 0.5]


def test_a_contestant_that_fails_says_why_and_the_others_go_on(capsys):
    rows = [
        contestant(sleeper, secs_per_step=0.001),
        contestant(refuser),
        contestant(leaver),
        contestant(failing_later),
        contestant(sleeper, secs_per_step=0.001),
    ]
    cells = table(Group("Title", "Note.", rows), capsys)[2:]
    assert cells[1][1] == "failed: RuntimeError: no / compiler here"
    assert cells[2][1] == "failed: ended with code 9"
    assert cells[3][1] == "failed: MemoryError: in the second turn"
    assert float(cells[0][1]) > 0 and float(cells[4][1]) > 0


def test_the_traceback_of_a_failure_is_shown(capsys):
    turns.print_group(Group("Title", "Note.", [contestant(refuser)]), 1)
    assert "in refuser" in capsys.readouterr().err


def test_a_contestant_ends_with_the_command_in_the_middle_of_a_turn(tmp_path):
    log = tmp_path / "log"
    command = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
                from tests.benchmarks.turns import Child, Contestant
                arguments = {{"secs_per_step": 0.1, "log": {str(log)!r}}}
                builder = "tests.test_benchmarks:sleeper"
                with Child(Contestant("", builder, arguments, 10_000)) as child:
                    print(child._process.pid, flush=True)
                    child.take_turn()
            """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(command.stdout.readline())
    assert _comes_true(lambda: "10000" in log.read_text())
    command.kill()
    command.communicate()
    assert _comes_true(lambda: not _is_running(pid))


def _comes_true(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False
    return state.split()[0] != "Z"  # Nobody may have asked for its exit code.
