"""Signals, sent to processes of their own."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trainer import interruption
from trainer.interruption import Interruption

_ROOT = Path(interruption.__file__).parent.parent
_CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
_IMPORT = "from trainer.interruption import Interruption\n"
# Minutes in one call into C, in which no Python signal handler can run.
_SIT_IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"


@pytest.fixture
def start():
    """Starts Python code and returns its process when it prints "ready"."""
    processes = []

    def start(code, **kwargs):
        process = subprocess.Popen(
            [sys.executable, "-c", _IMPORT + textwrap.dedent(code)],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **kwargs,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), _CODES)
def test_one_signal_asks_to_stop_and_interrupts_nothing(start, number, code):
    process = start("""
        import sys
        with Interruption() as interruption:
            assert not interruption.requested
            print("ready", flush=True)
            while not interruption.requested:
                pass
        # Saving comes now, undisturbed.
        print("saved", flush=True)
        sys.exit(interruption.exit_code)
    """)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert out == "saved\n"
    assert err == (
        f"\n{number.name}: finishing the running steps, then saving. "
        "Once more stops at once.\n"
    )


@pytest.mark.parametrize(("number", "code"), _CODES)
def test_a_second_signal_ends_a_process_that_sits_in_c(start, number, code):
    process = start(f"""
        import hashlib
        with Interruption():
            print("ready", flush=True)
            {_SIT_IN_C}
    """)
    process.send_signal(number)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().startswith(f"{number.name}: finishing")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err == f"\n{number.name} again: stopping at once; " + (
        "what was saved stays.\n"
    )


def test_the_code_is_that_of_the_signal_that_ended_the_process(start):
    process = start(f"""
        import hashlib
        with Interruption():
            print("ready", flush=True)
            {_SIT_IN_C}
    """)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_signals_work_when_nobody_reads_the_messages(start):
    # As in `... 2>&1 | tee log`, where Ctrl-C ends `tee` first.
    process = start(f"""
        import hashlib
        with Interruption() as interruption:
            print("ready", flush=True)
            while not interruption.requested:
                pass
            print("requested", flush=True)
            {_SIT_IN_C}
    """)
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "requested\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130


def test_other_signals_keep_their_meaning(start):
    process = start("""
        import signal
        signal.signal(signal.SIGUSR2, lambda *_: print("usr1", flush=True))
        with Interruption() as interruption:
            print("ready", flush=True)
            while not interruption.requested:
                pass
    """)
    for _ in range(2):
        process.send_signal(signal.SIGUSR2)
        assert process.stdout.readline() == "usr1\n"
    assert process.poll() is None


def test_everything_is_as_before_afterwards():
    def handler(*_):
        received.append(True)

    received = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_fd = signal.set_wakeup_fd(writer)
    old_handler = signal.signal(signal.SIGTERM, handler)
    old_interrupt = signal.getsignal(signal.SIGINT)
    try:
        num_files = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            with pytest.raises(KeyError), Interruption():
                assert signal.getsignal(signal.SIGTERM) is not handler
                raise KeyError
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is old_interrupt
        assert len(os.listdir("/proc/self/fd")) == num_files
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [True]
        assert os.read(reader, 10) == bytes([signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, old_handler)
        assert signal.set_wakeup_fd(old_fd) == writer
        os.close(reader)
        os.close(writer)


def test_each_use_begins_anew(start):
    process = start("""
        import os, signal
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            with Interruption() as interruption:
                assert not interruption.requested
                os.kill(os.getpid(), number)
                while not interruption.requested:
                    pass
            assert interruption.exit_code == 128 + number
        print("ready", flush=True)
    """)
    assert process.wait(timeout=20) == 0


def test_a_signal_right_before_the_end_is_not_lost(start):
    process = start("""
        import os, signal
        for _ in range(100):
            with Interruption() as interruption:
                os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.exit_code == 143
        print("ready", flush=True)
    """)
    assert process.wait(timeout=20) == 0


def test_without_a_signal_the_exit_code_is_0():
    with Interruption() as interruption:
        pass
    assert not interruption.requested
    assert interruption.exit_code == 0


def test_signals_that_a_library_took_are_taken_back(start):
    process = start("""
        import os, signal, sys, time
        with Interruption() as interruption:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            interruption.take_signals_back()
            print("ready", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            while not interruption.requested:
                time.sleep(0.01)
        sys.exit(interruption.exit_code)
    """)
    assert process.wait(timeout=20) == 143


def test_sigusr1_asks_to_save_once_and_to_stop_never(start):
    process = start("""
        import os, signal, time
        with Interruption() as interruption:
            print("ready", flush=True)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGUSR1)
                while not interruption.take_save_request():
                    time.sleep(0.01)
                assert not interruption.take_save_request()
                assert not interruption.requested
    """)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert err.count("SIGUSR1: saving") == 2


@pytest.mark.parametrize(("number", "code"), _CODES)
def test_before_the_training_one_signal_ends_all(start, number, code):
    process = start("""
        import time
        from trainer import interruption
        with interruption.end_at_once():
            print("ready", flush=True)
            while True:
                try:
                    time.sleep(600)
                except BaseException:  # As some imports do.
                    pass
    """)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err == f"{number.name}: not training yet, stopping at once.\n"


def test_before_the_training_a_request_to_save_ends_nothing(start):
    process = start("""
        import os, signal
        from trainer import interruption
        with interruption.end_at_once():
            os.kill(os.getpid(), signal.SIGUSR1)
            print("ready", flush=True)
    """)
    assert process.wait(timeout=20) == 0


def test_what_handled_signals_before_the_start_does_so_after_it():
    old = [signal.getsignal(n) for n in interruption._SIGNALS]
    with interruption.end_at_once():
        assert signal.getsignal(signal.SIGTERM) not in old
    assert [signal.getsignal(n) for n in interruption._SIGNALS] == old
