"""A job as a batch script of Slurm: what is asked for, run and done after it.

Pure: it needs neither Slurm nor this machine's files.
"""

import re
import shlex

from launch import trainer_paths
from launch.job_spec import JobSpec
from trainer import errors

# Where the image has it (see the Dockerfile).
_IMAGE_PYTHON = "/opt/venv/bin/python"
# Of the codes below 128, those after which another start may help, perhaps on
# another machine: a defect, or a driver's; a GPU that computes wrongly.
_RETRIED = (errors.TrainerError.exit_code, errors.DeviceError.exit_code)
# Crashes: SIGABRT, SIGBUS, SIGFPE and SIGSEGV. SIGKILL is not among them: it is
# how Slurm ends what takes too much memory or time.
_CRASHED = (134, 135, 136, 139)
_PATH_FLAGS = ("--workdir", "--data_dir", "--local_dir")
# What stands before the seconds in a job's comment.
GRACE_COMMENT = "grace_secs="

_SCRIPT = """\
#!/bin/bash
{options}

# Else it would hide what srun says of who the workers are.
unset TF_CONFIG
{environment}
# What Slurm sends before the end goes to the steps, so to the trainers. If it
# reaches this shell as well, that must still see how they have ended.
trap : TERM

# The others may end by themselves when one has: the chief may still be saving.
{srun}
code=$?

queue_again() {{
  local state
  for _ in 1 2 3 4 5; do
    state=$(squeue --noheader --states=all --jobs="$SLURM_JOB_ID" \\
      --format=%T) && break
    sleep 10
  done
  # It is not running if it was cancelled, or if Slurm queues it by itself.
  if [ "$state" = RUNNING ]; then
    echo "The trainer has exited with $code; the job is queued again."
    scontrol requeue "$SLURM_JOB_ID"
  fi
}}

counter="{log_stem}-$SLURM_JOB_ID.restarts"
case $code in
  {preempted})
    queue_again
    ;;
  {counted})
    restarts=$(cat "$counter" 2>/dev/null || echo 0)
    if [ "$restarts" -lt {max_restarts} ]; then
      echo $((restarts + 1)) >"$counter" && queue_again
    fi
    ;;
esac
exit $code
"""


def script(spec: JobSpec) -> str:
    """Returns the script, for `sbatch`.

    Raises:
        UsageError: Slurm cannot do what the spec asks for.
    """
    _check(spec)
    commands = [
        f"export {name}={shlex.quote(value)}"
        for name, value in spec.environment.items()
    ]
    if not spec.in_bucket:
        commands.append(f"mkdir -p {_quote_path(str(spec.workdir))}")
    counted = (*_RETRIED, *_CRASHED, errors.EXIT_STALLED)
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in _options(spec)),
        environment="".join(f"{command}\n" for command in commands),
        srun=" \\\n  ".join(["srun", *_srun_options(spec), *_command(spec)]),
        log_stem=spec.job_name,
        preempted=errors.EXIT_PREEMPTED,
        counted=" | ".join(str(code) for code in counted),
        max_restarts=spec.max_restarts,
    )


def log_name(job_name: str, number: str) -> str:
    """Returns the log's name, in the directory that the job came from."""
    return f"{job_name}-{number}.log"


def _check(spec: JobSpec) -> None:
    if not spec.workdir:
        raise errors.UsageError(
            "--workdir is missing, which --platform=slurm needs: a directory"
            " that all machines see, or gs://bucket/prefix."
        )
    if spec.num_workers % spec.workers_per_node:
        raise errors.UsageError(
            f"--num_workers={spec.num_workers} does not divide by"
            f" --workers_per_node={spec.workers_per_node}. Choose a multiple."
        )
    if "TF_CONFIG" in spec.environment:
        raise errors.UsageError(
            "--env=TF_CONFIG=... would hide who the workers are, which srun"
            " says. Leave it out."
        )


def _num_gpus(spec: JobSpec) -> int:
    """Returns the GPUs of a worker."""
    if spec.num_accelerators is None:
        return int(spec.accelerator is not None)
    return spec.num_accelerators


def _options(spec: JobSpec) -> list[str]:
    """Returns the options of sbatch."""
    per_node = spec.workers_per_node
    options = [
        f"--job-name={spec.job_name}",
        # Never two at once, even if the same job is submitted twice.
        "--dependency=singleton",
        f"--nodes={spec.num_workers // per_node}",
        f"--ntasks-per-node={per_node}",
    ]
    if num_gpus := _num_gpus(spec):
        kind = f"{spec.accelerator}:" if spec.accelerator else ""
        options.append(f"--gpus-per-node={kind}{num_gpus * per_node}")
    if spec.cpus:
        options.append(f"--cpus-per-task={spec.cpus}")
    if spec.memory_gib:
        options.append(f"--mem={spec.memory_gib * per_node}G")
    if spec.partition:
        options.append(f"--partition={spec.partition}")
    if spec.slurm_account:
        options.append(f"--account={spec.slurm_account}")
    if spec.timeout_secs:
        options.append(f"--time={-(-spec.timeout_secs // 60)}")
    return [
        *options,
        # Without "B:", which would send it to the shell alone.
        f"--signal=TERM@{spec.grace_period_secs}",
        # For `cancel`, which knows no more of a job than Slurm does.
        f"--comment={GRACE_COMMENT}{spec.grace_period_secs}",
        "--requeue",
        "--open-mode=append",
        f"--output={log_name('%x', '%j')}",
    ]


def _srun_options(spec: JobSpec) -> list[str]:
    options = [
        "--kill-on-bad-exit=0",
        f"--wait={spec.grace_period_secs}",
        # Rank by rank, as the trainer counts its peers.
        "--distribution=block",
    ]
    if spec.cpus:  # Not taken over from sbatch's.
        options.append(f"--cpus-per-task={spec.cpus}")
    if (num_gpus := _num_gpus(spec)) and spec.workers_per_node > 1:
        options.append(f"--gpus-per-task={num_gpus}")
    if spec.image and not _is_apptainer(spec):
        options.append(f"--container-image={_pyxis_image(spec.image)}")
        mounts = [f"{path}:{path}" for path in _directories(spec)]
        options.append(f"--container-mounts={','.join(['$PWD:$PWD', *mounts])}")
        options.append("--container-workdir=$PWD")
    return [_quote_but_places(option) for option in options]


def _command(spec: JobSpec) -> list[str]:
    """Returns what each task runs, for the shell."""
    python = spec.python
    words = []
    if spec.image:
        python = _IMAGE_PYTHON
    if spec.image and _is_apptainer(spec):
        binds = [f"--bind={path}" for path in _directories(spec)]
        gpus = ["--nv"] if _num_gpus(spec) else []
        words = ["apptainer", "exec", *gpus, *binds, spec.image]
    words += [python, "-m", "trainer.main", *spec.trainer_args]
    # One flag a line, after what they are flags of.
    start = next(i for i, w in enumerate(words) if w == "trainer.main") + 1
    first = " ".join(map(_quote_but_places, words[:start]))
    return [first, *map(_quote_flag, words[start:])]


def _is_apptainer(spec: JobSpec) -> bool:
    """Whether the image is a file for Apptainer, not a name for Pyxis."""
    return str(spec.image).endswith(".sif")


def _pyxis_image(image: str) -> str:
    """Writes registry/name as Pyxis does: registry#name."""
    first, slash, rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return f"{first}#{rest}"
    return image


def _directories(spec: JobSpec) -> list[str]:
    """Returns the directories that the container must see, besides this."""
    values = [] if spec.in_bucket else [str(spec.workdir)]
    for flag in spec.trainer_flags:
        name, _, value = flag.partition("=")
        if name in _PATH_FLAGS:
            values.append(value)
        elif name == "--dataset":
            values.append(trainer_paths.data_directory(value) or "")
    # The home directory of whoever runs it, as the trainer reads the tilde.
    values = [re.sub("^~/", "$HOME/", value) for value in values]
    return [v for v in values if v.startswith(("/", "$HOME/"))]


def _quote_flag(flag: str) -> str:
    name, equals, value = flag.partition("=")
    if name in _PATH_FLAGS:
        return f"{name}{equals}{_quote_path(value)}"
    return shlex.quote(flag)


def _quote_path(path: str) -> str:
    """Quotes for the shell, which would leave a quoted tilde alone."""
    if path.startswith("~/"):
        return f'"$HOME"/{shlex.quote(path[2:])}'
    return shlex.quote(path)


def _quote_but_places(word: str) -> str:
    """Quotes for the shell, which still replaces $PWD and $HOME."""
    parts = re.split(r"(\$PWD|\$HOME)", word)
    if len(parts) == 1:
        return shlex.quote(word)
    return "".join(
        f'"{part}"' if part in ("$PWD", "$HOME") else shlex.quote(part)
        for part in parts
        if part
    )
