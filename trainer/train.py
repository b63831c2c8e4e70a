"""A training run from its first line to its last."""

import contextlib
import time
from collections.abc import Callable

from absl import logging

from trainer import (
    divergence,
    errors,
    keeping,
    messages,
    plans,
    report,
)
from trainer.assembly import datasets, networks, steps, team_start
from trainer.config import Config
from trainer.data import patience
from trainer.heartbeat import Heartbeat
from trainer.interruption import Interruption
from trainer.keeping import Keeper
from trainer.outputs import NoOutputs, Outputs
from trainer.plans import Plan
from trainer.schedule import Schedule
from trainer.team import Vote
from trainer.train_step import TrainStep
from trainer.watchdog import Watchdog


def run(config: Config, heartbeat: Heartbeat) -> int:
    """Trains, or goes on training, what a resolved config describes.

    Args:
      config: resolved.
      heartbeat: is told how far it is.

    Returns:
      the exit code: 0, or 130 or 143 when a signal stopped the run.

    Raises:
      TrainerError: see `trainer.errors`; nothing already saved is lost by it.
        StoppedError if a signal came before there was anything to save.
    """
    with (
        Interruption() as interruption,
        patience.stoppable(lambda: interruption.exit_code),
    ):
        team = team_start.start_team(config, interruption)
        # Entered first, the team ends last: the others wait for the chief.
        with team:
            with contextlib.ExitStack() as stack:
                plan = plans.make_plan(config, team, stack, interruption)
                step = plan.first_step
                if step < plan.schedule.last_step:
                    step = _go_on_in_spite_of_divergence(
                        plan, interruption, heartbeat
                    )
                    _write_report(plan, step)
                heartbeat.note("ending", step)
                logging.info(
                    messages.where_it_stands(
                        schedule=plan.schedule,
                        step=step,
                        directory=plan.directory,
                    )
                )
            if step >= plan.schedule.last_step:
                _check_durability(plan)
        # A signal that came too late to stop anything is no reason to restart.
        return 0 if step >= plan.schedule.last_step else team.exit_code


def _go_on_in_spite_of_divergence(
    plan: Plan, interruption: Interruption, heartbeat: Heartbeat
) -> int:
    """Trains, from an earlier checkpoint again if it diverges."""
    plans.begin(plan)
    while True:
        try:
            return _go_on(plan, interruption, heartbeat)
        except errors.UnsavedError as error:
            # 6 would tell a scheduler to leave for good a run that goes on
            # from what is durable.
            if error.newest_good and plan.team.exit_code:
                error.exit_code = plan.team.exit_code
            raise
        except errors.DivergedError as error:
            plan = plans.roll_back(plan, error)


def _go_on(plan: Plan, interruption: Interruption, heartbeat: Heartbeat) -> int:
    """Trains from the checkpoint that was found, if any; returns the step."""
    config, team = plan.config, plan.team
    # While the chief draws and saves, the others wait for it in one piece.
    patience_secs = config.stall_timeout_secs * (1 if team.is_chief else 3)
    with Watchdog(stall_timeout_secs=patience_secs) as watchdog:
        state = networks.build_state(
            config,
            team.strategy,
            plan.dataset.sample_shape,
            num_classes=datasets.conditional_classes(config, plan.dataset),
            num_rollbacks=plan.num_rollbacks,
        )

        def on_progress() -> None:
            watchdog.beat()
            interruption.check()

        with keeping.open_keeper(plan, state, watchdog, on_progress) as keeper:
            team.take_over_from_chief(state.variables)
            train_step = steps.build_step(
                config,
                team,
                plan.dataset,
                state,
                first_step=plan.first_step,
                num_rollbacks=plan.num_rollbacks,
            )
            keeper.outputs.show_real(datasets.real_images(config, plan.dataset))
            return _train(
                train_step,
                schedule=plan.schedule,
                first_step=plan.first_step,
                outputs=keeper.outputs,
                save=keeper.save,
                check_saves=keeper.check_saves,
                evaluate=lambda step: _evaluate(
                    step, plan, keeper, on_progress
                ),
                next_vote=lambda: _vote(plan, interruption),
                watchdog=watchdog,
                heartbeat=heartbeat,
            )


def _vote(plan: Plan, interruption: Interruption) -> Vote:
    """Asks all workers, unless the run is no longer theirs."""
    if plan.mirror and (reason := plan.mirror.lost):
        raise errors.StorageError(
            f"{reason} One run directory serves one run at a time: end one of "
            "the two."
        )
    return plan.team.vote(
        exit_code=interruption.exit_code,
        wants_save=interruption.take_save_request(),
    )


def _evaluate(
    step: int,
    plan: Plan,
    keeper: Keeper,
    on_progress: Callable[[], None],
) -> None:
    """Has the chief measure the samples, while the others wait.

    Raises:
      CollapsedError: on all of them, if the run is to go back.
    """
    problem = None
    quality = keeper.quality
    if quality and (result := quality.evaluate(step, on_progress=on_progress)):
        evaluation, problem = result
        keeper.outputs.record_evaluation(step, evaluation)
    if problem:
        logging.warning("Step %d: the samples collapse: %s.", step, problem)
    rolls_back = problem is not None and plan.config.on_collapse == "rollback"
    if plan.team.from_chief(int(rolls_back)):
        raise errors.CollapsedError(
            f"The samples have collapsed at step {step}"
        )


def _write_report(plan: Plan, step: int) -> None:
    """Has the chief write the page of the run as it ends."""
    if not plan.team.is_chief:
        return
    is_finished = step >= plan.schedule.last_step
    # After a signal, the seconds that are left belong to the uploads.
    if is_finished or (not plan.mirror and report.is_quick(plan.directory)):
        report.write_at_end(plan.directory, plan.store)


def _check_durability(plan: Plan) -> None:
    """Refuses to call a run done whose weights may go with this machine."""
    if plan.mirror and not plan.mirror.holds_newest:
        raise errors.StorageError(
            f"{plan.mirror.durability()} Do not delete that disk before."
        )


def _train(
    train_step: TrainStep,
    *,
    schedule: Schedule,
    first_step: int,
    outputs: Outputs | NoOutputs,
    save: Callable[[int, bool], None],
    check_saves: Callable[[int], None],
    evaluate: Callable[[int], None],
    next_vote: Callable[[], Vote],
    watchdog: Watchdog,
    heartbeat: Heartbeat,
) -> int:
    """Trains until the schedule's last step or a signal; returns the step."""
    step = first_step
    while step < schedule.last_step:
        # Before the vote, at which the others would hear of an error.
        check_saves(step)
        if (vote := next_vote()).stops:
            break
        num_steps = schedule.next_stop(step) - step
        start_secs = time.monotonic()
        metrics = train_step.run(num_steps)
        secs = time.monotonic() - start_secs
        step += num_steps
        divergence.check_metrics(metrics, step)
        outputs.record(
            step=step, num_steps=num_steps, secs=secs, metrics=metrics
        )
        if schedule.samples_at(step):
            watchdog.beat()
            heartbeat.note("sampling", step)
            outputs.draw_samples(step)
        if schedule.evaluates_at(step):
            watchdog.beat()
            evaluate(step)
        if step == schedule.final_step:
            outputs.make_film()
        # Last, so that a finished checkpoint stands for a finished run.
        if schedule.checkpoints_at(step) or vote.saves:
            watchdog.beat()
            heartbeat.note("saving", step)
            save(step, step >= schedule.last_step)
        watchdog.beat()
        heartbeat.note("training", step)
    if step < schedule.last_step:
        heartbeat.note("saving", step)
        save(step, True)
    return step
