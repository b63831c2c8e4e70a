"""The trainer's flags, which stand after `--`: checked before anything is paid.

They are parsed and validated as `trainer.main` does, without TensorFlow.
"""

from collections.abc import Sequence

from launch import accelerators, trainer_paths
from launch.job_spec import UPLOAD_MARGIN_SECS, JobSpec
from trainer import config, errors, options

_HINT = "`python -m trainer.main --help` lists the flags that may follow `--`."


def read(
    arguments: Sequence[str], *, workdir: str | None, num_workers: int
) -> tuple[str | None, tuple[str, ...]]:
    """Returns the run's directory and the other flags, for a `JobSpec`.

    Those of a --flagfile are among them, since another machine may not have the
    file; --strategy is not, where it follows from the number of workers.

    Args:
        arguments: What stands after `--`.
        workdir: What was given before it.
        num_workers: How many workers train together.

    Raises:
        UsageError: a flag is not legal, or is the launcher's to give.
    """
    values = options.parse([config.Config], ["trainer", *arguments], _HINT)
    own_workdir = values["workdir"].value
    if workdir and own_workdir and workdir != own_workdir:
        raise errors.UsageError(
            f"--workdir={workdir} before `--` is not --workdir={own_workdir}"
            " after it. Leave one out."
        )
    several = values["strategy"].value == "multi_worker"
    if num_workers > 1 and values["strategy"].present and not several:
        raise errors.UsageError(
            f"--strategy={values['strategy'].value} does not go with"
            f" --num_workers={num_workers}, which means multi_worker. Leave"
            " --strategy out."
        )
    if num_workers == 1 and several:
        raise errors.UsageError(
            "--strategy=multi_worker after `--` needs several workers. Say how"
            " many with --num_workers before it, and leave --strategy out."
        )
    given = options.given_flags(config.Config, values)
    leave_out = ("--workdir=", "--strategy=multi_worker")
    return workdir or own_workdir, tuple(
        flag for flag in given if not flag.startswith(leave_out)
    )


def check(spec: JobSpec) -> None:
    """Checks all arguments of the trainer together.

    Raises:
        UsageError: the message says the value, the rule and the remedy.
    """
    values = options.parse(
        [config.Config], ["trainer", *spec.trainer_args], _HINT
    )
    settings = config.Config(**options.values_from_flags(config.Config, values))
    settings.validate()
    if settings.stop_upload_deadline_secs is not None:
        _check_upload_deadline(spec, settings.stop_upload_deadline_secs)
    trainer_paths.check(spec, settings)
    gpus = _gpus_of_a_worker(spec)
    _check_devices(gpus, settings)
    if settings.strategy == "one_device":
        return
    replicas = spec.num_workers * max(gpus, settings.num_logical_cpus, 1)
    parts = replicas * settings.gradient_accumulation_steps
    if remainder := settings.global_batch_size % parts:
        below = settings.global_batch_size - remainder
        nearest = [str(size) for size in (below, below + parts) if size]
        raise errors.UsageError(
            f"--batch_size={settings.global_batch_size} does not divide by"
            f" {parts}, of --num_workers={spec.num_workers} with {gpus} GPUs"
            f" each and --gradient_accumulation_steps="
            f"{settings.gradient_accumulation_steps}: {remainder} would be left"
            " over, and all shares are equal. Nearest:"
            f" --batch_size={' or '.join(nearest)}."
        )


def _check_upload_deadline(spec: JobSpec, deadline_secs: int) -> None:
    grace_secs = spec.grace_period_secs
    if not spec.in_bucket or deadline_secs < grace_secs:
        return
    shorter = max(grace_secs - UPLOAD_MARGIN_SECS, 0)
    remedy = f"Take --stop_upload_deadline_secs={shorter}"
    if spec.platform != "vertex":
        longer = deadline_secs + UPLOAD_MARGIN_SECS
        remedy += f", or --grace_secs={longer} before `--`"
    raise errors.UsageError(
        f"--stop_upload_deadline_secs={deadline_secs} is not below the"
        f" {grace_secs} s from SIGTERM to SIGKILL, so the trainer would be"
        f" killed before it can say what is in the bucket. {remedy}."
    )


def _check_devices(gpus: int, settings: config.Config) -> None:
    if settings.strategy == "one_device" and gpus > 1:
        raise errors.UsageError(
            f"--strategy=one_device would use one of {gpus} GPUs that are paid"
            " for. Leave it out, or take --num_accelerators=1."
        )
    if settings.num_logical_cpus and gpus:
        raise errors.UsageError(
            f"--num_logical_cpus={settings.num_logical_cpus} would leave"
            f" {gpus} GPUs without work. Leave it out, or take no GPUs."
        )


def _gpus_of_a_worker(spec: JobSpec) -> int:
    """Returns the count, once it is sure that there is such a machine."""
    named = spec.accelerator or spec.machine
    if spec.platform == "vertex" or (spec.platform == "kubernetes" and named):
        return accelerators.choose(
            spec.accelerator,
            spec.num_accelerators,
            spec.machine,
            spot=spec.spot or spec.flex_start,
            unchecked=spec.unchecked_machine,
        ).count
    if spec.num_accelerators is None:
        return int(spec.accelerator is not None)
    return spec.num_accelerators
