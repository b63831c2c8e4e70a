"""A training run from its first line to its last."""

import math
import secrets
import time
from collections.abc import Callable

import tensorflow as tf
from absl import logging

from trainer import (
    assembly,
    checkpoint,
    data,
    distribution,
    errors,
    loss_scale,
    run_directory,
)
from trainer.config import Config
from trainer.data.array_dataset import ArrayDataset
from trainer.interruption import Interruption
from trainer.outputs import Outputs
from trainer.schedule import Schedule
from trainer.storage import finder
from trainer.storage.local import LocalStore
from trainer.train_step import TrainStep


def run(config: Config) -> int:
    """Trains, or goes on training, what a resolved config describes.

    Returns:
      the exit code: 0, or 130 or 143 when a signal stopped the run.

    Raises:
      TrainerError: see `trainer.errors`; nothing already saved is lost by it.
    """
    directory = run_directory.check(config)
    with Interruption() as interruption:
        strategy = assembly.start_devices(config)
        logging.info("Training on %s.", distribution.describe(strategy))
        dataset = data.load(config.dataset, data_dir=config.data_dir)
        schedule = assembly.make_schedule(config, strategy, dataset)
        _say_batch_arithmetic(
            config, schedule, dataset, strategy.num_replicas_in_sync
        )
        store = LocalStore(directory.checkpoints)
        found = _find_checkpoint(config, directory, store, dataset, schedule)
        step = found.step if found else 0
        if step < schedule.last_step:
            step = _go_on(
                config,
                strategy=strategy,
                dataset=dataset,
                schedule=schedule,
                directory=directory,
                store=store,
                found=found,
                interruption=interruption,
            )
        _say_where_it_stands(schedule, step, directory)
        # A signal that came too late to stop anything is no reason to restart.
        return 0 if step >= schedule.last_step else interruption.exit_code


def _go_on(
    config: Config,
    *,
    strategy: tf.distribute.Strategy,
    dataset: ArrayDataset,
    schedule: Schedule,
    directory: run_directory.RunDirectory,
    store: LocalStore,
    found: finder.StoredCheckpoint | None,
    interruption: Interruption,
) -> int:
    """Trains from the checkpoint that was found, if any; returns the step."""
    state = assembly.build_state(config, strategy)
    attempt = secrets.token_hex(8)
    checkpointer = checkpoint.Checkpointer(
        objects=state.as_checkpoint(),
        store=store,
        keep_checkpoints=config.keep_checkpoints,
        config_digest=config.digest(),
        attempt=attempt,
    )
    first_step = found.step if found else 0
    if found:
        checkpointer.restore(found)
        logging.info("Going on after step %d: %s.", first_step, found.directory)
    train_step = assembly.build_step(
        config, strategy, dataset, state, first_step
    )

    data_digest = dataset.digest()  # Reads all of the data: once is enough.

    def save(step: int) -> None:
        # First, so that a checkpoint never knows more than the files.
        outputs.flush()
        host_state = {
            "epoch": schedule.epoch(step),
            "images_seen": step * config.global_batch_size,
            "data_digest": data_digest,
            "num_replicas": strategy.num_replicas_in_sync,
        }
        checkpointer.save(step, host_state)

    with (
        run_directory.claim(config, attempt),
        assembly.open_outputs(
            config, directory, schedule, state, first_step
        ) as outputs,
    ):
        outputs.show_real(dataset.samples[: config.num_samples])
        return _train(
            train_step,
            schedule=schedule,
            first_step=first_step,
            outputs=outputs,
            save=save,
            interruption=interruption,
        )


def _train(
    train_step: TrainStep,
    *,
    schedule: Schedule,
    first_step: int,
    outputs: Outputs,
    save: Callable[[int], None],
    interruption: Interruption,
) -> int:
    """Trains until the schedule's last step or a signal; returns the step."""
    step = first_step
    while step < schedule.last_step and not interruption.requested:
        num_steps = schedule.next_stop(step) - step
        start_secs = time.monotonic()
        metrics = train_step.run(num_steps)
        secs = time.monotonic() - start_secs
        step += num_steps
        _check_finite(metrics, step)
        outputs.record(
            step=step, num_steps=num_steps, secs=secs, metrics=metrics
        )
        if schedule.samples_at(step):
            outputs.draw_samples(step)
        if step == schedule.final_step:
            outputs.make_film()
        # Last, so that a finished checkpoint stands for a finished run.
        if schedule.checkpoints_at(step):
            save(step)
    if step < schedule.last_step:
        save(step)
    return step


def _find_checkpoint(
    config: Config,
    directory: run_directory.RunDirectory,
    store: LocalStore,
    dataset: ArrayDataset,
    schedule: Schedule,
) -> finder.StoredCheckpoint | None:
    """Finds the checkpoint to go on from, and refuses what it does not fit."""
    found = finder.find_newest(store, config_digest=config.digest())
    if found is None:
        if config.resume == "must":
            raise errors.CheckpointError(
                f"--resume=must, but there is no checkpoint in "
                f"{store.location}. Leave --resume out to start from nothing."
            )
        if directory.config.exists():
            logging.warning(
                "%s holds a run, but no checkpoint of it: it starts again from "
                "step 0, and what was logged and drawn is replaced.",
                directory.root,
            )
        return None
    saved_digest = found.host_state.get("data_digest")
    if saved_digest != dataset.digest():
        raise errors.DataError(
            f"The data has changed since {found.name}: its digest was "
            f"{saved_digest} and is {dataset.digest()}. A run goes on with the "
            "data that it began with: put that back, or choose another "
            "--workdir."
        )
    if found.step > schedule.final_step:
        raise errors.UsageError(
            f"--epochs={config.epochs} is less than what is trained: "
            f"{found.name} is of epoch {schedule.epoch(found.step)}. Choose "
            "as many epochs or more, or another --workdir."
        )
    return found


def _check_finite(metrics: dict[str, float], step: int) -> None:
    """Refuses numbers that no later step can mend.

    With loss scaling, an overflow is an update left out, until the scale of
    that network can fall no further.
    """
    scales = {
        network: metrics.get(f"{network}_loss_scale", loss_scale.MIN_SCALE)
        for network in ("g", "d")
    }
    for name, value in metrics.items():
        # The probabilities are neither network's own.
        scale = scales.get(name.split("_")[0], max(scales.values()))
        if not math.isfinite(value) and scale <= loss_scale.MIN_SCALE:
            raise errors.DivergedError(
                f"{name} is {value} at step {step}: training has diverged. "
                "Nothing was saved since it was last finite; lower "
                "--g_learning_rate and --d_learning_rate in another --workdir."
            )


def _say_batch_arithmetic(
    config: Config, schedule: Schedule, dataset: ArrayDataset, num_replicas: int
) -> None:
    num_examples = len(dataset.labels)
    remainder = num_examples % config.global_batch_size
    logging.info(
        "%s: %s. Global batch %d = %s x %d. %s an epoch%s. %s = %s.",
        config.dataset,
        _count(num_examples, "image"),
        config.global_batch_size,
        _count(num_replicas, "replica"),
        config.global_batch_size // num_replicas,
        _count(schedule.steps_per_epoch, "step"),
        f"; {_count(remainder, 'image')}, others each time, left out of it"
        if remainder
        else "",
        _count(schedule.epochs, "epoch"),
        _count(schedule.final_step, "step"),
    )


def _say_where_it_stands(
    schedule: Schedule, step: int, directory: run_directory.RunDirectory
) -> None:
    epoch = schedule.epoch(step)
    if step >= schedule.final_step:
        headline = f"Finished: {_count(epoch, 'epoch')}, {_count(step, 'step')}"
    elif schedule.max_steps is not None and step >= schedule.max_steps:
        headline = (
            f"At step {step}, epoch {epoch}; --max_steps={schedule.max_steps} "
            "ends it here: raise it or leave it out to go on"
        )
    else:
        headline = (
            f"Stopped at step {step}, epoch {epoch}; the same command goes on"
        )
    logging.info(
        "%s.\n"
        "  samples      %s\n"
        "  metrics      %s\n"
        "  TensorBoard  tensorboard --logdir %s\n"
        "  checkpoints  %s",
        headline,
        directory.samples,
        directory.metrics,
        directory.events,
        directory.checkpoints,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
