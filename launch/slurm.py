"""Slurm: a batch job, through its programs on this machine.

`slurm_script` has what the job consists of.
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Iterator

from launch import platforms, slurm_commands, slurm_script
from launch.job_spec import JobSpec, Place
from launch.platforms import JobStatus, State
from trainer import errors

# `JobSpec.job_name`: name, digest, attempt. Nothing else of a job says that it
# is ours, wherever Slurm keeps it.
_NAME = re.compile("([a-z][-a-z0-9]*)-([0-9a-f]{8})(?:-([0-9]{1,3}))?")
_REMEMBERED = "now-30days"
_POLL_SECS = 2.0
# What is in neither, such as NODE_FAIL, has failed.
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESIZING")
_STATES = {
    "RUNNING": State.RUNNING,
    "COMPLETING": State.RUNNING,
    "STAGE_OUT": State.RUNNING,
    "SIGNALING": State.RUNNING,
    "SUSPENDED": State.PREEMPTED,
    "STOPPED": State.PREEMPTED,
    "COMPLETED": State.SUCCEEDED,
    "CANCELLED": State.CANCELLED,
}


@dataclasses.dataclass(frozen=True)
class _Job:
    """A job as Slurm has it.

    Attributes:
        grace_secs: How long a cancelled job may save before it is ended by
            force; 0 once only the accounting remembers it.
    """

    number: str
    directory: str
    status: JobStatus
    grace_secs: int


def render(spec: JobSpec) -> str:
    """Returns the script, for `sbatch` as well.

    Raises:
        UsageError: Slurm cannot do what the spec asks for.
    """
    return slurm_script.script(spec)


def submit(spec: JobSpec) -> JobStatus:
    """Submits the script, unless its job is there already."""
    slurm_script.script(spec)  # Refuses before anybody is asked.
    return platforms.submit_once(spec, _find_attempts, _create)


def status(place: Place, name: str) -> JobStatus:
    """Returns how a job is."""
    return _find(name).status


def logs(place: Place, name: str, follow: bool) -> Iterator[str]:
    """Yields the lines of the log, which all workers and starts share."""
    job = _find(name)
    path = pathlib.Path(job.directory) / slurm_script.log_name(name, job.number)
    while not path.exists():
        if not follow or _find(name).status.state.is_final:
            return
        time.sleep(_POLL_SECS)
    rest = b""
    with path.open("rb") as file:
        while True:
            # Asked before reading: what the job says last is read after it.
            over = not follow or _find(name).status.state.is_final
            while block := file.read(1 << 16):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
            if over:
                break
            time.sleep(_POLL_SECS)
    if rest:
        yield rest.decode(errors="replace")


def cancel(place: Place, name: str) -> None:
    """Lets a job's trainers save and end; then ends it if need be."""
    job = _find(name)
    if job.status.state.is_final:
        return
    # By name: if it was submitted twice, the second waits for the first's end.
    slurm_commands.scancel("--state=PENDING", name)
    # To the trainers, not to the script, which queues nothing again after it.
    slurm_commands.scancel("--state=RUNNING", "--signal=INT", name)
    deadline_secs = time.monotonic() + job.grace_secs
    while not _find(name).status.state.is_final:
        if time.monotonic() > deadline_secs:
            slurm_commands.scancel(name)
            return
        time.sleep(_POLL_SECS)


def list_jobs(place: Place) -> list[JobStatus]:
    """Returns the user's jobs of the last 30 days that have names of ours."""
    found = [job.status for job in _all_jobs()]
    return sorted(found, key=lambda status: status.created_at, reverse=True)


def _find_attempts(spec: JobSpec) -> list[JobStatus]:
    attempts = []
    for job in _all_jobs():
        match = _NAME.fullmatch(job.status.name)
        if match and match.group(1, 2) == (spec.name, spec.digest):
            attempts.append(job.status)
    return attempts


def _create(spec: JobSpec) -> JobStatus:
    number = slurm_commands.sbatch(slurm_script.script(spec))
    return JobStatus(
        name=spec.job_name,
        state=State.QUEUED,
        resource=number,
        restarts=0,
        attempt=spec.attempt,
    )


def _find(name: str) -> _Job:
    """Returns the job of a name that runs or will be next; else the newest."""
    jobs = [job for job in _all_jobs() if job.status.name == name]
    if not jobs:
        raise platforms.JobNotFoundError(name, "Slurm")
    alive = [job for job in jobs if not job.status.state.is_final]
    if alive:
        return min(alive, key=lambda job: int(job.number))
    return max(jobs, key=lambda job: int(job.number))


def _all_jobs() -> list[_Job]:
    """Returns the user's jobs that have names of ours, each once."""
    jobs = {}
    for number, name, *others in slurm_commands.sacct(_REMEMBERED):
        if _NAME.fullmatch(name) and number.isdecimal():
            jobs[number] = _job(number, name, *others)
    # What the controller still knows is newer than the accounting.
    for number, name, *others in slurm_commands.squeue():
        if _NAME.fullmatch(name) and number.isdecimal():
            jobs[number] = _job(number, name, *others)
    return list(jobs.values())


def _job(
    number: str,
    name: str,
    state: str,
    code: str,
    created: str,
    directory: str,
    reason: str = "",
    restarts: str = "0",
    comment: str = "",
) -> _Job:
    match = _NAME.fullmatch(name)
    num_restarts = int(restarts) if restarts.isdecimal() else 0
    word = state.partition(" ")[0]  # As in "CANCELLED by 1000".
    known = _STATES.get(word, State.FAILED)
    if word in _WAITING:
        known = State.PREEMPTED if num_restarts else State.QUEUED
    exit_code = _exit_code(code) if known.is_final else None
    if exit_code == errors.EXIT_INTERRUPTED:
        known = State.CANCELLED  # It has saved first.
    grace_secs = comment.removeprefix(slurm_script.GRACE_COMMENT)
    details = (state, reason if reason != "None" else "")
    return _Job(
        number,
        directory,
        JobStatus(
            name=name,
            state=known,
            detail=": ".join(text for text in details if text),
            created_at=created,
            resource=number,
            restarts=num_restarts,
            attempt=int(match[3] or 1) if match else 1,
            exit_code=exit_code,
        ),
        int(grace_secs) if grace_secs.isdecimal() else 0,
    )


def _exit_code(code: str) -> int | None:
    """Returns 143 of "143:0" and, as shells count, 137 of "0:9"."""
    status, _, number = code.partition(":")
    if not status.isdecimal() or not number.isdecimal():
        return None
    return int(status) or (128 + int(number) if int(number) else 0)
