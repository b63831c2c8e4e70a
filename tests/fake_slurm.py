"""Slurm on this machine: its programs as one script, and who plays its part.

Run as `fake_slurm.py PROGRAM ARGUMENT...` it is `sbatch`, `srun`, `squeue`,
`sacct`, `scancel` or `scontrol`, with the options and the output that their
manuals tell of; an option that it does not know is refused. `FakeSlurm`, in the
tests' process, starts jobs and ends them.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

_HERE = pathlib.Path(__file__)
_SBATCH = {
    *("account", "comment", "cpus-per-task", "dependency", "gpus-per-node"),
    *(
        "job-name",
        "mem",
        "nodes",
        "ntasks-per-node",
        "open-mode",
        "output",
        "parsable",
    ),
    *("partition", "requeue", "signal", "time"),
}
_SRUN = {
    *("container-image", "container-mounts", "container-workdir"),
    *("cpus-per-task", "distribution", "gpus-per-task", "kill-on-bad-exit"),
    "wait",
}
_ALIVE = ("PENDING", "RUNNING")


class FakeSlurm:
    """The controller's side.

    Attributes:
        directory: What it keeps; the environment's FAKE_SLURM.
    """

    def __init__(self, directory):
        self.directory = directory
        (directory / "bin").mkdir()
        (directory / "submitted").mkdir()
        for name in (
            "sbatch",
            "srun",
            "squeue",
            "sacct",
            "scancel",
            "scontrol",
        ):
            program = directory / "bin" / name
            program.write_text(
                f'#!/bin/sh\nexec {sys.executable} -S {_HERE} {name} "$@"\n'
            )
            program.chmod(0o755)

    def fail(self, program, words, times=1, *, after=False):
        """Makes a program fail with words, before or after its work."""
        fault = {"words": words, "times": times, "after": after}
        (self.directory / f"{program}.fault").write_text(json.dumps(fault))

    def jobs(self):
        """Returns all jobs by number."""
        with _state(self.directory) as state:
            return state["jobs"]

    def count(self, program):
        """Returns how often a program was called."""
        calls = (self.directory / "calls").read_text().splitlines()
        return sum(call.split()[0] == program for call in calls)

    def start(self, number):
        """Runs a pending job's script, as the first of its machines would."""
        with _state(self.directory) as state:
            job = state["jobs"][number]
            assert job["state"] == "PENDING"
            job["state"] = "RUNNING"
        options = job["options"]
        name = options["output"].replace("%x", options["job-name"])
        log = pathlib.Path(job["directory"]) / name.replace("%j", number)
        assert options["open-mode"] == "append"
        script = self.directory / f"script-{number}"
        script.write_text(job["script"])
        environment = {
            **os.environ,
            "SLURM_JOB_ID": number,
            "SLURM_JOB_NAME": options["job-name"],
            "SLURM_JOB_NUM_NODES": options["nodes"],
            "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"],
            "SLURM_RESTART_COUNT": str(job["restarts"]),
        }
        with log.open("ab") as file:
            return subprocess.Popen(
                ["bash", str(script)],
                cwd=job["directory"],
                env=environment,
                stdout=file,
                stderr=file,
            )

    def wait(self, number, process):
        """Waits for a job's script; returns its exit code."""
        code = process.wait(timeout=30)
        with _state(self.directory) as state:
            job = state["jobs"][number]
            if job["state"] == "RUNNING":
                job["state"] = "FAILED" if code else "COMPLETED"
            if job["state"] not in _ALIVE:
                job["code"] = f"{code}:0"
        return code

    def tasks(self, number):
        """Returns the processes of a job's step."""
        return [int(pid) for pid in _tasks(self.directory, number)]


@contextlib.contextmanager
def _state(directory):
    """Yields what all programs know, and keeps what was changed."""
    path = directory / "state.json"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = path.read_text() if path.exists() else '{"jobs": {}}'
        state = json.loads(text)
        yield state
        path.write_text(json.dumps(state))


def _tasks(directory, number):
    path = directory / f"tasks-{number}"
    return path.read_text().split() if path.exists() else []


def _parse(arguments, known):
    """Returns the options by name, and the rest of the command line."""
    options = {}
    for i, argument in enumerate(arguments):
        if not argument.startswith("-"):
            return options, arguments[i:]
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in known:
            sys.exit(f"error: unrecognized option '{argument}'")
        options[name] = value
    return options, []


def _sbatch(directory, arguments):
    script = sys.stdin.read()
    if not script.startswith("#!"):
        sys.exit("error: This does not look like a batch script.")
    lines = script.splitlines()[1:]
    given = []
    for line in lines:
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            given += line.split()[1:]
    options, _ = _parse([*given, *arguments], _SBATCH)
    assert "parsable" in options
    with _state(directory) as state:
        number = str(1000 + len(state["jobs"]))
        state["jobs"][number] = {
            "options": options,
            "script": script,
            "state": "PENDING",
            "restarts": 0,
            "code": "0:0",
            "time": f"2026-01-01T00:00:{len(state['jobs']):02d}",
            "directory": os.getcwd(),
        }
    print(number)


def _squeue(directory, arguments):
    known = {"noheader", "states", "user", "jobs", "Format", "format"}
    options, _ = _parse(arguments, known)
    with _state(directory) as state:
        jobs = state["jobs"]
    if "jobs" in options:
        assert options["format"] == "%T"
        print(jobs[options["jobs"]]["state"])
        return
    for number, job in jobs.items():
        if job.get("forgotten"):
            continue
        values = {
            "JobID": number,
            "Name": job["options"]["job-name"],
            "State": job["state"],
            "exit_code": str(int(job["code"].split(":")[0]) << 8),
            "Reason": "Priority" if job["state"] == "PENDING" else "None",
            "RestartCnt": str(job["restarts"]),
            "SubmitTime": job["time"],
            "WorkDir": job["directory"],
            "Comment": job["options"].get("comment", "(null)"),
        }
        line = ""
        for column in options["Format"].split(","):
            name, size, end = re.fullmatch(r"(\w+):(\d+)(.*)", column).groups()
            line += f"{values[name]:{size}}"[: int(size)] + end
        print(line)


def _sacct(directory, arguments):
    known = {"noheader", "parsable2", "allocations", "user", "starttime"}
    options, _ = _parse(arguments, known | {"format"})
    wanted = "JobID,JobName,State,ExitCode,Submit,WorkDir"
    assert options["format"] == wanted
    with _state(directory) as state:
        for number, job in state["jobs"].items():
            word = job["state"]
            word += " by 0" if word == "CANCELLED" else ""
            name = job["options"]["job-name"]
            print(
                f"{number}|{name}|{word}|{job['code']}|{job['time']}"
                f"|{job['directory']}"
            )


def _scancel(directory, arguments):
    options, _ = _parse(arguments, {"state", "signal", "user", "name"})
    chosen = signal.Signals[f"SIG{options.get('signal', 'TERM')}"]
    with _state(directory) as state:
        for number, job in state["jobs"].items():
            if (
                job["options"]["job-name"] != options["name"]
                or job["state"] != options.get("state", job["state"])
                or job["state"] not in _ALIVE
            ):
                continue
            if "signal" not in options:
                job["state"] = "CANCELLED"
            for pid in _tasks(directory, number):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), chosen)


def _scontrol(directory, arguments):
    verb, number = arguments
    assert verb == "requeue"
    with _state(directory) as state:
        job = state["jobs"][number]
        if "requeue" not in job["options"]:
            sys.exit("Requested operation is presently disabled")
        job["state"] = "PENDING"
        job["restarts"] += 1


def _srun(directory, arguments):
    options, command = _parse(arguments, _SRUN)
    number = os.environ["SLURM_JOB_ID"]
    num_nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
    nodes = "node1" if num_nodes == 1 else f"node[1-{num_nodes}]"
    tasks = []
    for rank in range(num_nodes * per_node):
        environment = {
            **os.environ,
            "SLURM_PROCID": str(rank),
            "SLURM_NODEID": str(rank // per_node),
            "SLURM_LOCALID": str(rank % per_node),
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": str(num_nodes * per_node),
            "SLURM_STEP_NODELIST": nodes,
            "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{num_nodes})"
            if num_nodes > 1
            else str(per_node),
        }
        tasks.append(subprocess.Popen(command, env=environment))
    pids = " ".join(str(task.pid) for task in tasks)
    (directory / f"tasks-{number}").write_text(pids)
    since = None
    while any(task.poll() is None for task in tasks):
        ended = [task for task in tasks if task.poll() is not None]
        since = since or (time.monotonic() if ended else None)
        if since and time.monotonic() > since + int(options["wait"]):
            for task in tasks:
                task.kill()
        time.sleep(0.01)
    (directory / f"tasks-{number}").unlink()
    codes = [
        t.returncode if t.returncode >= 0 else 128 - t.returncode for t in tasks
    ]
    sys.exit(max(codes))


def _fail(directory, program, *, after):
    """Ends the program if it is to fail now."""
    path = directory / f"{program}.fault"
    if not path.exists():
        return
    fault = json.loads(path.read_text())
    if fault["after"] != after or not fault["times"]:
        return
    path.write_text(json.dumps({**fault, "times": fault["times"] - 1}))
    sys.exit(f"{program}: error: {fault['words']}")


def main(program, arguments):
    """Runs a program of Slurm's."""
    directory = pathlib.Path(os.environ["FAKE_SLURM"])
    with (directory / "calls").open("a") as calls:
        calls.write(" ".join([program, *arguments]) + "\n")
    _fail(directory, program, after=False)
    programs = {
        "sbatch": _sbatch,
        "srun": _srun,
        "squeue": _squeue,
        "sacct": _sacct,
        "scancel": _scancel,
        "scontrol": _scontrol,
    }
    programs[program](directory, arguments)
    _fail(directory, program, after=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
