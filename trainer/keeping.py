"""What is kept of a run as it trains: its checkpoints, files, measurements.

The chief keeps all of it. The other workers keep nothing, and only see to it
that their copies of the state may be saved.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from trainer import preflight
from trainer.assembly import datasets, results
from trainer.background import BackgroundSaver
from trainer.checkpoint import Checkpointer
from trainer.finiteness import FiniteCheck
from trainer.outputs import NoOutputs, Outputs
from trainer.plans import Plan
from trainer.quality import Quality
from trainer.train_state import TrainState
from trainer.watchdog import Watchdog


class Keeper:
    """Keeps nothing, as workers do that are not the chief.

    Attributes:
      outputs: takes the metrics and draws the pictures.
      quality: measures the samples, if that is wanted.
    """

    def __init__(self, state: TrainState) -> None:
        self.outputs: Outputs | NoOutputs = NoOutputs()
        self.quality: Quality | None = None
        self._finite_check = FiniteCheck(state.as_checkpoint())

    def save(self, step: int, is_last: bool) -> None:
        """Saves the state after a step; waits, if nothing comes after it.

        Raises:
          DivergedError: a variable holds a number that is not finite.
        """
        del is_last
        # The chief refuses to save such a state, and all go back then.
        self._finite_check.check(step)

    def check_saves(self, step: int) -> None:
        """Ends the run, once its state is saved, for a defect of a save."""


class ChiefKeeper(Keeper):
    """Keeps all there is."""

    def __init__(
        self,
        plan: Plan,
        *,
        outputs: Outputs,
        saver: BackgroundSaver,
        quality: Quality | None,
    ) -> None:
        self.outputs = self._outputs = outputs
        self.quality = quality
        self._plan = plan
        self._saver = saver

    def save(self, step: int, is_last: bool) -> None:
        start_secs = time.monotonic()
        # First, so that a checkpoint never knows more than the files.
        self._outputs.flush()
        # Then it is known what has been saved, and so what the best is.
        self._saver.finish()
        before_secs = time.monotonic() - start_secs
        save = self._saver.save_last if is_last else self._saver.save
        save(step, self._plan.host_state(step) | self._best(step))
        self._outputs.note_save(secs=before_secs + self._saver.standstill_secs)

    def check_saves(self, step: int) -> None:
        if self._saver.has_defect:
            try:
                self.save(step, is_last=True)
            finally:
                self._saver.check()

    def _best(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of the best one so far."""
        if self.quality:
            return self.quality.host_state(step)
        found = self._plan.found.host_state if self._plan.found else {}
        return {k: v for k, v in found.items() if k == "best_evaluation"}


@contextlib.contextmanager
def open_keeper(
    plan: Plan,
    state: TrainState,
    watchdog: Watchdog,
    on_progress: Callable[[], None],
) -> Iterator[Keeper]:
    """Restores the state and opens the run's files, if this is the chief.

    Args:
      plan: of the run.
      state: is restored from the checkpoint that was found.
      watchdog: lets saves take longer than steps.
      on_progress: see `trainer.evaluation.evaluator`.
    """
    if not plan.team.is_chief:
        yield Keeper(state)
        return
    config, schedule, mirror = plan.config, plan.schedule, plan.mirror
    checkpointer = _restore(plan, state)
    with (
        results.open_outputs(
            config,
            plan.directory,
            schedule,
            state,
            plan.first_step,
            num_classes=datasets.conditional_classes(config, plan.dataset),
        ) as outputs,
        BackgroundSaver(
            checkpointer,
            on_saved=mirror.checkpoint_saved if mirror else None,
            on_wait=watchdog.excuse,
        ) as saver,
    ):
        if plan.is_first_try:  # After a rollback, the disk is known.
            preflight.probe(
                plan.store,
                keep_checkpoints=config.keep_checkpoints,
                keep_for_ever=schedule.num_kept_for_ever(plan.first_step),
                checkpoint_bytes=state.num_bytes,
                attempt=plan.attempt,
                # One in flight and one that waits.
                num_in_transit=2 if mirror else 0,
            )
        quality: Quality | None = None
        if plan.real is not None:
            quality = results.make_quality(
                config,
                plan.dataset,
                plan.real,
                state,
                host_state=plan.found.host_state if plan.found else {},
                is_saved=checkpointer.has_saved,
                on_progress=on_progress,
            )
        outputs.count_failures_with(
            lambda: {
                "failed_saves": saver.num_failed,
                "failed_uploads": mirror.num_failed if mirror else 0,
            }
        )
        outputs.note_start(
            attempt=plan.attempt, num_rollbacks=plan.num_rollbacks
        )
        yield ChiefKeeper(plan, outputs=outputs, saver=saver, quality=quality)


def _restore(plan: Plan, state: TrainState) -> Checkpointer:
    """Returns what saves the state, which is that of the found checkpoint."""
    checkpointer = Checkpointer(
        objects=state.as_checkpoint(),
        store=plan.store,
        keep_checkpoints=plan.config.keep_checkpoints,
        keep_every_steps=plan.schedule.keep_every_steps,
        scheduled_every_steps=plan.schedule.checkpoint_every_steps,
        config_digest=plan.config.digest(),
        attempt=plan.attempt,
    )
    if plan.found:
        checkpointer.restore(plan.found)
        logging.info(
            "Going on after step %d: %s.", plan.found.step, plan.found.directory
        )
    return checkpointer
