"""The plan of a run against its definition, for many small plans."""

import itertools

import pytest

from trainer.schedule import Schedule

_NAMES = (
    "steps_per_epoch",
    "epochs",
    "max_steps",
    "steps_per_loop",
    "log_every_steps",
    "sample_every_epochs",
    "checkpoint_every_epochs",
)
_VALUES = (
    (1, 2, 3, 7),
    (1, 2, 5),
    (None, 1, 4, 6, 100),
    (1, 2, 3, 100),
    (1, 2, 5, 100),
    (1, 2, 3),
    (1, 2, 3),
)


@pytest.fixture(scope="module")
def schedules():
    return [
        Schedule(**dict(zip(_NAMES, values, strict=True)))
        for values in itertools.product(*_VALUES)
    ]


def test_the_run_ends_after_its_epochs_or_at_max_steps(schedules):
    for s in schedules:
        assert s.final_step == s.steps_per_epoch * s.epochs
        limit = s.final_step if s.max_steps is None else s.max_steps
        assert s.last_step == min(s.final_step, limit)


def test_epochs_count_from_one_and_end_with_their_last_step(schedules):
    for s in schedules:
        numbers = [s.epoch(step) for step in range(1, s.final_step + 1)]
        assert numbers == [
            epoch
            for epoch in range(1, s.epochs + 1)
            for _ in range(s.steps_per_epoch)
        ]
        assert s.epoch(0) == 0


def test_what_is_due_is_what_the_cadences_say(schedules):
    for s in schedules:
        ends = {
            epoch * s.steps_per_epoch: epoch for epoch in range(1, s.epochs + 1)
        }
        for step in range(1, s.last_step + 1):
            epoch = ends.get(step)
            assert s.logs_at(step) == (
                step in range(0, 1000, s.log_every_steps) or epoch is not None
            )
            assert s.samples_at(step) == (
                epoch == s.epochs
                or epoch in range(0, 1000, s.sample_every_epochs)
            )
            assert s.checkpoints_at(step) == (
                step == s.last_step
                or epoch in range(0, 1000, s.checkpoint_every_epochs)
            )


def test_no_stop_is_jumped_over_from_wherever_a_run_starts(schedules):
    for s in schedules:
        due = [
            step
            for step in range(1, s.last_step + 1)
            if step == s.last_step
            or step % s.steps_per_epoch == 0
            or s.logs_at(step)
            or s.samples_at(step)
            or s.checkpoints_at(step)
        ]
        for step in range(s.last_step):
            stop = s.next_stop(step)
            assert step < stop <= step + s.steps_per_loop
            next_due = min(d for d in due if d > step)
            # Never beyond, and not before without need.
            assert stop == min(next_due, step + s.steps_per_loop)


def test_those_to_come_that_stay_for_ever_are_counted() -> None:
    plan = Schedule(
        steps_per_epoch=7,
        epochs=20,
        max_steps=None,
        steps_per_loop=1,
        log_every_steps=1,
        sample_every_epochs=1,
        checkpoint_every_epochs=5,
        keep_every_epochs=5,
    )
    counts = [plan.num_kept_for_ever(step) for step in (0, 34, 35, 139)]
    assert counts == [4, 4, 3, 1]
    assert plan.checkpoint_every_steps == 35
