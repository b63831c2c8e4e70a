"""This machine: the workers of a job are processes, in the foreground."""

import contextlib
import glob
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence

from launch import processes
from launch.job_spec import JobSpec, Place
from launch.platforms import JobStatus, State
from trainer import errors

_RENDERED_PORT = 2222  # And those after it.
# Whoever ends the shell must not leave workers behind, nor those that start
# just then. Ctrl-C reaches them by itself, and a second signal would end them
# unsaved.
_START = """\
pids= stop=
trap stop=1 TERM
trap : INT"""
# A signal ends `wait`, not the worker.
_WAIT = """\
trap 'kill -TERM $pids 2>/dev/null' TERM
[ -z "$stop" ] || kill -TERM $pids 2>/dev/null
code=0
for pid in $pids; do
  while :; do
    wait "$pid" && end=0 || end=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  [ "$end" = 0 ] || code=$end
done
exit $code"""


def render(spec: JobSpec) -> str:
    """Returns a script with a line for each worker.

    `submit` finds free ports; the script has some that usually are.
    """
    lines = ["#!/bin/sh"]
    addresses = [
        f"localhost:{_RENDERED_PORT + i}" for i in range(spec.num_workers)
    ]
    for index in range(spec.num_workers):
        environment = dict(spec.environment)
        if spec.num_workers > 1:
            environment["TF_CONFIG"] = _tf_config(addresses, index)
        if spec.num_accelerators:
            count = spec.num_accelerators
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(
                str(gpu) for gpu in range(index * count, (index + 1) * count)
            )
        words = [
            f"{name}={shlex.quote(value)}"
            for name, value in environment.items()
        ]
        words += [shlex.quote(word) for word in _command(spec)]
        if spec.num_workers > 1:
            words += ["&", 'pids="$pids $!"']
        else:  # Signals then go to the trainer: there is no shell any more.
            words = ["exec", *(["env"] if environment else []), *words]
        lines.append(" ".join(words))
    if spec.num_workers > 1:
        lines.insert(1, _START)
        lines.append(_WAIT)
    return "\n".join(lines) + "\n"


def submit(spec: JobSpec) -> JobStatus:
    """Runs the job to its end: all workers, which end together.

    Takes signals over, as `processes.run_workers` does.
    """
    environments = worker_environments(
        {**os.environ, **spec.environment},
        spec.num_workers,
        spec.num_accelerators or 0,
    )
    code = processes.run_workers(
        _command(spec), environments, spec.grace_period_secs
    )
    state = State.FAILED if code else State.SUCCEEDED
    return JobStatus(name=spec.job_name, state=state, exit_code=code)


def status(place: Place, name: str) -> JobStatus:
    """Refuses: see `_in_the_foreground`."""
    raise _in_the_foreground("status")


def logs(place: Place, name: str, follow: bool) -> Iterator[str]:
    """Refuses: see `_in_the_foreground`."""
    raise _in_the_foreground("logs")


def cancel(place: Place, name: str) -> None:
    """Refuses: see `_in_the_foreground`."""
    raise _in_the_foreground("cancel")


def list_jobs(place: Place) -> list[JobStatus]:
    """Refuses: see `_in_the_foreground`."""
    raise _in_the_foreground("list")


def _in_the_foreground(verb: str) -> errors.UsageError:
    return errors.UsageError(
        f"There is no {verb} with --platform=local: such a job runs in the"
        " foreground, where it shows what it does, and Ctrl-C stops it, saved."
        " The same command goes on."
    )


def _command(spec: JobSpec) -> list[str]:
    return [sys.executable, "-m", "trainer.main", *spec.trainer_args]


def worker_environments(
    environ: Mapping[str, str], num_workers: int, gpus_per_worker: int
) -> list[dict[str, str]]:
    """Returns `environ` for each worker, with its place among them and GPUs.

    A worker that is alone needs no place.

    Raises:
        UsageError: the workers would share GPUs, or there are too few.
    """
    num_gpus = num_workers * gpus_per_worker
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    sees_gpus = visible not in ("", "-1") and glob.glob("/dev/nvidia[0-9]*")
    if num_workers > 1 and sees_gpus and not num_gpus:
        raise errors.UsageError(
            f"--num_workers={num_workers} on a machine with GPUs, of which no"
            " two workers can share one. Say how many each gets with"
            " --num_accelerators, or hide them with CUDA_VISIBLE_DEVICES=-1."
        )
    gpus = [str(number) for number in range(num_gpus)]
    if visible is not None:
        gpus = [name.strip() for name in visible.split(",") if name.strip()]
    if len(gpus) < num_gpus:
        raise errors.UsageError(
            f"--num_workers={num_workers} --num_accelerators={gpus_per_worker}"
            f" needs {num_gpus} GPUs, but CUDA_VISIBLE_DEVICES={visible!r}"
            f" names {len(gpus)}. Lower one of the flags, or name more GPUs."
        )
    addresses = [f"localhost:{port}" for port in _free_ports(num_workers)]
    environments = []
    for index in range(num_workers):
        environment = dict(environ)
        if num_workers > 1:
            environment["TF_CONFIG"] = _tf_config(addresses, index)
        if gpus_per_worker:
            own = gpus[index * gpus_per_worker :][:gpus_per_worker]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        environments.append(environment)
    return environments


def _tf_config(addresses: Sequence[str], index: int) -> str:
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # All are held, so all differ.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]
