"""What `python -m launch.main --help` says, in all and of each verb."""

import dataclasses
import shlex
import textwrap
from collections.abc import Mapping, Sequence

from launch.job_spec import PLATFORMS, UNDERSTOOD_BY, JobSpec, Place
from trainer import options

_WIDTH = 79


@dataclasses.dataclass(frozen=True)
class _Json:
    json: bool = options.declare(
        False, "Output", False, "Print JSON, for programs."
    )


@dataclasses.dataclass(frozen=True)
class _Follow:
    follow: bool = options.declare(
        False,
        "Output",
        False,
        "Go on until the job has ended. Ctrl-C leaves it running.",
    )


# Whose fields are the flags of a verb.
FLAGS: Mapping[str, tuple[type, ...]] = {
    "submit": (JobSpec, _Json),
    "render": (JobSpec,),
    "status": (Place, _Json),
    "logs": (Place, _Follow),
    "cancel": (Place,),
    "list": (Place, _Json),
}
_TOP = """\
Runs the trainer on this machine, in Docker or on rented GPUs.

usage: python -m launch.main <what> [<job>] [--flag=value ...] [-- <trainer's>]

what:
  submit   Start a job. If the same job is there already, say so instead: after
           a lost connection, run the same command again.
  render   Print exactly what submit would send, and send nothing: a script,
           JSON or YAML. Needs no credentials.
  status   How a job is.
  logs     What it has written; with --follow, until it ends.
  cancel   End a job, and wait until it costs nothing any more.
  list     The jobs that this launcher submitted, whoever ran it.

platforms (--platform=...):
  local       Processes of this machine, in the foreground.
  docker      A container on this machine, in the background.
  vertex      Vertex AI: a CustomJob. pip install 'gan-trainer[vertex]'
  kubernetes  A Job, or a JobSet of several machines. pip install
              'gan-trainer[kubernetes]'
  slurm       An sbatch script.

examples:
  python -m launch.main submit --platform=local --num_workers=2 -- --epochs=5
      Two processes that train together.
  python -m launch.main submit --platform=vertex --project=my-project \\
      --region=us-central1 --service_account=trainer@... \\
      --image=...@sha256:... --workdir=gs://bucket/runs/one \\
      --accelerator=l4 --spot -- --dataset=mnist --epochs=100
      One L4 that may be taken away, and goes on from the bucket.
  python -m launch.main logs train-1a2b3c4d --platform=vertex \\
      --project=my-project --region=us-central1 --follow
  python -m launch.main submit --help
      All flags of submit; likewise of the others.

exit codes: 0 done; 1 the platform refuses or does not answer, or (logs
--follow) the job has not succeeded; 2 usage; 130 Ctrl-C, and the job goes on.
With --platform=local, those of the trainer."""
_VERBS = {
    "submit": """\
Starts a job, or says how it is if the same one is there already.

usage: python -m launch.main submit --platform=... [--flag=value ...]
           [-- <trainer's flags>]

The job's name ends in a digest of all that is submitted, so one job is started
once, even if an answer is lost. One that has failed or was cancelled is started
again, and the trainer goes on where the run in --workdir stands. To run anew
what has succeeded, choose another --name.

The trainer's flags (`python -m trainer.main --help`) are checked before
anything is sent. --num_workers says how many train together; --strategy follows
from it.""",
    "render": """\
Prints exactly what submit would send, and sends nothing.

usage: python -m launch.main render --platform=... [--flag=value ...]
           [-- <trainer's flags>]

Needs no credentials, no client library and no TensorFlow. local, docker and
slurm print a script, vertex JSON, kubernetes YAML.""",
    "status": """\
Says how a job is: queued, running, preempted (has lost its machines and waits
for others), cancelling, succeeded, failed or cancelled.

usage: python -m launch.main status <job> --platform=... [--flag=value ...]""",
    "logs": """\
Prints what a job has written.

usage: python -m launch.main logs <job> --platform=... [--follow]
           [--flag=value ...]

With --follow it goes on until the job has ended, over lost connections, and
exits 0 if the job has succeeded, else 1. Ctrl-C leaves the job running.""",
    "cancel": """\
Ends a job, and waits until it has ended and costs nothing any more. The
trainer gets SIGTERM and saves; submitting the same job again goes on from
there.

usage: python -m launch.main cancel <job> --platform=... [--flag=value ...]""",
    "list": """\
Lists the jobs that were submitted by this launcher, the newest first: by
whomever, all in the project's region, the namespace or Docker; on Slurm, yours
of the last 30 days.

usage: python -m launch.main list --platform=... [--flag=value ...]""",
}
# What each verb's flags may look like, platform by platform.
_JOB_EXAMPLES = """\
  python -m launch.main {verb} --platform=local --num_workers=2 \\
      --workdir=runs/two -- --dataset=digits --epochs=5
  python -m launch.main {verb} --platform=docker --image=gan-trainer:gpu \\
      --num_accelerators=1 --workdir=runs/cats \\
      -- --dataset=folder:/data/cats --image_size=64 --model=dcgan
  python -m launch.main {verb} --platform=vertex --project=my-project \\
      --region=us-central1 --image=REPOSITORY/gan-trainer@sha256:... \\
      --service_account=trainer@my-project.iam.gserviceaccount.com \\
      --workdir=gs://bucket/runs/one --accelerator=l4 --spot \\
      -- --dataset=mnist --epochs=100
  python -m launch.main {verb} --platform=kubernetes --namespace=gans \\
      --image=REPOSITORY/gan-trainer@sha256:... --service_account=trainer \\
      --workdir=gs://bucket/runs/one --accelerator=h100 --num_accelerators=8 \\
      -- --dataset=mnist --epochs=100
  python -m launch.main {verb} --platform=slurm --partition=gpu \\
      --num_workers=2 --num_accelerators=8 --workdir=/shared/runs/one \\
      --python=/shared/venv/bin/python \\
      -- --dataset=mnist --data_dir=/shared/mnist"""
_PLACE_EXAMPLES = """\
  python -m launch.main {verb} {job}--platform=docker{more}
  python -m launch.main {verb} {job}--platform=vertex \\
      --project=my-project --region=us-central1{more}
  python -m launch.main {verb} {job}--platform=kubernetes \\
      --namespace=gans{more}
  python -m launch.main {verb} {job}--platform=slurm{more}"""
_MORE = {"status": " --json", "logs": " --follow", "list": " --json"}
_END = """\

Other:
  --flagfile=<file>
      Read flags from a file, one a line.
  --help
      Show this text."""


def page(verb: str | None) -> str:
    """Returns the help of a verb, or of the whole program."""
    if verb is None:
        return _TOP
    topics = [options.help_text(config_type) for config_type in FLAGS[verb]]
    parts = [_VERBS[verb], f"examples:\n{_examples(verb)}", *topics]
    if verb in ("submit", "render"):
        parts.append(_by_platform())
    return "\n\n".join(parts) + "\n" + _END


def _examples(verb: str) -> str:
    if verb in ("submit", "render"):
        return _JOB_EXAMPLES.format(verb=verb)
    job = "" if verb == "list" else "train-1a2b3c4d "
    return _PLACE_EXAMPLES.format(verb=verb, job=job, more=_MORE.get(verb, ""))


def _by_platform() -> str:
    """Returns which of the flags each platform understands."""
    names = [field.name for field, _ in options.fields(JobSpec)]
    for_all = [n for n in names if n not in UNDERSTOOD_BY]
    lines = ["Flags by platform:", *_wrapped("all", for_all)]
    for platform in PLATFORMS:
        lines += _wrapped(
            platform,
            [n for n in names if platform in UNDERSTOOD_BY.get(n, ())],
        )
    return "\n".join(lines)


def _wrapped(platform: str, names: Sequence[str]) -> list[str]:
    return textwrap.wrap(
        " ".join(f"--{name}" for name in names),
        _WIDTH,
        initial_indent=f"  {platform:12}",
        subsequent_indent=" " * 14,
        break_on_hyphens=False,
    )


def place_flags(place: Place) -> str:
    """Returns the flags that say where a job is, for a shell."""
    words = []
    for field in dataclasses.fields(Place):
        value = getattr(place, field.name)
        if value != field.default:
            words.append(f"--{field.name}={shlex.quote(value)}")
    return " ".join(words)
