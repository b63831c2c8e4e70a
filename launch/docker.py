"""Docker on this machine: one container, in the background.

`render` returns a shell script, because the user, the credentials and the
absolute path of a run directory are those of the machine that it runs on;
`submit` runs this very script.
"""

import json
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

from launch import platforms, trainer_paths
from launch.job_spec import (
    ATTEMPT_LABEL,
    DIGEST_LABEL,
    JOB_LABEL,
    SCRATCH_DIR,
    JobSpec,
    Place,
)
from launch.platforms import JobStatus, State
from trainer import errors

_WORKDIR = "/workdir"
_DATA_DIR = "/data"
_CALL_TIMEOUT_SECS = 120
_RECONNECT_SECS = 2.0
_STOPPED = (errors.EXIT_INTERRUPTED, errors.EXIT_PREEMPTED)
# Adds to "$@" what only this machine knows.
_CREDENTIALS = """\
credentials="${GOOGLE_APPLICATION_CREDENTIALS:-\
${CLOUDSDK_CONFIG:-$HOME/.config/gcloud}/application_default_credentials.json}"
# Without such a file, the container asks the machine's metadata server.
if [ -f "$credentials" ]; then
  credentials="$(realpath "$credentials")"
  set -- "$@" \\
    --mount="type=bind,source=$credentials,\
target=/run/credentials.json,readonly" \\
    --env=GOOGLE_APPLICATION_CREDENTIALS=/run/credentials.json
fi
"""


def render(spec: JobSpec) -> str:
    """Returns a shell script that runs `docker run`.

    Raises:
        UsageError: Docker cannot do what the spec asks for.
    """
    _check(spec)
    script = "#!/bin/sh\nset -eu\nset --\n"
    args = list(spec.container_args)
    if spec.in_bucket:
        script += _CREDENTIALS
    else:
        script += f"mkdir -p {shlex.quote(str(spec.workdir))}\n"
        script += _mount(str(spec.workdir), _WORKDIR)
        args[-1] = f"--workdir={_WORKDIR}"
    for i, arg in enumerate(args):
        name, _, directory = arg.partition("=")
        if name == "--data_dir" and "://" not in directory:
            script += _mount(directory, _DATA_DIR, ",readonly")
            args[i] = f"--data_dir={_DATA_DIR}"
        # Where it was, since a run goes on only with the same --dataset.
        directory = _data_directory(arg)
        if directory.startswith("/"):
            script += _mount(directory, directory, ",readonly")
    options = [shlex.quote(option) for option in _options(spec)]
    # Whose files a run directory is to hold, and who may read the credentials.
    options.append('--user="$(id -u):$(id -g)"')
    words = [*options, '"$@"', shlex.quote(str(spec.image))]
    words += [shlex.quote(arg) for arg in args]
    return script + " \\\n  ".join(["exec docker run", *words]) + "\n"


def _check(spec: JobSpec) -> None:
    if not spec.image:
        raise errors.UsageError(
            "--image is missing, which --platform=docker needs. BUILD.md says"
            " how to build one."
        )
    if not spec.workdir:
        raise errors.UsageError(
            "--workdir is missing, which --platform=docker needs: what a"
            " container writes elsewhere is lost with it."
        )
    if spec.num_workers > 1:
        raise errors.UsageError(
            f"--num_workers={spec.num_workers} with --platform=docker, which"
            " runs one container. --num_accelerators gives it several GPUs, on"
            " each of which the trainer has a replica."
        )


def _data_directory(arg: str) -> str:
    name, _, dataset = arg.partition("=")
    if name != "--dataset":
        return ""
    return trainer_paths.data_directory(dataset) or ""


def _mount(source: str, target: str, ending: str = "") -> str:
    if set(source) & set(',"'):
        raise errors.UsageError(
            f"{source!r} cannot be mounted: Docker takes a comma or a double"
            " quote for its own. Choose another directory."
        )
    # The shell leaves a quoted tilde alone.
    place = shlex.quote(source)
    if source.startswith("~/"):
        place = f'"$HOME"/{shlex.quote(source[2:])}'
    # By itself, so that the script ends where there is no such directory.
    return (
        f'directory="$(realpath {place})"\n'
        'set -- "$@" --mount="type=bind,source=$directory,'
        f'target={target}{ending}"\n'
    )


def _options(spec: JobSpec) -> list[str]:
    """Returns the options of `docker run` that any machine has the same."""
    options = [
        "--detach",
        f"--name={spec.job_name}",
        "--read-only",
        # For all users, since the image does not know who it runs as.
        "--tmpfs=/tmp:rw,exec,mode=1777",
        f"--tmpfs={SCRATCH_DIR}:rw,exec,mode=1777",
        f"--env=HOME={SCRATCH_DIR}",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        f"--shm-size={spec.shm_gib}g",
        f"--stop-timeout={spec.grace_period_secs}",
    ]
    if spec.num_accelerators:
        options.append(f"--gpus={spec.num_accelerators}")
    if spec.cpus:
        options.append(f"--cpus={spec.cpus}")
    if spec.memory_gib:
        options.append(f"--memory={spec.memory_gib}g")
    if spec.network:
        options.append(f"--network={spec.network}")
    options += [f"--label={k}={v}" for k, v in spec.all_labels.items()]
    options += [f"--env={k}={v}" for k, v in spec.environment.items()]
    return options


def submit(spec: JobSpec) -> JobStatus:
    """Starts the container, unless it is there already."""
    render(spec)  # Refuses what cannot be before Docker is asked.

    def find(spec: JobSpec) -> list[JobStatus]:
        return _find(f"label={DIGEST_LABEL}={spec.digest}")

    def create(spec: JobSpec) -> JobStatus:
        _run(["sh", "-c", render(spec)])
        return status(spec, spec.job_name)

    return platforms.submit_once(spec, find, create)


def status(place: Place, name: str) -> JobStatus:
    """Returns how a container is."""
    for found in _find(f"label={JOB_LABEL}={name}"):
        return found
    raise platforms.JobNotFoundError(name, "Docker")


def logs(place: Place, name: str, follow: bool) -> Iterator[str]:
    """Yields what the container has written to stdout and stderr."""
    status(place, name)
    newest, at_newest = "", set[str]()
    while True:
        ended = not follow or status(place, name).state.is_final
        command = ["docker", "logs", "--timestamps", name]
        if follow and not ended:
            command.insert(2, "--follow")
        if newest:
            command.insert(2, f"--since={newest}")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                for line in process.stdout or ():
                    stamp, _, text = line.rstrip("\n").partition(" ")
                    if stamp == newest and line in at_newest:
                        continue
                    if stamp != newest:
                        newest, at_newest = stamp, set()
                    at_newest.add(line)
                    yield text
            finally:
                process.terminate()
        if ended:
            return
        # The container has ended, or the connection to Docker has.
        time.sleep(_RECONNECT_SECS)


def cancel(place: Place, name: str) -> None:
    """Stops the container: SIGTERM, and SIGKILL after the grace period."""
    status(place, name)
    # Comes back once it has stopped, which may take longer than any call.
    _run(["docker", "stop", name], timeout_secs=None)


def list_jobs(place: Place) -> list[JobStatus]:
    """Returns the containers that were started by us."""
    return _find(f"label={JOB_LABEL}")


def _find(condition: str) -> list[JobStatus]:
    """Returns the containers that a filter lets through, the newest first."""
    listing = _run(
        ["docker", "ps", "--all", "--quiet", "--no-trunc"]
        + [f"--filter={condition}"]
    )
    if not listing.split():
        return []
    inspected = _run(["docker", "inspect", *listing.split()])
    found = [_status(container) for container in json.loads(inspected)]
    return sorted(found, key=lambda each: each.created_at, reverse=True)


def _run(
    command: Sequence[str], timeout_secs: float | None = _CALL_TIMEOUT_SECS
) -> str:
    """Returns what a command has written to stdout."""
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_secs
        )
    except FileNotFoundError as error:
        raise errors.UsageError(
            "--platform=docker needs the program `docker`, which is not on the"
            " PATH. Install Docker, or choose another --platform."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise platforms.AnswerLostError(
            f"Docker does not answer within {timeout_secs} s."
        ) from error
    if finished.returncode:
        message = finished.stderr.strip()
        kind = platforms.PlatformError
        if "is already in use" in message:  # By another `submit`, just now.
            kind = platforms.AnswerLostError
        raise kind(f"Docker refuses: {message}")
    return finished.stdout


def _status(container: dict[str, Any]) -> JobStatus:
    labels = container["Config"]["Labels"]
    state, code = container["State"], None
    kind = State.RUNNING
    if state["Status"] == "created":
        kind = State.FAILED if state.get("Error") else State.QUEUED
    elif state["Status"] in ("exited", "dead"):
        code = state["ExitCode"]
        kind = State.FAILED if code else State.SUCCEEDED
        if code in _STOPPED:
            kind = State.CANCELLED
    detail = state.get("Error") or state["Status"]
    if code is not None:
        detail += f", code {code}"
    if state.get("OOMKilled"):
        detail += ", out of memory"
    return JobStatus(
        name=labels[JOB_LABEL],
        state=kind,
        detail=detail,
        created_at=container["Created"],
        resource=container["Id"][:12],
        restarts=container.get("RestartCount", 0),
        attempt=int(labels.get(ATTEMPT_LABEL, "1")),
        exit_code=code,
    )
