"""Which settings cannot come together, one function for each theme.

What a single value must be stands beside its field in `trainer.config`, and
`Config.validate` calls these afterwards. All of them raise UsageError, whose
message says the value, the rule and the remedy.
"""

from collections.abc import Collection, Mapping
from typing import Any

from trainer import errors


def check_place(
    workdir: str, *, local_dir: str | None, is_bucket: bool
) -> None:
    """Refuses an address that names no bucket, and a copy of a local run."""
    if "://" in workdir and not is_bucket:
        raise errors.UsageError(
            f"--workdir={workdir} is neither a directory nor"
            " gs://bucket/prefix, with a bucket of 3 or more small letters,"
            " digits, '.', '-' and '_'. Name one of these."
        )
    if local_dir and not is_bucket:
        raise errors.UsageError(
            f"--local_dir={local_dir} has no use:"
            f" --workdir={workdir} is local already. Leave it out."
        )


def check_collapse(
    on_collapse: str,
    *,
    evaluate_every_epochs: int,
    workdir: str,
    is_bucket: bool,
) -> None:
    """Refuses a rollback that cannot come, or cannot be done."""
    if on_collapse != "rollback":
        return
    if not evaluate_every_epochs:
        raise errors.UsageError(
            "--on_collapse=rollback needs --evaluate_every_epochs: without"
            " evaluations, no collapse is noticed. Give it, or leave"
            " --on_collapse out."
        )
    if is_bucket:
        raise errors.UsageError(
            f"--on_collapse=rollback cannot be combined with"
            f" --workdir={workdir}: checkpoints in a bucket are not"
            " taken back. Choose a directory, or --on_collapse=warn."
        )


def check_evaluation(
    *, evaluate_every_epochs: int, changed: Mapping[str, Any]
) -> None:
    """Refuses settings of evaluations that are never made.

    Args:
      evaluate_every_epochs: 0 for never.
      changed: all that is not at its default, by name.
    """
    if not evaluate_every_epochs:
        _refuse(
            changed,
            ("evaluation_split", "num_evaluation_samples", "inception_weights"),
            "without --evaluate_every_epochs, nothing is measured",
        )


def check_encoding(workdir: str) -> None:
    """Refuses a name that the files of a run could not hold."""
    try:
        workdir.encode()
    except UnicodeEncodeError as error:
        raise errors.UsageError(
            f"--workdir={workdir!r} is not valid UTF-8, which the"
            " files of a run are named in. Choose another."
        ) from error


def check_data_dir(data_dir: str | None, *, dataset: str) -> None:
    """Refuses a directory that nothing would be read from."""
    if dataset == "digits" and data_dir:
        raise errors.UsageError(
            f"--data_dir={data_dir} has no use: --dataset=digits is"
            " embedded. Leave --data_dir out, or choose another --dataset."
        )


def check_compilation(jit_compile: str, *, sync_batch_norm: bool) -> None:
    """Refuses to compile what XLA cannot."""
    if jit_compile == "on" and sync_batch_norm:
        raise errors.UsageError(
            "--jit_compile=on cannot be combined with --sync_batch_norm:"
            " a compiled computation cannot speak to the other replicas."
            " Leave either out."
        )


def check_shares(
    global_batch_size: int,
    *,
    strategy: str,
    num_logical_cpus: int,
    gradient_accumulation_steps: int,
) -> None:
    """Refuses replicas that idle and a batch that they cannot share."""
    if strategy != "mirrored" and num_logical_cpus > 1:
        raise errors.UsageError(
            f"--num_logical_cpus={num_logical_cpus} needs --strategy=mirrored:"
            f" --strategy={strategy} would use one of them and leave"
            " the rest idle. Change either."
        )
    for name, shares in (
        ("gradient_accumulation_steps", gradient_accumulation_steps),
        ("num_logical_cpus", num_logical_cpus),
    ):
        divisor = max(shares, 1)
        if remainder := global_batch_size % divisor:
            raise errors.UsageError(
                f"--batch_size={global_batch_size} does not divide by"
                f" --{name}={divisor}: {remainder} would be left over, and"
                " all shares are equal. Change either."
            )


def check_optimizer(optimizer: str, *, changed: Mapping[str, Any]) -> None:
    """Refuses settings of Adam for another optimizer.

    Args:
      optimizer: of both networks.
      changed: all that is not at its default, by name; here and below.
    """
    if optimizer != "adam":
        _refuse(
            changed,
            ("g_beta_1", "d_beta_1", "g_beta_2", "d_beta_2"),
            f"--optimizer={optimizer} has no such moments",
        )


def check_learning_rates(
    schedule: str, *, decay_steps: int | None, changed: Mapping[str, Any]
) -> None:
    """Refuses a decay without a length, and its settings without a decay."""
    if schedule == "constant":
        _refuse(
            changed,
            ("learning_rate_decay_steps", "learning_rate_final_factor"),
            "--learning_rate_schedule=constant does not decay",
        )
    elif decay_steps is None:
        raise errors.UsageError(
            f"--learning_rate_schedule={schedule} needs"
            " --learning_rate_decay_steps: it cannot follow --epochs, which"
            " may be raised. Give it, for example the steps of all epochs."
        )


def check_penalty(penalty: str, *, changed: Mapping[str, Any]) -> None:
    """Refuses settings of a penalty that there is not."""
    if penalty == "none":
        _refuse(
            changed,
            ("penalty_weight", "penalty_every_steps"),
            "--penalty=none has no weight",
        )


def check_augmentation(
    augment: str,
    *,
    target: float | None,
    loss: str,
    losses_with_a_zero: Collection[str],
    changed: Mapping[str, Any],
) -> None:
    """Refuses settings that nothing would use, and signs without sense."""
    adaptive = ("augment_target", "augment_speed_images")
    if augment == "none":
        _refuse(
            changed,
            ("augment_probability", *adaptive),
            "--augment=none changes nothing",
        )
    if target is None:
        _refuse(changed, adaptive, "without --augment_target, nothing adapts")
        return
    _refuse(
        changed,
        ("augment_probability",),
        f"--augment_target={target} adapts it",
    )
    if loss not in losses_with_a_zero:
        raise errors.UsageError(
            f"--augment_target={target} cannot be combined"
            f" with --loss={loss}: the sign of its logits does not"
            " tell real from generated images. Give a fixed"
            " --augment_probability instead, or take one of"
            f" --loss={{{','.join(losses_with_a_zero)}}}."
        )


def _refuse(
    changed: Mapping[str, Any], names: Collection[str], reason: str
) -> None:
    """Refuses what is not at its default, for nothing would use it."""
    for name, value in changed.items():
        if name in names:
            raise errors.UsageError(
                f"--{name}={value} has no use: {reason}. Leave it"
                " out, or change the other."
            )
