"""What may go goes, and nothing else, whatever the store does."""

import errno

import pytest
import tensorflow as tf
from absl import logging

from trainer import errors
from trainer.retention import Retention
from trainer.storage.manifest import (
    BadCheckpointError,
    FileRecord,
    Manifest,
    checkpoint_name,
    step_of,
)

FULL = errors.StorageError("The disk is full.")
FULL.__cause__ = OSError(errno.ENOSPC, "No space left on device")


class FakeStore:
    """Checkpoints that are nothing but steps; counts what is read."""

    location = "memory"

    def __init__(self, steps, *, bad=()):
        self.steps = list(steps)
        self.bad = set(bad)
        self.undeletable = set()
        self.unreachable = False
        self.free = 0
        self.read = []

    def free_bytes(self):
        return self.free

    def list_names(self):
        if self.unreachable:
            raise errors.StorageError("no network")
        return [checkpoint_name(step) for step in self.steps]

    def read_manifest(self, name):
        self.read.append(step_of(name))
        if step_of(name) not in self.steps:
            raise BadCheckpointError("missing")
        if step_of(name) in self.bad:
            raise BadCheckpointError("flipped")
        files = [
            FileRecord(name=file, size=1, crc32c="0" * 8)
            for file in ("state.index", "host_state.json")
        ]
        return Manifest(
            step=step_of(name),
            attempt="a1",
            config_digest="c0ffee",
            files=tuple(files),
        )

    def problems(self, manifest):
        return []

    def delete(self, name):
        if step_of(name) in self.undeletable:
            raise errors.StorageError("not permitted")
        self.steps.remove(step_of(name))


def retention(store, *, keep=2, every=None, scheduled=1):
    return Retention(
        store,
        keep_checkpoints=keep,
        keep_every_steps=every,
        scheduled_every_steps=scheduled,
        config_digest="c0ffee",
    )


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: lines.append(text % args)
    )
    return lines


def saved(keeper, store, step):
    """Does what a save does at its end."""
    if step not in store.steps:
        store.steps.append(step)
    keeper.verify(checkpoint_name(step))
    keeper.prune(checkpoint_name(step))


@pytest.mark.parametrize(
    ("keep", "every", "expected"),
    [
        (1, None, [60]),
        (3, None, [40, 50, 60]),
        (9, None, [10, 20, 30, 40, 50, 60]),
        (1, 20, [20, 40, 60]),
        # Those kept for ever count as newest ones too.
        (2, 30, [30, 50, 60]),
        (2, 1, [10, 20, 30, 40, 50, 60]),
        (2, 7, [50, 60]),
    ],
)
def test_the_newest_and_every_so_manieth_stay(keep, every, expected, warnings):
    store = FakeStore([])
    keeper = retention(store, keep=keep, every=every)
    for step in (10, 20, 30, 40, 50, 60):
        saved(keeper, store, step)
    assert store.steps == expected
    assert warnings == []


def test_of_those_that_the_schedule_makes_the_newest_stays():
    store = FakeStore([])
    keeper = retention(store, keep=1, scheduled=20)
    for step, expected in (
        (20, [20]),
        (23, [20, 23]),
        (27, [20, 27]),
        (40, [40]),
        (41, [40, 41]),
        (43, [40, 43]),
    ):
        saved(keeper, store, step)
        assert store.steps == expected
    # A bad one is none to go back to.
    store = FakeStore([20, 40, 43], bad={40})
    saved(retention(store, keep=1, scheduled=20), store, 44)
    assert store.steps == [20, 40, 44]


def test_a_bad_one_is_no_reason_to_delete_a_good_one():
    store = FakeStore([10, 20, 30], bad={20, 30})
    keeper = retention(store)
    saved(keeper, store, 40)
    assert store.steps == [10, 20, 30, 40]
    saved(keeper, store, 50)
    assert store.steps == [40, 50]


def test_the_best_stays_until_there_is_a_better_one():
    store = FakeStore([10, 20, 30])
    keeper = retention(store, keep=1)
    keeper.protect_best(checkpoint_name(10))
    saved(keeper, store, 40)
    assert store.steps == [10, 40]
    assert not keeper.make_room_after(FULL)
    keeper.protect_best(checkpoint_name(40))
    saved(keeper, store, 50)
    assert store.steps == [40, 50]


def test_the_best_stays_until_the_better_one_is_there_and_good():
    store = FakeStore([])
    keeper = retention(store)
    for step in (10, 20, 30):
        keeper.protect_best(checkpoint_name(10))
        saved(keeper, store, step)
    # The save of 40, the new best, fails; later ones know of it all the same.
    for step in (50, 60):
        keeper.protect_best(checkpoint_name(40))
        saved(keeper, store, step)
    assert store.steps == [10, 50, 60]
    # It comes late, and damaged: still no reason to delete the old one.
    store.steps.insert(1, 40)
    store.bad = {40}
    keeper.protect_best(checkpoint_name(40))
    saved(keeper, store, 70)
    assert store.steps == [10, 40, 60, 70]
    store.bad = set()
    keeper.protect_best(checkpoint_name(40))
    saved(keeper, store, 80)
    assert store.steps == [40, 70, 80]


def test_a_best_one_that_cannot_be_looked_at_replaces_none(monkeypatch):
    store = FakeStore([10, 20, 30])
    keeper = retention(store, keep=1)
    keeper.protect_best(checkpoint_name(10))
    with monkeypatch.context() as patch:

        def refuse(name):
            raise errors.StorageError("no network")

        patch.setattr(store, "read_manifest", refuse)
        keeper.protect_best(checkpoint_name(20))
    saved(keeper, store, 40)
    assert store.steps == [10, 20, 40]


def test_what_was_saved_stays_even_if_it_is_not_the_newest():
    store = FakeStore([80, 90])
    saved(retention(store), store, 10)
    assert store.steps == [80, 90, 10]


def test_each_checkpoint_is_read_once():
    store = FakeStore([10, 20])
    keeper = retention(store)
    for step in (30, 40, 50):
        saved(keeper, store, step)
    assert store.read == [30, 20, 40, 50]
    keeper = retention(store)
    keeper.trust(checkpoint_name(50))
    saved(keeper, store, 60)
    assert store.read[-1] == 60


def test_what_cannot_be_deleted_is_tried_again(warnings):
    store = FakeStore([10, 20])
    store.undeletable = {10}
    keeper = retention(store, keep=1)
    saved(keeper, store, 30)
    assert store.steps == [10, 30]
    (line,) = warnings
    assert "step-000000010 is not deleted: not permitted" in line
    store.undeletable = set()
    saved(keeper, store, 40)
    assert store.steps == [40]


def test_a_store_that_cannot_be_listed_stops_nobody(warnings):
    store = FakeStore([10, 20])
    keeper = retention(store)
    store.unreachable = True
    keeper.prune(checkpoint_name(20))
    assert not keeper.make_room_after(FULL)
    assert len(warnings) == 2
    assert all("no network" in line for line in warnings)


@pytest.mark.parametrize(
    ("steps", "bad", "every", "deleted"),
    [
        ([10, 20, 30], set(), None, 10),
        ([10, 20, 30], set(), 10, None),
        ([10, 20, 30], set(), 15, 10),
        ([20, 30, 40], set(), 20, 30),
        # The newest good one never goes, nor what is newer than it.
        ([10], set(), None, None),
        ([10, 20], {20}, None, None),
        ([10, 20, 30], {30}, None, 10),
        ([10, 20, 30], {10, 30}, None, 10),
        ([10, 20], {10, 20}, None, None),
        ([], set(), None, None),
    ],
)
def test_the_oldest_that_may_go_makes_room(
    steps, bad, every, deleted, warnings
):
    store = FakeStore(steps, bad=bad)
    assert retention(store, keep=9, every=every).make_room_after(FULL) == (
        deleted is not None
    )
    assert store.steps == [step for step in steps if step != deleted]
    assert len(warnings) == (deleted is not None)


@pytest.mark.parametrize(
    ("cause", "is_full"),
    [
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EDQUOT, ""), True),
        (tf.errors.ResourceExhaustedError(None, None, ""), True),
        (OSError(errno.EIO, ""), False),
        (tf.errors.DataLossError(None, None, ""), False),
        (None, False),
    ],
)
def test_only_a_full_disk_costs_a_checkpoint(cause, is_full):
    direct = errors.StorageError("Cannot write.")
    direct.__cause__ = cause
    indirect = errors.StorageError("Cannot save.")
    indirect.__cause__ = direct
    for error in (direct, indirect):
        store = FakeStore([10, 20])
        assert retention(store).make_room_after(error) == is_full
        assert store.steps == ([20] if is_full else [10, 20])


def test_a_full_disk_elsewhere_costs_no_checkpoint():
    # Such as that of the staging directories, for a bucket.
    store = FakeStore([10, 20])
    store.free = None
    assert not retention(store).make_room_after(FULL)
    assert store.steps == [10, 20]


def test_room_that_cannot_be_made_is_logged(warnings):
    store = FakeStore([10, 20])
    store.undeletable = {10}
    assert not retention(store).make_room_after(FULL)
    assert len(warnings) == 1
    assert store.steps == [10, 20]


def test_the_newest_trusted_is_the_highest_step_that_still_exists():
    store = FakeStore([])
    keeper = retention(store)
    assert keeper.newest_trusted is None
    # As text, the first of them would be the greater one.
    for step in (999_999_999, 1_000_000_000):
        saved(keeper, store, step)
    assert keeper.newest_trusted == "step-1000000000"
    keeper.delete("step-1000000000")
    assert keeper.newest_trusted == "step-999999999"
    assert not keeper.trusts("step-1000000000")


@pytest.mark.parametrize(("keep", "every"), [(0, None), (-1, None), (1, 0)])
def test_impossible_settings_are_refused(keep, every):
    with pytest.raises(ValueError, match="must be at least 1"):
        retention(FakeStore([]), keep=keep, every=every)
