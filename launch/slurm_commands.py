"""Slurm's programs, called on this machine: again while it may help."""

import getpass
import subprocess
import time

from launch import platforms
from trainer import errors

_CALL_TIMEOUT_SECS = 60.0
_FIRST_WAIT_SECS = 1.0
_MAX_WAIT_SECS = 16.0
_GIVE_UP_SECS = 120.0
# What Slurm's programs say when its controller is busy or restarts.
_MAY_PASS = (
    "timed out",
    "unable to contact",
    "connection refused",
    "connection reset",
    "temporarily unable",
    "temporarily unavailable",
    "zero bytes were transmitted",
)


def sbatch(script: str) -> str:
    """Submits a script once; returns the job's number.

    Raises:
        AnswerLostError: It may have been submitted.
    """
    output = _run(["sbatch", "--parsable"], script)
    return output.strip().partition(";")[0]  # Then follows the cluster.


def squeue() -> list[list[str]]:
    """Returns the user's jobs that Slurm's controller knows of.

    Each as number, name, state, exit code, submit time, directory, reason,
    restarts, comment.
    """
    columns = (
        ("JobID", 20),
        ("Name", 200),
        ("State", 20),
        ("exit_code", 10),
        ("SubmitTime", 30),
        ("WorkDir", 1000),
        ("Reason", 200),
        ("RestartCnt", 10),
        ("Comment", 100),
    )
    output = _ask(
        "squeue",
        "--noheader",
        "--states=all",
        f"--user={getpass.getuser()}",
        f"--Format={','.join(f'{name}:{size}|' for name, size in columns)}",
    )
    rows = [
        [cell.strip() for cell in line.split("|", len(columns) - 1)]
        for line in output.replace("|\n", "\n").splitlines()
    ]
    return [[*row[:3], _as_sacct(row[3]), *row[4:]] for row in rows]


def sacct(since: str) -> list[list[str]]:
    """Returns the user's jobs of Slurm's accounting; none if there is none.

    Each as number, name, state, exit code, submit time, directory.

    Args:
        since: As in now-30days.
    """
    try:
        output = _ask(
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            f"--user={getpass.getuser()}",
            f"--starttime={since}",
            "--format=JobID,JobName,State,ExitCode,Submit,WorkDir",
        )
    except (platforms.PlatformError, errors.UsageError):
        return []  # Many clusters have no accounting.
    return [line.split("|", 5) for line in output.splitlines()]


def _as_sacct(code: str) -> str:
    """Writes what wait(2) gives as the accounting does: code:signal."""
    if not code.isdecimal():
        return code
    return f"{int(code) >> 8}:{int(code) & 0x7F}"


def scancel(*options_and_name: str) -> None:
    """Signals or cancels the user's jobs of a name, which comes last."""
    *options, name = options_and_name
    _ask("scancel", *options, f"--user={getpass.getuser()}", f"--name={name}")


def _ask(*command: str) -> str:
    """Runs what may be run twice, until there is an answer."""
    wait_secs = _FIRST_WAIT_SECS
    deadline_secs = time.monotonic() + _GIVE_UP_SECS
    while True:
        try:
            return _run(command)
        except platforms.AnswerLostError:
            if time.monotonic() + wait_secs > deadline_secs:
                raise
        time.sleep(wait_secs)
        wait_secs = min(2 * wait_secs, _MAX_WAIT_SECS)


def _run(command: "list[str] | tuple[str, ...]", text: str = "") -> str:
    try:
        result = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=_CALL_TIMEOUT_SECS,
        )
    except FileNotFoundError as error:
        raise errors.UsageError(
            f"--platform=slurm needs the program {command[0]}, which is not"
            " here. Run this on a machine that submits to Slurm."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise platforms.AnswerLostError(
            f"{command[0]} did not answer in {_CALL_TIMEOUT_SECS:g} s."
        ) from error
    if result.returncode:
        said = result.stderr.strip() or f"exit code {result.returncode}"
        if any(words in said.lower() for words in _MAY_PASS):
            raise platforms.AnswerLostError(f"Slurm does not answer: {said}")
        raise platforms.PlatformError(f"{command[0]} refuses: {said}")
    return result.stdout
