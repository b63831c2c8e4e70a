"""What `python -m launch.main --help` says, in all and of each verb."""

import dataclasses
import shlex
from collections.abc import Mapping

from launch.job_spec import JobSpec, Place
from trainer import options


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
    return "\n\n".join([_VERBS[verb], *topics]) + "\n" + _END


def place_flags(place: Place) -> str:
    """Returns the flags that say where a job is, for a shell."""
    words = []
    for field in dataclasses.fields(Place):
        value = getattr(place, field.name)
        if value != field.default:
            words.append(f"--{field.name}={shlex.quote(value)}")
    return " ".join(words)
