"""A training run from its first line to its last."""

import math
import secrets
import time
from collections.abc import Callable

import tensorflow as tf
from absl import logging

from trainer import (
    checkpoint,
    data,
    distribution,
    errors,
    losses,
    models,
    run_directory,
    samples,
)
from trainer.config import Config
from trainer.data import pipeline
from trainer.data.array_dataset import ArrayDataset
from trainer.interruption import Interruption
from trainer.outputs import Outputs
from trainer.schedule import Schedule
from trainer.storage import finder
from trainer.storage.local import LocalStore
from trainer.train_state import TrainState
from trainer.train_step import TrainStep


def run(config: Config) -> int:
    """Trains, or goes on training, what a resolved config describes.

    Returns:
      the exit code: 0, or 130 or 143 when a signal stopped the run.

    Raises:
      TrainerError: see `trainer.errors`; nothing already saved is lost by it.
    """
    attempt = secrets.token_hex(8)
    with Interruption() as interruption:
        strategy = _start_devices(config)
        dataset = data.load(config.dataset, data_dir=config.data_dir)
        schedule = _make_schedule(config, strategy, dataset)

        directory = run_directory.check(config)
        store = LocalStore(directory.checkpoints)
        found = _find_checkpoint(config, store, dataset, schedule)
        first_step = found.step if found else 0
        if first_step >= schedule.last_step:
            _say_where_it_stands(schedule, first_step, directory)
            return 0

        state = _build_state(config, strategy)
        checkpointer = checkpoint.Checkpointer(
            objects=state.as_checkpoint(),
            store=store,
            keep_checkpoints=config.keep_checkpoints,
            config_digest=config.digest(),
            attempt=attempt,
        )
        if found:
            checkpointer.restore(found)
            logging.info(
                "Going on after step %d, from %s.", first_step, found.directory
            )
        run_directory.prepare(config, attempt)
        train_step = _build_step(config, strategy, dataset, state, first_step)
        outputs = _open_outputs(config, directory, schedule, state, first_step)

        def save(step: int) -> None:
            outputs.flush()
            checkpointer.save(
                step,
                {
                    "epoch": schedule.epoch(step),
                    "images_seen": step * config.global_batch_size,
                    "data_digest": dataset.digest(),
                    "num_replicas": strategy.num_replicas_in_sync,
                },
            )

        with outputs:
            outputs.show_real(dataset.samples[: config.num_samples])
            step = _train(
                train_step,
                schedule=schedule,
                first_step=first_step,
                outputs=outputs,
                save=save,
                interruption=interruption,
            )
        _say_where_it_stands(schedule, step, directory)
        return interruption.exit_code if interruption.requested else 0


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
    if interruption.requested:
        save(step)
    return step


def _start_devices(config: Config) -> tf.distribute.Strategy:
    distribution.prepare_devices(
        num_logical_cpus=config.num_logical_cpus,
        deterministic=config.deterministic,
    )
    strategy = distribution.make_strategy(
        config.strategy, num_logical_cpus=config.num_logical_cpus
    )
    logging.info("Training on %s.", distribution.describe(strategy))
    return strategy


def _make_schedule(
    config: Config, strategy: tf.distribute.Strategy, dataset: ArrayDataset
) -> Schedule:
    """Works out, checks and logs the batch arithmetic."""
    num_replicas = strategy.num_replicas_in_sync
    distribution.check_batch_size(
        config.global_batch_size,
        num_replicas=num_replicas,
        num_parts=config.gradient_accumulation_steps,
    )
    num_examples = len(dataset.labels)
    schedule = Schedule(
        steps_per_epoch=pipeline.steps_per_epoch(
            num_examples, config.global_batch_size
        ),
        epochs=config.epochs,
        max_steps=config.max_steps,
        steps_per_loop=config.steps_per_loop,
        log_every_steps=config.log_every_steps,
        sample_every_epochs=config.sample_every_epochs,
        checkpoint_every_epochs=config.checkpoint_every_epochs,
    )
    logging.info(
        "%s: %d images. Global batch %d = %d replicas x %d. %d steps an epoch; "
        "%d images, others each time, sit an epoch out. %d epochs = %d steps.",
        config.dataset,
        num_examples,
        config.global_batch_size,
        num_replicas,
        config.global_batch_size // num_replicas,
        schedule.steps_per_epoch,
        num_examples % config.global_batch_size,
        schedule.epochs,
        schedule.final_step,
    )
    return schedule


def _find_checkpoint(
    config: Config,
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


def _build_state(
    config: Config, strategy: tf.distribute.Strategy
) -> TrainState:
    model = models.get(config.model)
    with strategy.scope():
        return TrainState(
            build_generator=lambda: model.build_generator(
                latent_dim=config.latent_dim,
                sync_batch_norm=config.sync_batch_norm,
            ),
            build_discriminator=model.build_discriminator,
            g_learning_rate=config.g_learning_rate,
            d_learning_rate=config.d_learning_rate,
            seed=config.seed,
            precision=config.precision,
        )


def _build_step(
    config: Config,
    strategy: tf.distribute.Strategy,
    dataset: ArrayDataset,
    state: TrainState,
    first_step: int,
) -> TrainStep:
    batches = strategy.distribute_datasets_from_function(
        lambda _: pipeline.training_batches(
            dataset,
            global_batch_size=config.global_batch_size,
            num_replicas=strategy.num_replicas_in_sync,
            first_step=first_step,
            seed=config.seed,
        )
    )
    return TrainStep(
        state,
        strategy=strategy,
        batches=batches,
        loss=losses.non_saturating,
        latent_dim=config.latent_dim,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        num_accumulation_steps=config.gradient_accumulation_steps,
        jit_compile=distribution.should_jit(
            config.jit_compile, sync_batch_norm=config.sync_batch_norm
        ),
    )


def _open_outputs(
    config: Config,
    directory: run_directory.RunDirectory,
    schedule: Schedule,
    state: TrainState,
    first_step: int,
) -> Outputs:
    return Outputs(
        directory=directory,
        schedule=schedule,
        sampler=samples.Sampler(
            state.generator,
            latent_dim=config.latent_dim,
            num_samples=config.num_samples,
            seed=config.seed,
        ),
        global_batch_size=config.global_batch_size,
        first_step=first_step,
    )


def _check_finite(metrics: dict[str, float], step: int) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise errors.DivergedError(
                f"{name} is {value} at step {step}: training has diverged. "
                "Nothing was saved since it was last finite; lower "
                "--g_learning_rate and --d_learning_rate in another --workdir."
            )


def _say_where_it_stands(
    schedule: Schedule, step: int, directory: run_directory.RunDirectory
) -> None:
    epoch = schedule.epoch(step)
    if step >= schedule.final_step:
        headline = f"Finished: {epoch} epochs, {step} steps"
    elif step == schedule.max_steps:
        headline = f"Stopped by --max_steps at step {step}, epoch {epoch}"
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
