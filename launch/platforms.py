"""What a platform is to the launcher, and which ones there are.

A platform is a module of this package with the functions of `Platform`. It is
imported when it is chosen, and its client library when it is called: `render`
needs neither.
"""

import dataclasses
import enum
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from launch.job_spec import JobSpec, Place
from trainer import errors

# A name in `job_spec.PLATFORMS`, and the module.
MODULES = {
    "local": "launch.local",
    "docker": "launch.docker",
    "vertex": "launch.vertex",
    "kubernetes": "launch.kubernetes",
    "slurm": "launch.slurm",
}
# Unanswered creations, at most, and when to look for the job after each.
_CREATIONS = 3
_LOOK_AGAIN_SECS = (0.0, 2.0, 5.0, 10.0)


class State(enum.Enum):
    """How a job is, in the words of all platforms."""

    QUEUED = "queued"  # Accepted; has no machine yet.
    RUNNING = "running"
    PREEMPTED = "preempted"  # Has lost its machines and waits for others.
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether it costs nothing any more, and no other state follows."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """A job as its platform sees it.

    Attributes:
        name: What `status`, `logs` and `cancel` take: `JobSpec.job_name`.
        state: In the words of all platforms.
        detail: In the platform's own words: why it waits, or has failed.
        created_at: RFC 3339, or "" where the platform does not tell.
        resource: What the platform calls it: a resource name or a number.
        address: Where a browser shows it, or "".
        restarts: How often it has started anew; None where the platform does
            not tell.
        attempt: `JobSpec.attempt`.
        exit_code: The trainer's, once it has ended and as far as is known.
        created: After `submit`, whether this job was started by it.
    """

    name: str
    state: State
    detail: str = ""
    created_at: str = ""
    resource: str = ""
    address: str = ""
    restarts: int | None = None
    attempt: int = 1
    exit_code: int | None = None
    created: bool | None = dataclasses.field(default=None, compare=False)


class PlatformError(errors.TrainerError):
    """The platform refuses, or does not answer."""


class AnswerLostError(PlatformError):
    """Nobody knows whether the platform did what it was asked to do."""


class JobNotFoundError(errors.UsageError):
    """There is no job of a name; after `cancel`, there is none any more.

    Kubernetes keeps nothing of a job that is cancelled.
    """

    def __init__(self, name: str, where: str) -> None:
        super().__init__(
            f"There is no job {name!r} in {where}. `python -m launch.main list`"
            " with the same flags shows those that there are."
        )


class Platform(Protocol):
    """The functions of a platform's module.

    All but `render` raise `PlatformError` for what the platform says, and
    `UsageError` if its client library or program is not installed. They try
    again what may pass: 429, 503, a lost connection.
    """

    def render(self, spec: JobSpec) -> str:
        """Returns exactly what `submit` would send, ending in a newline.

        It is pure: no client library, credentials, file or clock.

        Raises:
            UsageError: the platform cannot do what the spec asks for.
        """

    def submit(self, spec: JobSpec) -> JobStatus:
        """Starts the job, unless it is there already (see `submit_once`).

        Where jobs run in the foreground, the status is that at the end.
        """

    def status(self, place: Place, name: str) -> JobStatus:
        """Returns how a job is.

        Raises:
            JobNotFoundError: there is none of that name.
        """

    def logs(self, place: Place, name: str, follow: bool) -> Iterator[str]:
        """Yields the job's lines so far, without line ends.

        With `follow`, goes on until the job has ended, over lost connections
        and restarts, without losing a line or saying one twice.
        """

    def cancel(self, place: Place, name: str) -> None:
        """Asks for the job's end; whoever calls waits for the final state.

        Which may be that `status` raises JobNotFoundError.
        """

    def list_jobs(self, place: Place) -> list[JobStatus]:
        """Returns the jobs that this launcher submitted, the newest first."""


def get(name: str) -> Platform:
    """Returns the platform of a name in `MODULES`."""
    return cast(Platform, importlib.import_module(MODULES[name]))


def submit_once(
    spec: JobSpec,
    find: Callable[[JobSpec], list[JobStatus]],
    create: Callable[[JobSpec], JobStatus],
    sleep: Callable[[float], None] = time.sleep,
) -> JobStatus:
    """Creates a job unless it is there, even if an answer is lost.

    A job that is under way, or has succeeded, is returned as it is. After one
    that has failed or was cancelled, the next attempt is created: the trainer
    goes on where the run stands. The status tells which, by `created`.

    Args:
        spec: The job, as its first attempt.
        find: Returns all attempts of the job, by its digest.
        create: Creates the attempt that the spec names, by `spec.job_name`. It
            raises AnswerLostError where it may have been created all the same,
            or was by somebody else meanwhile.
        sleep: Waits before looking again.
    """
    attempts = sorted(find(spec), key=lambda status: status.attempt)
    for status in reversed(attempts):
        if not status.state.is_final or status.state is State.SUCCEEDED:
            return dataclasses.replace(status, created=False)
    if attempts:
        spec = dataclasses.replace(spec, attempt=attempts[-1].attempt + 1)
    lost: AnswerLostError | None = None
    for _ in range(_CREATIONS):
        try:
            return dataclasses.replace(create(spec), created=True)
        except AnswerLostError as error:
            lost = error
        for secs in _LOOK_AGAIN_SECS:
            sleep(secs)
            for status in find(spec):
                if status.attempt == spec.attempt:
                    return dataclasses.replace(status, created=True)
    raise AnswerLostError(
        f"{lost}\nThe job {spec.job_name} is not there, or not yet. Submit it"
        " again: that starts it only if it is not there."
    ) from lost


def need(module: str, extra: str) -> None:
    """Raises UsageError if a client library is not installed."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise errors.UsageError(
            f"--platform={extra} needs {module}, which cannot be imported"
            f" ({error}). Install it with: pip install 'gan-trainer[{extra}]'"
        ) from error
