"""A training run from its first line to its last."""

import contextlib
import dataclasses
import math
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from trainer import (
    assembly,
    checkpoint,
    data,
    distribution,
    errors,
    loss_scale,
    messages,
    run_directory,
)
from trainer.config import Config
from trainer.data.array_dataset import ArrayDataset
from trainer.interruption import Interruption
from trainer.outputs import NoOutputs, Outputs
from trainer.schedule import Schedule
from trainer.storage import finder
from trainer.storage.local import LocalStore
from trainer.team import Team
from trainer.train_state import TrainState
from trainer.train_step import TrainStep
from trainer.watchdog import Watchdog


def run(config: Config) -> int:
    """Trains, or goes on training, what a resolved config describes.

    Returns:
      the exit code: 0, or 130 or 143 when a signal stopped the run.

    Raises:
      TrainerError: see `trainer.errors`; nothing already saved is lost by it.
    """
    with Interruption() as interruption:
        team = assembly.start_team(config, interruption)
        if team is None:
            logging.warning("Stopped while waiting for the other workers.")
            return interruption.exit_code
        with team:
            plan = _make_plan(config, team)
            step = plan.first_step
            if step < plan.schedule.last_step:
                step = _go_on(plan, interruption)
            logging.info(
                messages.where_it_stands(
                    schedule=plan.schedule, step=step, directory=plan.directory
                )
            )
        # A signal that came too late to stop anything is no reason to restart.
        return 0 if step >= plan.schedule.last_step else team.exit_code


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is settled before anything is built or written.

    Attributes:
      found: the checkpoint to go on from; only the chief looks for it.
      first_step: the step of that; every worker knows it.
    """

    config: Config
    team: Team
    directory: run_directory.RunDirectory
    dataset: ArrayDataset
    data_digest: str
    schedule: Schedule
    store: LocalStore
    found: finder.StoredCheckpoint | None
    first_step: int


def _make_plan(config: Config, team: Team) -> _Plan:
    """Looks at devices, data and the run directory, and changes nothing."""
    logging.info("Training on %s.", distribution.describe(team.strategy))
    distribution.check_all_reduce(team.strategy)
    directory = run_directory.RunDirectory(Path(str(config.workdir)))
    if team.is_chief:
        run_directory.check(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    data_digest = dataset.digest()  # Reads all of the data: once is enough.
    team.check_same_data(data_digest)
    schedule = assembly.make_schedule(config, team.strategy, dataset)
    logging.info(
        messages.batch_arithmetic(
            dataset=config.dataset,
            num_examples=len(dataset.labels),
            global_batch_size=config.global_batch_size,
            num_replicas=team.strategy.num_replicas_in_sync,
            schedule=schedule,
        )
    )
    store = LocalStore(directory.checkpoints)
    found = None
    if team.is_chief:
        found = _find_checkpoint(
            config, directory, store, data_digest, schedule
        )
    return _Plan(
        config=config,
        team=team,
        directory=directory,
        dataset=dataset,
        data_digest=data_digest,
        schedule=schedule,
        store=store,
        found=found,
        first_step=team.from_chief(found.step if found else 0),
    )


def _go_on(plan: _Plan, interruption: Interruption) -> int:
    """Trains from the checkpoint that was found, if any; returns the step."""
    config, team = plan.config, plan.team
    state = assembly.build_state(config, team.strategy)
    with (
        _keep_files(plan, state) as (outputs, save),
        Watchdog(stall_timeout_secs=config.stall_timeout_secs) as watchdog,
    ):
        team.take_over_from_chief(state.variables)
        train_step = assembly.build_step(
            config, team, plan.dataset, state, plan.first_step
        )
        outputs.show_real(plan.dataset.samples[: config.num_samples])
        return _train(
            train_step,
            schedule=plan.schedule,
            first_step=plan.first_step,
            outputs=outputs,
            save=save,
            wants_to_stop=lambda: team.wants_to_stop(interruption.exit_code),
            watchdog=watchdog,
        )


@contextlib.contextmanager
def _keep_files(
    plan: _Plan, state: TrainState
) -> Iterator[tuple[Outputs | NoOutputs, Callable[[int], None]]]:
    """Restores the state and opens the run's files, if this is the chief.

    Yields:
      what takes the metrics and draws the pictures, and what saves the state
      after a step.
    """
    if not plan.team.is_chief:
        yield NoOutputs(), lambda step: None
        return
    config, schedule = plan.config, plan.schedule
    attempt = secrets.token_hex(8)
    checkpointer = checkpoint.Checkpointer(
        objects=state.as_checkpoint(),
        store=plan.store,
        keep_checkpoints=config.keep_checkpoints,
        config_digest=config.digest(),
        attempt=attempt,
    )
    if plan.found:
        checkpointer.restore(plan.found)
        logging.info(
            "Going on after step %d: %s.", plan.found.step, plan.found.directory
        )

    def save(step: int) -> None:
        # First, so that a checkpoint never knows more than the files.
        outputs.flush()
        host_state = {
            "epoch": schedule.epoch(step),
            "images_seen": step * config.global_batch_size,
            "data_digest": plan.data_digest,
            "num_replicas": plan.team.strategy.num_replicas_in_sync,
        }
        checkpointer.save(step, host_state)

    with (
        run_directory.claim(config, attempt),
        assembly.open_outputs(
            config, plan.directory, schedule, state, plan.first_step
        ) as outputs,
    ):
        yield outputs, save


def _train(
    train_step: TrainStep,
    *,
    schedule: Schedule,
    first_step: int,
    outputs: Outputs | NoOutputs,
    save: Callable[[int], None],
    wants_to_stop: Callable[[], bool],
    watchdog: Watchdog,
) -> int:
    """Trains until the schedule's last step or a signal; returns the step."""
    step = first_step
    while step < schedule.last_step and not wants_to_stop():
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
            watchdog.beat()
            outputs.draw_samples(step)
        if step == schedule.final_step:
            outputs.make_film()
        # Last, so that a finished checkpoint stands for a finished run.
        if schedule.checkpoints_at(step):
            watchdog.beat()
            save(step)
        watchdog.beat()
    if step < schedule.last_step:
        save(step)
    return step


def _find_checkpoint(
    config: Config,
    directory: run_directory.RunDirectory,
    store: LocalStore,
    data_digest: str,
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
    if saved_digest != data_digest:
        raise errors.DataError(
            f"The data has changed since {found.name}: its digest was "
            f"{saved_digest} and is {data_digest}. A run goes on with the "
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
