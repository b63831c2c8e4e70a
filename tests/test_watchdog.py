"""When a process counts as stalled, and that it is then ended, whatever."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from trainer import watchdog
from trainer.watchdog import Patience, Watchdog

_ROOT = Path(watchdog.__file__).parent.parent
_IMPORT = """
import os, signal, sys, threading, time
from trainer import watchdog
from trainer.watchdog import Watchdog
"""


class _Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def start():
    """Starts Python code in a process of its own."""
    processes = []

    def start(code):
        process = subprocess.Popen(
            [sys.executable, "-c", _IMPORT + textwrap.dedent(code)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stderr.close()


def _make_patience(clock, *, stall_timeout_secs=10.0):
    return Patience(
        stall_timeout_secs=stall_timeout_secs,
        max_reading_secs=2.0,
        clock=clock,
    )


def _secs_until_complaint(patience, clock):
    """Looks once a second and returns when there is a complaint, and it."""
    for secs in range(1, 10_000):
        clock.now += 1.0
        if complaint := patience.complaint():
            return secs, complaint
    return None


def _beat_every(secs, patience, clock, *, times):
    for _ in range(times):
        for _ in range(secs):
            clock.now += 1.0
            assert patience.complaint() is None
        patience.beat()


def test_before_the_first_beat_six_times_as_much_is_allowed():
    clock = _Clock()
    patience = _make_patience(clock, stall_timeout_secs=600.0)
    secs, complaint = _secs_until_complaint(patience, clock)
    assert secs == 3600
    assert complaint == (
        "no training step, sample grid or checkpoint was finished for 3,600 s; "
        "it is the first that is waited for, and 3,600 s are allowed"
    )


def test_after_the_first_beat_the_timeout_counts():
    clock = _Clock()
    patience = _make_patience(clock)
    # Starting took long, which tells nothing about what follows.
    _beat_every(59, patience, clock, times=1)
    secs, complaint = _secs_until_complaint(patience, clock)
    assert secs == 10
    assert complaint.endswith(
        "for 10 s; there was only one before, and 10 s are allowed"
    )


def test_beats_within_the_timeout_never_lead_to_a_complaint():
    clock = _Clock()
    patience = _make_patience(clock)
    # The checks are in here.
    _beat_every(9, patience, clock, times=100)


def test_what_is_excused_is_not_counted_and_says_nothing_of_what_is_usual():
    clock = _Clock()
    patience = _make_patience(clock)
    patience.beat()
    _beat_every(4, patience, clock, times=50)
    for _ in range(100):
        clock.now += 1.0
        patience.excuse()
        assert patience.complaint() is None
    secs, complaint = _secs_until_complaint(patience, clock)
    assert (secs, "usually it takes 4 s" in complaint) == (80, True)


def test_beats_faster_than_the_looks_leave_the_timeout_as_it_is():
    clock = _Clock()
    patience = _make_patience(clock)
    for _ in range(60):
        clock.now += 0.25
        patience.beat()
    secs, complaint = _secs_until_complaint(patience, clock)
    assert secs == 10
    assert complaint.endswith(
        "for 10 s; usually it takes 0.25 s, and 10 s are allowed"
    )


def test_slow_but_steady_beats_raise_what_is_allowed():
    clock = _Clock()
    patience = _make_patience(clock)
    _beat_every(7, patience, clock, times=5)
    secs, complaint = _secs_until_complaint(patience, clock)
    assert secs == 140
    assert complaint.endswith(
        "for 140 s; usually it takes 7 s, and 140 s are allowed"
    )


def test_a_few_slow_beats_do_not_raise_what_is_allowed():
    clock = _Clock()
    patience = _make_patience(clock)
    _beat_every(1, patience, clock, times=8)
    _beat_every(9, patience, clock, times=3)
    assert _secs_until_complaint(patience, clock)[0] == 20


@pytest.mark.parametrize(("num_fast", "allowed_secs"), [(24, 160), (26, 20)])
def test_the_last_fifty_intervals_say_what_is_usual(num_fast, allowed_secs):
    clock = _Clock()
    patience = _make_patience(clock)
    _beat_every(8, patience, clock, times=100)
    _beat_every(1, patience, clock, times=num_fast)
    assert _secs_until_complaint(patience, clock)[0] == allowed_secs


def test_time_in_which_nobody_looked_hardly_counts():
    clock = _Clock()
    patience = _make_patience(clock)
    patience.beat()
    for _ in range(4):
        clock.now += 86_400.0
        assert patience.complaint() is None  # At 2, 4, 6 and 8 s.
    assert _secs_until_complaint(patience, clock)[0] == 2
    # Nor does it count as usual.
    clock.now += 86_400.0
    patience.beat()
    clock.now += 86_400.0
    patience.beat()
    # 12 s and 2 s, hence 7.
    assert _secs_until_complaint(patience, clock)[0] == 140


def test_a_stalled_process_ends_and_shows_where_it_hangs(start):
    process = start("""
        def hang_in_sleep():
            time.sleep(600)

        def hang_at_a_lock():
            lock.acquire()

        lock = threading.Lock()
        lock.acquire()
        threading.Thread(target=hang_at_a_lock, daemon=True).start()
        with Watchdog(stall_timeout_secs=0.2, tick_secs=0.02) as dog:
            dog.beat()
            hang_in_sleep()
    """)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 142
    message, stacks = err.split("(docker's --shm-size).\n")
    assert message.startswith("\nStalled: no training step, sample grid or ")
    assert "The newest checkpoint stands, and the same command " in message
    assert "--stall_timeout_secs" in message
    assert "NCCL_P2P_DISABLE=1" in message
    assert " in hang_in_sleep\n" in stacks
    assert " in hang_at_a_lock\n" in stacks


def test_a_process_that_was_stopped_and_goes_on_is_not_stalled(start):
    process = start("""
        with Watchdog(stall_timeout_secs=1.5, tick_secs=0.05) as dog:
            dog.beat()
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.3)  # Some ticks; no beat.
    """)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    time.sleep(1.7)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_process_ends_when_nobody_reads_the_message(start):
    process = start("""
        with Watchdog(stall_timeout_secs=0.1, tick_secs=0.02) as dog:
            sys.stdin.readline()
            dog.beat()
            time.sleep(600)
    """)
    process.stderr.close()
    process.stdin.write("closed\n")
    process.stdin.flush()
    assert process.wait(timeout=60) == 142


def test_a_process_ends_when_it_hangs_in_writing_to_the_same_stream(start):
    process = start("""
        watchdog._LAST_WORDS_SECS = 0.1
        with Watchdog(stall_timeout_secs=0.1, tick_secs=0.02) as dog:
            dog.beat()
            sys.stderr.write("x" * 10**7)  # The test does not read it.
    """)
    assert process.wait(timeout=60) == 142


def _let_it_fire(stream):
    """Returns the exit codes of a process that stalls, which stays."""
    codes = []
    ended = threading.Event()

    def end_process(code):
        codes.append(code)
        ended.set()

    with Watchdog(
        stall_timeout_secs=0.01,
        stream=stream,
        tick_secs=0.01,
        end_process=end_process,
    ):
        assert ended.wait(timeout=60)
    return codes


def test_a_stream_that_is_no_file_gets_the_message_without_stacks():
    stream = io.StringIO()
    assert _let_it_fire(stream) == [142]
    assert "it is the first that is waited for, and 0.06 s" in stream.getvalue()
    assert stream.getvalue().endswith("(docker's --shm-size).\n")


@pytest.mark.filterwarnings("error")
def test_a_closed_stream_does_not_matter():
    stream = io.StringIO()
    stream.close()
    assert _let_it_fire(stream) == [142]


def test_beats_keep_a_process_alive():
    codes = []
    with Watchdog(
        stall_timeout_secs=0.2, tick_secs=0.02, end_process=codes.append
    ) as dog:
        # Longer than is allowed even before the first beat.
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            time.sleep(0.01)
            dog.beat()
    assert codes == []


def test_a_timeout_of_zero_starts_no_watch():
    threads = threading.enumerate()
    with Watchdog(stall_timeout_secs=0.0, tick_secs=0.01) as dog:
        assert threading.enumerate() == threads
        dog.beat()


def test_leaving_ends_the_watch_at_once():
    codes = []
    start_secs = time.monotonic()
    with pytest.raises(KeyError):
        with Watchdog(
            stall_timeout_secs=1.0, tick_secs=30.0, end_process=codes.append
        ):
            names = [thread.name for thread in threading.enumerate()]
            assert "watchdog" in names
            raise KeyError
    assert time.monotonic() - start_secs < 20.0
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
    assert codes == []
