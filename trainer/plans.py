"""What a run will do, settled before anything is built or written."""

import contextlib
import dataclasses
import secrets
from pathlib import Path
from typing import Any

from absl import logging

from trainer import (
    bad_files,
    distribution,
    errors,
    messages,
    run_directory,
)
from trainer.assembly import datasets, mirroring, results, steps
from trainer.config import Config
from trainer.data.dataset import Dataset, num_classes
from trainer.data.quarantine import told_at_the_end
from trainer.interruption import Interruption
from trainer.schedule import Schedule
from trainer.storage import finder
from trainer.storage.local import LocalStore
from trainer.storage.mirror import Mirror
from trainer.team import Team
from trainer.watchdog import Watchdog


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is settled before anything is built or written.

    Attributes:
      real: what the chief compares samples with, if it is to measure them.
      mirror: what keeps the chief's run in its bucket, if that is where it is.
      attempt: a name of this start of the run, new each time.
      found: the checkpoint to go on from; only the chief looks for it.
      first_step: the step of that; every worker knows it.
      num_rollbacks: how often the run has diverged and gone back so far.
      is_first_try: whether this start has not gone back itself yet.
    """

    config: Config
    team: Team
    directory: run_directory.RunDirectory
    dataset: Dataset
    data_digest: str
    real: Dataset | None
    schedule: Schedule
    store: LocalStore
    mirror: Mirror | None
    attempt: str
    found: finder.StoredCheckpoint | None
    first_step: int
    num_rollbacks: int
    is_first_try: bool = True

    def host_state(self, step: int) -> dict[str, Any]:
        """What a checkpoint of a step holds beside the variables."""
        return {
            "epoch": self.schedule.epoch(step),
            "images_seen": step * self.config.images_per_step,
            "data_digest": self.data_digest,
            "num_replicas": self.team.strategy.num_replicas_in_sync,
            "num_rollbacks": self.num_rollbacks,
            # What the networks are built for, where the data are not.
            "sample_shape": list(self.dataset.sample_shape),
            "num_classes": num_classes(self.dataset),
            # For whoever looks at the run.
            "steps_per_epoch": self.schedule.steps_per_epoch,
            "num_images": len(self.dataset.labels),
            "num_bad_images": self.dataset.quarantine.num_bad,
            "class_names": list(self.dataset.class_names),
        }


def make_plan(
    config: Config,
    team: Team,
    stack: contextlib.ExitStack,
    interruption: Interruption,
) -> Plan:
    """Looks at devices, data and the run directory, and changes nothing.

    A run in a bucket is brought here, and kept there until the stack is left.

    Raises:
      TrainerError: something does not fit.
    """
    _check_devices(config, team)
    directory = run_directory.RunDirectory(Path(config.local_root))
    if team.is_chief and not config.bucket:
        run_directory.check(config)  # That of a run in a bucket has to come.
    team.share(0)  # Or the others would learn of an error after their loading.
    dataset = datasets.load_data(config)
    stack.enter_context(told_at_the_end(dataset.quarantine))
    data_digest = dataset.digest()  # Reads all of the data: once is enough.
    team.check_same_data(data_digest)
    schedule = steps.make_schedule(config, team.strategy, dataset)
    logging.info(
        messages.batch_arithmetic(
            dataset=config.dataset,
            num_examples=len(dataset.labels),
            global_batch_size=config.global_batch_size,
            batches_per_step=config.num_discriminator_steps,
            num_replicas=team.strategy.num_replicas_in_sync,
            schedule=schedule,
        )
    )
    store = LocalStore(directory.checkpoints)
    attempt = secrets.token_hex(8)
    real = mirror = found = None
    if team.is_chief:
        if config.evaluate_every_epochs:
            real = results.load_real(config, dataset)
        # Before a bucket's run is brought there: it may be somebody else's.
        stack.enter_context(run_directory.claim(directory.root))
        if config.bucket:
            mirror = stack.enter_context(
                mirroring.open_mirror(
                    config, directory, store, schedule, attempt, interruption
                )
            )
        stack.enter_context(bad_files.listed(directory, dataset.quarantine))
        found = _find_checkpoint(
            config, directory, store, data_digest, schedule
        )
    return Plan(
        config=config,
        team=team,
        directory=directory,
        dataset=dataset,
        data_digest=data_digest,
        real=real,
        schedule=schedule,
        store=store,
        mirror=mirror,
        attempt=attempt,
        found=found,
        first_step=team.from_chief(found.step if found else 0),
        num_rollbacks=team.from_chief(_num_rollbacks(found)),
    )


def begin(plan: Plan) -> None:
    """Writes the first of a start that goes on training, if this is the chief.

    Raises:
      TrainerError: the directory cannot be used.
    """
    if plan.team.is_chief:
        run_directory.record_start(
            plan.config,
            plan.attempt,
            devices=distribution.describe(plan.team.strategy),
        )


def _check_devices(config: Config, team: Team) -> None:
    logging.info("Training on %s.", distribution.describe(team.strategy))
    with Watchdog(stall_timeout_secs=config.stall_timeout_secs) as watchdog:
        watchdog.beat()  # There is nothing yet that takes long to compile.
        distribution.check_all_reduce(team.strategy)


def roll_back(plan: Plan, error: errors.DivergedError) -> Plan:
    """Goes back to an earlier checkpoint, with other draws from there on.

    To the newest that the schedule asked for (one that a signal has made would
    lead elsewhere than a run that nobody disturbed), or from collapsed samples
    to the best; those after that one are deleted, for they are no longer of
    this run. Every worker comes here: they all see the same numbers, or were
    told by the chief.

    Raises:
      DivergedError: this was tried too often.
    """
    config, team = plan.config, plan.team
    if plan.num_rollbacks >= config.max_rollbacks:
        raise errors.DivergedError(
            f"{error}: training has diverged, after {plan.num_rollbacks} "
            f"rollbacks of --max_rollbacks={config.max_rollbacks}. What was "
            "saved is from before. Lower --g_learning_rate and "
            "--d_learning_rate in another --workdir."
        ) from error
    found = None
    if team.is_chief:
        found = finder.find_newest(
            plan.store,
            config_digest=config.digest(),
            every_steps=plan.schedule.checkpoint_every_steps,
        )
        if isinstance(error, errors.CollapsedError) and found and found.best:
            found = _go_back_to_best(plan.store, found, config.digest())
    first_step = team.from_chief(found.step if found else 0)
    num_rollbacks = plan.num_rollbacks + 1
    logging.warning(
        "%s: training has diverged. Going back to step %d, with other random "
        "draws and %g times the learning rates from there on (rollback %d of "
        "%d).",
        error,
        first_step,
        config.rollback_learning_rate_factor**num_rollbacks,
        num_rollbacks,
        config.max_rollbacks,
    )
    return dataclasses.replace(
        plan,
        # --resume spoke of the start of the command.
        config=dataclasses.replace(config, resume="auto"),
        found=found,
        first_step=first_step,
        num_rollbacks=num_rollbacks,
        is_first_try=False,
    )


def _go_back_to_best(
    store: LocalStore, newest: finder.StoredCheckpoint, config_digest: str
) -> finder.StoredCheckpoint:
    """Deletes what is newer than the best checkpoint, and returns that."""
    try:
        best = finder.find_step(
            store,
            newest.host_state["best_evaluation"]["step"],
            config_digest=config_digest,
        )
    except errors.CheckpointError as problem:
        logging.warning("Going on from %s instead: %s", newest.name, problem)
        return newest
    # The newest first: after a kill, it goes on from one that is left.
    for name in finder.newest_first(store):
        if name == best.name:
            break
        store.delete(name)
    return best


def _num_rollbacks(found: finder.StoredCheckpoint | None) -> int:
    # Checkpoints of older versions do not know.
    return found.host_state.get("num_rollbacks", 0) if found else 0


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
