"""A process that hangs under Python's lock ends with the code asked for."""

import subprocess
import sys
import time

from tests.processes import ROOT

_HANG = "ctypes.PyDLL(None).sleep(60)"


def _run(code: str) -> tuple[subprocess.CompletedProcess, float]:
    start_secs = time.monotonic()
    head = "import ctypes, sys, time\nfrom trainer import deadline\n"
    result = subprocess.run(
        [sys.executable, "-c", head + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return result, time.monotonic() - start_secs


def test_it_ends_with_the_code_and_tells_the_stacks():
    result, secs = _run(f"""
def waits_for_ever():
    {_HANG}
with deadline.end_process_after(0.1, 142):
    waits_for_ever()
""")
    assert result.returncode == 142, result.stderr
    assert "in waits_for_ever" in result.stderr
    assert secs < 10


def test_it_ends_even_if_nobody_reads_what_it_says():
    code = f"""
import ctypes, os
from trainer import deadline
reader, writer = os.pipe()
os.dup2(writer, 2)
os.set_blocking(writer, False)
try:
    while os.write(writer, bytes(1024)):
        pass
except BlockingIOError:
    os.set_blocking(writer, True)
with deadline.end_process_after(0.1, 142):
    {_HANG}
"""
    result, _ = _run(code)
    assert result.returncode == 142


def test_what_is_over_in_time_goes_on():
    result, _ = _run("""
for _ in range(3):
    with deadline.end_process_after(0.1, 142):
        pass
try:
    with deadline.end_process_after(0.1, 142):
        raise KeyError
except KeyError:
    time.sleep(1.3)
print("goes on")
""")
    assert (result.returncode, result.stdout) == (0, "goes on\n")


def test_where_there_is_no_timer_it_ends_with_1():
    result, _ = _run(f"""
deadline._MACHINES = ()
with deadline.end_process_after(0.1, 142):
    {_HANG}
""")
    assert result.returncode == 1
    assert "Timeout" in result.stderr
