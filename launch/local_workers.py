"""Starts the workers of one multi-worker run as processes of this machine."""

import contextlib
import glob
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from launch import processes
from trainer import errors

_HELP = """\
Trains on several workers, which are processes of this machine.

usage: python -m launch.local_workers [--flag=value ...] [-- trainer's flags]

example:
  python -m launch.local_workers --num_workers=2 -- --dataset=mnist
      Runs `python -m trainer.main --strategy=multi_worker --dataset=mnist`
      twice. Worker 0 has the screen; the other's lines begin with [worker 1].

flags:
  --num_workers=<workers>
      How many processes train together. Default: 2.
  --gpus_per_worker=<gpus>
      Gives each worker so many GPUs of its own, out of CUDA_VISIBLE_DEVICES
      if that is set. Default: 0, on a machine without GPUs.
  --grace_secs=<seconds>
      How long the others may go on once a worker has ended. Default: 60.

exit codes: 0 if all workers ended with it, else that of the first that did
not; 142 if that one was killed: the same command goes on."""


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, program name first; returns its exit code.

    The flags after `--` are the trainer's.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    own, trainers = argv[:end], argv[end + 1 :]
    if {"--help", "-help", "-h"}.intersection(own[1:]):
        print(_HELP)
        return 0
    try:
        values = _read_command_line(own, trainers)
        environments = worker_environments(
            os.environ, values.num_workers, values.gpus_per_worker
        )
    except errors.TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    command = [sys.executable, "-m", "trainer.main", "--strategy=multi_worker"]
    return processes.run_workers(
        [*command, *trainers], environments, values.grace_secs
    )


def _read_command_line(
    own: Sequence[str], trainers: Sequence[str]
) -> flags.FlagValues:
    values = flags.FlagValues()
    for name, default, lowest in (
        ("num_workers", 2, 1),
        ("gpus_per_worker", 0, 0),
        ("grace_secs", 60, 0),
    ):
        flags.DEFINE_integer(name, default, "", lowest, flag_values=values)
    # Reads --flagfile as well, for it may hold a strategy.
    strategy = flags.FlagValues()
    only = "multi_worker"
    flags.DEFINE_enum("strategy", only, [only], "", flag_values=strategy)
    try:
        leftover = values(own)[1:]
        if leftover:
            raise flags.Error(f"{leftover[0]!r} is not a flag: --name=value.")
        strategy(["", *trainers], known_only=True)
    except (flags.Error, ValueError) as error:
        raise errors.UsageError(
            f"{error}\nThe trainer's flags go after `--`, without --strategy,"
            " which the launcher adds. `python -m launch.local_workers --help`"
            " lists the launcher's."
        ) from error
    return values


def worker_environments(
    environ: Mapping[str, str], num_workers: int, gpus_per_worker: int
) -> list[dict[str, str]]:
    """Returns `environ` for each worker, with its place among them and GPUs.

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
            " --gpus_per_worker, or hide them with CUDA_VISIBLE_DEVICES=-1."
        )
    gpus = [str(number) for number in range(num_gpus)]
    if visible is not None:
        gpus = [name.strip() for name in visible.split(",") if name.strip()]
    if len(gpus) < num_gpus:
        raise errors.UsageError(
            f"--num_workers={num_workers} --gpus_per_worker={gpus_per_worker}"
            f" needs {num_gpus} GPUs, but CUDA_VISIBLE_DEVICES={visible!r}"
            f" names {len(gpus)}. Lower one of the flags, or name more GPUs."
        )
    addresses = [f"localhost:{port}" for port in _free_ports(num_workers)]
    environments = []
    for index in range(num_workers):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        environment = {**environ, "TF_CONFIG": config}
        if gpus_per_worker:
            own = gpus[index * gpus_per_worker :][:gpus_per_worker]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        environments.append(environment)
    return environments


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # All are held, so all differ.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
