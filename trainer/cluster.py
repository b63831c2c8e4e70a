"""Who the workers of a run on several machines are, from the environment."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer import errors

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
_JOBS = ("chief", "worker")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s\[\]:/@]+):([0-9]{1,5})")
_MAX_SHOWN_CHARS = 200
# All workers know only the job's id, so that the ports follow from it: 16 for
# each of 798 jobs whose ids follow one another. They end before 32768, where
# Linux begins to give out ports of its own choice.
_FIRST_PORT = 20000
_PORTS_PER_JOB = 16
_NUM_JOBS = (32768 - _FIRST_PORT) // _PORTS_PER_JOB
_STEP_STRIDE = 101  # Far from the numbers of jobs that follow one another.


@dataclasses.dataclass(frozen=True)
class Cluster:
    """All workers of a run, and which of them this process is."""

    addresses: tuple[str, ...]  # "host:port", by worker index.
    index: int

    @property
    def num_workers(self) -> int:
        """How many workers train together, this one included."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this worker is the one that writes the run's files."""
        return self.index == 0

    @property
    def address(self) -> str:
        """This worker's own "host:port"."""
        return self.addresses[self.index]


def from_environment(environ: Mapping[str, str]) -> Cluster:
    """Reads TF_CONFIG or, where there is none, what Slurm's srun sets.

    Raises:
      UsageError: there is neither, or it cannot be used.
    """
    if environ.get("TF_CONFIG"):
        try:
            return _from_tf_config(environ["TF_CONFIG"])
        except ValueError as error:
            raise errors.UsageError(
                f"TF_CONFIG cannot be used: {error}. Set it as in\n"
                f"  TF_CONFIG='{_EXAMPLE}'\n"
                'where "cluster" is the same for all workers.'
            ) from error
    if environ.get("SLURM_PROCID"):
        try:
            return _from_slurm(environ)
        except ValueError as error:
            raise errors.UsageError(
                f"What Slurm has set cannot be used: {error}. Start the workers"
                " with `srun --distribution=block`, or set TF_CONFIG for each."
            ) from error
    raise errors.UsageError(
        "--strategy=multi_worker, but nothing says who the workers are. Set"
        f" TF_CONFIG for each, as in\n  TF_CONFIG='{_EXAMPLE}'\nor start them"
        " with Slurm's `srun`, which sets what is needed. `python -m"
        " launch.main submit --platform=local --num_workers=2` starts several"
        " on this machine, and on clusters with another --platform."
    )


def host_and_port(address: str) -> tuple[str, int]:
    """Splits "host:port" or "[IPv6]:port" into host and port.

    Raises:
      ValueError: it is neither, or the port is not in 1..65535.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise ValueError(
            f"{_cut(address)} is not an address, which is host:port, with [ ]"
            " around an IPv6 host"
        )
    return match[1].strip("[]"), int(match[2])


def _from_tf_config(text: str) -> Cluster:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_cut(text)} is not JSON ({error})") from error
    # Some platforms add keys of their own beside these.
    jobs = _member(value, "cluster", dict)
    task = _member(value, "task", dict)
    task_type = _member(task, "type", str)
    for job in [*jobs, task_type]:
        if job not in _JOBS:
            raise ValueError(
                f"{_cut(job)} is not a supported job; supported are chief and"
                " worker, since every process trains and the first one also"
                " evaluates and saves"
            )
    chief, worker = (
        _member(jobs, job, list) if job in jobs else [] for job in _JOBS
    )
    if len(chief) > 1:
        raise ValueError(
            f'"chief" has {len(chief)} addresses, but only one may'
        )
    # In some ways to write TF_CONFIG all numbers are strings.
    index = str(_member(task, "index", int, str))
    count = len(chief if task_type == "chief" else worker)
    if not re.fullmatch("[0-9]{1,9}", index) or int(index) >= count:
        raise ValueError(
            f'the task is {task_type} {_cut(index)}, but "cluster" has {count}'
            f' addresses of "{task_type}", counted from 0'
        )
    own = int(index) + (len(chief) if task_type == "worker" else 0)
    return Cluster(_checked([*chief, *worker]), own)


def _member(value: Any, key: str, *types: type) -> Any:
    """Returns `value[key]`, which is of one of the types."""
    if not isinstance(value, dict) or key not in value:
        raise ValueError(f'{_cut(value)} is not an object with "{key}"')
    if not isinstance(value[key], types):
        kinds = {dict: "object", int: "number", list: "list", str: "string"}
        allowed = " or ".join(kinds[t] for t in types)
        raise ValueError(
            f'"{key}" is {_cut(value[key])}, not of type {allowed}'
        )
    return value[key]


def _checked(addresses: list[Any]) -> tuple[str, ...]:
    known = set()
    for address in addresses:
        if not isinstance(address, str):
            raise ValueError(f"{_cut(address)} is not a string with an address")
        endpoint = host_and_port(address.lower())
        if endpoint in known:
            raise ValueError(
                f"{address} appears twice; each worker has an address of its"
                " own"
            )
        known.add(endpoint)
    return tuple(addresses)


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    # TensorFlow's SlurmClusterResolver needs nvidia-smi, and it sorts the hosts
    # by name, out of step with the ranks that Slurm gives.
    def read(*names: str) -> str:
        """Returns the first of the variables that is set."""
        for name in names:
            if environ.get(name):
                return environ[name]
        raise ValueError(f"{' or '.join(names)} is not set")

    def number(*names: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text := read(*names)):
            raise ValueError(f"{names[0]}={_cut(text)} is not a number")
        return int(text)

    nodes = read("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = list(_expand_hosts(nodes))
    tasks = read("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    counts = list(_expand_counts(tasks))
    num_tasks = number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if len(hosts) != len(counts) or sum(counts) != num_tasks:
        raise ValueError(
            f"{num_tasks} tasks, {_cut(tasks)} on each node and the nodes"
            f" {_cut(nodes)} contradict one another"
        )
    if max(counts) > _PORTS_PER_JOB:
        raise ValueError(
            f"there are ports for {_PORTS_PER_JOB} tasks on a node, not for"
            f" {max(counts)}; --ntasks-per-node=1 makes one worker use all GPUs"
        )
    # Rank by rank, if Slurm fills one node after the other.
    places = [
        (node, local) for node, n in enumerate(counts) for local in range(n)
    ]
    rank = number("SLURM_PROCID")
    here = (number("SLURM_NODEID"), number("SLURM_LOCALID"))
    if rank >= num_tasks or places[rank] != here:
        raise ValueError(
            f"rank {rank} of {num_tasks} is task {here[1]} on node {here[0]},"
            " so the ranks do not fill one node after the other"
        )
    # Steps of a job that run at once have ports of their own, too.
    step = number("SLURM_STEP_ID") if environ.get("SLURM_STEP_ID") else 0
    slot = (number("SLURM_JOB_ID") + _STEP_STRIDE * step) % _NUM_JOBS
    base = _FIRST_PORT + slot * _PORTS_PER_JOB
    addresses = [f"{hosts[node]}:{base + local}" for node, local in places]
    return Cluster(_checked(addresses), rank)


def _expand_hosts(nodes: str) -> Iterator[str]:
    """Yields "a1", "a2" and "b" of "a[1-2],b"; a name may have several [ ]."""
    # A comma within [ ] parts numbers, not names.
    for name in re.split(r",(?![^\[]*\])", nodes):
        if not re.fullmatch(r"([^\[\],\s]|\[[0-9,-]+\])+", name):
            raise ValueError(f"{_cut(name)} is not a list of nodes")
        parts = re.split(r"\[(.*?)\]", name)
        # The odd ones stood between [ and ].
        options = [
            list(_expand_ranges(part)) if i % 2 else [part]
            for i, part in enumerate(parts)
        ]
        yield from map("".join, itertools.product(*options))


def _expand_ranges(ranges: str) -> Iterator[str]:
    """Yields "08", "09", "10" and "12" of "08-10,12"."""
    for item in ranges.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", item)
        if not match:
            raise ValueError(f"[{_cut(ranges)}] is not a list of node numbers")
        first = match[1]
        for i in range(int(first), int(match[2] or first) + 1):
            yield f"{i:0{len(first)}}"


def _expand_counts(tasks: str) -> Iterator[int]:
    """Yields 2, 2, 2 and 1 of "2(x3),1"."""
    for item in tasks.split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", item)
        if not match:
            raise ValueError(f"{_cut(tasks)} is not a list of numbers of tasks")
        yield from [int(match[1])] * int(match[2] or 1)


def _cut(value: object) -> str:
    text = repr(value)
    if len(text) <= _MAX_SHOWN_CHARS:
        return text
    return f"{text[:_MAX_SHOWN_CHARS]}..."
