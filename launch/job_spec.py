"""One job, in words that every platform understands.

The flags of `launch.main` are derived from the fields of `JobSpec`, as the
trainer's are from those of its config. What a platform cannot do is for its own
module to say; here is what holds for all.
"""

import dataclasses
import functools
import hashlib
import json
import re

from launch import secret_values
from trainer import errors, options

PLATFORMS = ("local", "docker", "vertex", "kubernetes", "slurm")
# Where an image's process may write when its root is read-only. What lies there
# is lost with the machine.
SCRATCH_DIR = "/scratch"
# Where --volume_claim is mounted.
VOLUME_DIR = "/volume"
JOB_LABEL = "gan-trainer-job"
DIGEST_LABEL = "gan-trainer-digest"
ATTEMPT_LABEL = "gan-trainer-attempt"

DISK_GIB = 100
# By default; a node of GKE has about 47 GiB for its pods unless one asks for a
# larger boot disk.
SCRATCH_REQUEST_GIB = 20
# What the trainer needs besides its uploads between SIGTERM and SIGKILL: to end
# the step, and to write a checkpoint.
UPLOAD_MARGIN_SECS = 20
_MIN_UPLOAD_SECS = 5
# GKE gives 15 to 25 s to pods of Spot machines, whatever they ask for, and
# Compute Engine 30 s to the machine.
SPOT_GRACE_SECS = 25
_GRACE_SECS = 60

_flag = functools.partial(options.declare, False)
_PLACE = "Where"
_JOB = "What runs"
_MACHINES = "Machines"
_TIME = "Time"
_IDENTITY = "Identity and network"
# What only some platforms understand; it is refused elsewhere.
UNDERSTOOD_BY = {
    "project": ("vertex",),
    "region": ("vertex",),
    "namespace": ("kubernetes",),
    "kube_context": ("kubernetes",),
    "image": ("docker", "vertex", "kubernetes", "slurm"),
    "labels": ("docker", "vertex", "kubernetes"),
    "accelerator": ("vertex", "kubernetes", "slurm"),
    "machine": ("vertex", "kubernetes"),
    "unchecked_machine": ("vertex", "kubernetes"),
    "spot": ("vertex", "kubernetes"),
    "flex_start": ("vertex",),
    "max_wait_secs": ("vertex",),
    "cpus": ("docker", "kubernetes", "slurm"),
    "memory_gib": ("docker", "kubernetes", "slurm"),
    "shm_gib": ("docker", "kubernetes"),
    "disk_gib": ("vertex", "kubernetes"),
    "disk_type": ("vertex",),
    "volume_claim": ("kubernetes",),
    "queue": ("kubernetes",),
    "partition": ("slurm",),
    "slurm_account": ("slurm",),
    "python": ("slurm",),
    "workers_per_node": ("slurm",),
    "timeout_secs": ("vertex", "kubernetes", "slurm"),
    "grace_secs": ("docker", "kubernetes", "slurm", "local"),
    "max_restarts": ("kubernetes", "slurm"),
    "service_account": ("vertex", "kubernetes"),
    "network": ("vertex", "docker"),
    "tensorboard": ("vertex",),
}
_NAME = re.compile("[a-z]([-a-z0-9]{0,28}[a-z0-9])?")
_LABEL_KEY = re.compile("[a-z]([-a-z0-9_]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile("([a-z0-9]([-a-z0-9_]{0,61}[a-z0-9])?)?")
_ENV_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
# Family, kind, CPUs (or GPUs, as in 8g).
_MACHINE = re.compile("[a-z][0-9]+[a-z]*-[a-z]+-[0-9]+(g|-lssd)?")
_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where jobs run: what one must say to find those that are there."""

    platform: str | None = _flag(
        _PLACE,
        None,
        "Who runs the job.",
        choices=PLATFORMS,
        default_text="none, it must be given",
    )
    project: str | None = _flag(
        _PLACE, None, "vertex: the Google Cloud project.", "project"
    )
    region: str | None = _flag(
        _PLACE, None, "vertex: the region, such as us-central1.", "region"
    )
    namespace: str = _flag(
        _PLACE, "default", "kubernetes: the namespace.", "namespace"
    )
    kube_context: str | None = _flag(
        _PLACE,
        None,
        "kubernetes: the context of your kubeconfig.",
        "context",
        default_text="the current one",
    )

    def validate(self) -> None:
        """Checks each value, and refuses what the platform has no use for.

        Raises:
            UsageError: The message says the value, the rule and the remedy.
        """
        options.check_values(type(self), vars(self))
        if self.platform is None:
            raise errors.UsageError(
                f"--platform is missing: one of {', '.join(PLATFORMS)}."
            )
        for field, _ in options.fields(type(self)):
            known = UNDERSTOOD_BY.get(field.name, PLATFORMS)
            given = getattr(self, field.name) != field.default
            if given and self.platform not in known:
                raise errors.UsageError(
                    f"--{field.name} has no use with"
                    f" --platform={self.platform}: it is for"
                    f" {', '.join(known)}. Leave it out."
                )


@dataclasses.dataclass(frozen=True)
class JobSpec(Place):
    """A job, whole and checked: equal specs are the same job.

    Attributes:
        trainer_flags: The trainer's, without --workdir; not a flag itself.
        attempt: Counts the starts of the same job, from 1; not a flag itself.
            An attempt follows one that has failed or was cancelled.
    """

    name: str = _flag(
        _JOB,
        "train",
        "The job is called by this and a digest of all that is submitted, so"
        " that submitting it twice starts it once.",
        "name",
    )
    image: str | None = _flag(
        _JOB,
        None,
        "The container image, best by digest (name@sha256:...). Its entry point"
        " is the trainer. local needs none; slurm can do without.",
        "image",
    )
    workdir: str | None = _flag(
        _JOB,
        None,
        "Directory of the run, or gs://bucket/prefix, which vertex needs. The"
        " same one continues the run.",
        "directory",
    )
    env: tuple[str, ...] = _flag(
        _JOB,
        (),
        "Environment variable of the trainer, NAME=value. Secrets are refused."
        " May be repeated.",
        "variable",
    )
    labels: tuple[str, ...] = _flag(
        _JOB, (), "Label of the job, key=value. May be repeated.", "label"
    )
    num_workers: int = _flag(
        _MACHINES,
        1,
        "Machines (local: processes) that train together.",
        "workers",
        minimum=1,
        maximum=1000,
    )
    workers_per_node: int = _flag(
        _MACHINES,
        1,
        "slurm: workers that share a machine, each with --num_accelerators GPUs"
        " of its own; --num_workers counts all.",
        "workers",
        minimum=1,
        maximum=16,
    )
    accelerator: str | None = _flag(
        _MACHINES,
        None,
        "Kind of GPU: t4, v100, l4, a100-40gb, a100-80gb, h100, h100-mega,"
        " h200, b200, rtx-pro-6000; slurm: the type that `sinfo -o %G` shows.",
        "gpu",
    )
    num_accelerators: int | None = _flag(
        _MACHINES,
        None,
        "GPUs of each worker.",
        "gpus",
        minimum=0,
        maximum=64,
        default_text="those of --machine; else 1 with --accelerator, or 0",
    )
    machine: str | None = _flag(
        _MACHINES,
        None,
        "Machine type on Google Cloud, such as g2-standard-24.",
        "machine",
        default_text="the first that has the GPUs",
    )
    unchecked_machine: bool = _flag(
        _MACHINES,
        False,
        "Take --machine, --accelerator and --num_accelerators as they are, for"
        " what is newer than our table.",
    )
    spot: bool = _flag(
        _MACHINES,
        False,
        "Cheaper machines that are taken away at any time; the job goes on on"
        " others.",
    )
    flex_start: bool = _flag(
        _MACHINES, False, "Wait for machines that are scarce (vertex)."
    )
    max_wait_secs: int = _flag(
        _MACHINES,
        86_400,
        "With --flex_start: give up after so long; 0: never.",
        "seconds",
        minimum=0,
    )
    cpus: int | None = _flag(
        _MACHINES,
        None,
        "CPUs of each worker: docker, kubernetes, slurm.",
        "cpus",
        minimum=1,
        default_text="the platform's own",
    )
    memory_gib: int | None = _flag(
        _MACHINES,
        None,
        "Memory of each worker: docker, kubernetes, slurm.",
        "GiB",
        minimum=1,
        default_text="the platform's own",
    )
    shm_gib: int = _flag(
        _MACHINES,
        8,
        "Size of /dev/shm, through which GPUs of a machine may speak: docker,"
        " kubernetes.",
        "GiB",
        minimum=1,
    )
    disk_gib: int | None = _flag(
        _MACHINES,
        None,
        "vertex: disk of each worker, for the image, data and checkpoints"
        f" before they are uploaded; kubernetes: most of {SCRATCH_DIR}, of"
        " which so much is reserved.",
        "GiB",
        minimum=100,
        default_text=f"{DISK_GIB}; {SCRATCH_REQUEST_GIB} reserved",
    )
    disk_type: str | None = _flag(
        _MACHINES,
        None,
        "vertex: the boot disk's type, such as pd-ssd or hyperdisk-balanced.",
        "type",
        default_text="hyperdisk-balanced with b200 and rtx-pro-6000, else the"
        " platform's own",
    )
    volume_claim: str | None = _flag(
        _MACHINES,
        None,
        f"kubernetes: PersistentVolumeClaim to mount at {VOLUME_DIR}, for data"
        " or a --workdir there.",
        "claim",
    )
    queue: str | None = _flag(
        _MACHINES, None, "kubernetes: the local queue of Kueue.", "queue"
    )
    partition: str | None = _flag(
        _MACHINES, None, "slurm: the partition.", "partition"
    )
    slurm_account: str | None = _flag(
        _MACHINES, None, "slurm: the account that pays.", "account"
    )
    python: str = _flag(
        _MACHINES,
        "python3",
        "slurm without --image: the Python that has this package.",
        "path",
    )
    timeout_secs: int | None = _flag(
        _TIME,
        None,
        "End the job after so long. slurm: each start of it, after which it is"
        " queued again; kubernetes with several workers: each start of it too,"
        " so that one that is preempted may take longer.",
        "seconds",
        minimum=60,
        default_text="7 days on vertex, the partition's on slurm, else never",
    )
    grace_secs: int | None = _flag(
        _TIME,
        None,
        "From SIGTERM to SIGKILL: docker, kubernetes, slurm, local. With a"
        " --workdir in a bucket, the trainer's --stop_upload_deadline_secs is"
        f" {UPLOAD_MARGIN_SECS} s less, unless it is given.",
        "seconds",
        minimum=1,
        maximum=3600,
        default_text=f"{_GRACE_SECS}; {SPOT_GRACE_SECS} with --spot",
    )
    max_restarts: int = _flag(
        _TIME,
        10,
        "kubernetes, slurm: so many times the trainer may crash or stall, or"
        " exit with 1 or 7; after 2 to 6 it never starts again. Machines that"
        " were taken away do not count, nor does, on kubernetes, a stall (142)"
        " of several workers: it is how the others see that one is gone.",
        "restarts",
        minimum=0,
        maximum=1000,
    )
    service_account: str | None = _flag(
        _IDENTITY,
        None,
        "Whom the trainer acts as. vertex: the e-mail address, required;"
        " kubernetes: the service account's name.",
        "account",
    )
    network: str | None = _flag(
        _IDENTITY,
        None,
        "vertex: projects/<number>/global/networks/<name>; docker: the"
        " network's name.",
        "network",
    )
    tensorboard: str | None = _flag(
        _IDENTITY,
        None,
        "vertex: projects/<project>/locations/<region>/tensorboards/<id>.",
        "instance",
    )
    trainer_flags: tuple[str, ...] = ()
    attempt: int = 1

    @property
    def digest(self) -> str:
        """8 hex digits that stand for all that is submitted.

        Defaults do not count, so that a new field makes no other job.
        """
        changed = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
            and field.name != "attempt"
        }
        # What is the same in another order, or writing, is the same job.
        for name in changed.keys() & {"env", "labels"}:
            changed[name] = sorted(changed[name])
        if self.workdir:
            changed["workdir"] = self.workdir.rstrip("/") or "/"
        text = json.dumps(changed, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def job_name(self) -> str:
        """The job's name: 43 characters at most, of [a-z0-9-]."""
        attempt = f"-{self.attempt}" if self.attempt > 1 else ""
        return f"{self.name}-{self.digest}{attempt}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by name.

        An image does not know its own name, which the trainer writes down with
        the run: it is told.
        """
        image = {"GAN_TRAINER_IMAGE": self.image} if self.image else {}
        return image | dict(_pair(item) for item in self.env)

    @property
    def all_labels(self) -> dict[str, str]:
        """The user's labels, and those that the job is found by."""
        return {
            **dict(_pair(item) for item in self.labels),
            JOB_LABEL: self.job_name,
            DIGEST_LABEL: self.digest,
            ATTEMPT_LABEL: str(self.attempt),
        }

    @property
    def in_bucket(self) -> bool:
        """Whether the run lives in a bucket, not in a directory."""
        return str(self.workdir).startswith("gs://")

    @property
    def grace_period_secs(self) -> int:
        """Seconds from SIGTERM to SIGKILL, given or by default."""
        if self.grace_secs is not None:
            return self.grace_secs
        return SPOT_GRACE_SECS if self.spot else _GRACE_SECS

    @property
    def trainer_args(self) -> tuple[str, ...]:
        """All arguments of the trainer."""
        strategy = ("--strategy=multi_worker",) if self.num_workers > 1 else ()
        workdir = (f"--workdir={self.workdir}",) if self.workdir else ()
        return (
            *strategy,
            *self.trainer_flags,
            *self._upload_deadline(),
            *workdir,
        )

    def _upload_deadline(self) -> tuple[str, ...]:
        """Returns the flag that ends uploads before SIGKILL does."""
        flag = "--stop_upload_deadline_secs="
        if not self.in_bucket or any(
            given.startswith(flag) for given in self.trainer_flags
        ):
            return ()
        left_secs = self.grace_period_secs - UPLOAD_MARGIN_SECS
        return (f"{flag}{max(left_secs, _MIN_UPLOAD_SECS)}",)

    @property
    def container_args(self) -> tuple[str, ...]:
        """All arguments of the trainer in an image, whose root is read-only."""
        local = any(f.startswith("--local_dir=") for f in self.trainer_flags)
        if not self.in_bucket or local:
            return self.trainer_args
        return (*self.trainer_args, f"--local_dir={SCRATCH_DIR}/run")

    def validate(self) -> None:
        """Checks what holds for all platforms.

        Raises:
            UsageError: The message says the value, the rule and the remedy.
        """
        super().validate()
        if not _NAME.fullmatch(self.name):
            raise errors.UsageError(
                f"--name={self.name} is not valid: 1 to 30 of a-z, 0-9 and -,"
                " a letter first and no - last."
            )
        if self.spot and self.flex_start:
            raise errors.UsageError(
                "--spot and --flex_start are two ways to get machines. Leave"
                " one out."
            )
        if self.accelerator and self.num_accelerators == 0:
            raise errors.UsageError(
                f"--num_accelerators=0 with --accelerator={self.accelerator}:"
                " leave one out."
            )
        self._check_pairs()
        secret_values.refuse(
            self.environment,
            dataclasses.asdict(self),
            sees_files=self.platform == "slurm",
        )

    def _check_pairs(self) -> None:
        for item in self.env:
            name, equals, _ = item.partition("=")
            if not _ENV_NAME.fullmatch(name) or not equals:
                # Never the value, which may be a secret.
                raise errors.UsageError(
                    f"--env={name}{equals and '=...'} is not valid: it must be"
                    " NAME=value, the name of letters, digits and _."
                )
        for item in self.labels:
            key, value = _pair(item)
            legal = _LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)
            if not legal or "=" not in item or key.startswith("gan-trainer-"):
                raise errors.UsageError(
                    f"--labels={item} is not valid: it must be key=value, each"
                    " of a-z, 0-9, - and _, 63 at most, the key not beginning"
                    " with gan-trainer-, which is ours."
                )
        for flag, items in (("env", self.env), ("labels", self.labels)):
            names = [_pair(item)[0] for item in items]
            for name in names:
                if names.count(name) > 1:
                    raise errors.UsageError(
                        f"--{flag}={name}=... is given twice. Leave one out."
                    )

    def warnings(self) -> list[str]:
        """Says what is legal, and may still not be what was meant."""
        found = [
            self.image_warning(),
            self._grace_warning(),
            self._machine_warning(),
        ]
        return [text for text in found if text]

    def _grace_warning(self) -> str:
        if not self.spot or self.grace_period_secs <= SPOT_GRACE_SECS:
            return ""
        return (
            f"--grace_secs={self.grace_secs} with --spot: GKE ends pods of Spot"
            f" machines 15 to {SPOT_GRACE_SECS} s after SIGTERM, whatever is"
            " asked for. Plan with that, and leave --grace_secs out."
        )

    def _machine_warning(self) -> str:
        on_google = self.platform == "vertex" and not self.unchecked_machine
        if not on_google or _MACHINE.fullmatch(self.machine or "n1-standard-8"):
            return ""
        return (
            f"--machine={self.machine} does not look like a machine type, such"
            " as n1-standard-8, and is not in our table. If Vertex AI does not"
            " know it either, it refuses the job."
        )

    def image_warning(self) -> str:
        """Says what an image that is not named by digest may lead to."""
        if not self.image or _DIGEST.fullmatch(self.image):
            return ""
        return (
            f"--image={self.image} is a tag, which may name another image when"
            " a worker restarts. Name it by digest: name@sha256:..."
        )


def _pair(item: str) -> tuple[str, str]:
    key, _, value = item.partition("=")
    return key, value
