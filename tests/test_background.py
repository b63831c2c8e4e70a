"""Training goes on while its state becomes durable, and hears of failures."""

import contextlib
import pathlib
import resource
import threading
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from trainer import background, checkpoint, errors
from trainer.background import BackgroundSaver
from trainer.checkpoint import Checkpointer, PendingCheckpoint
from trainer.storage import finder
from trainer.storage.local import LocalStore

TIMEOUT_SECS = 60


class FakeCheckpointer:
    """Notes what is done, and fails or takes its time on demand."""

    newest_good = "step-000000007"

    def __init__(self):
        self.done = []
        self.take_error = None
        self.publish_error = None
        self.is_saved = False
        self.may_publish = threading.Event()
        self.may_publish.set()

    def take(self, step, host_state):
        self.done.append(("take", step))
        if self.take_error:
            raise self.take_error
        if self.is_saved:
            return None
        return PendingCheckpoint(
            step=step,
            snapshot=None,
            host_state=b"{}",
            replaces_bad=False,
            best=None,
        )

    def publish(self, pending):
        assert threading.current_thread() is not threading.main_thread()
        assert self.may_publish.wait(TIMEOUT_SECS)
        self.done.append(("publish", pending.step))
        if self.publish_error:
            raise self.publish_error


@pytest.fixture
def fake():
    return FakeCheckpointer()


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: lines.append(text % args)
    )
    return lines


def full():
    return errors.StorageError("The disk is full.")


def test_training_goes_on_while_a_save_is_published(fake):
    fake.may_publish.clear()
    with BackgroundSaver(fake) as saver:
        saver.save(1, {})
        assert fake.done == [("take", 1)]
        fake.may_publish.set()
        saver.wait()
        assert fake.done == [("take", 1), ("publish", 1)]
        saver.wait()
    assert saver.num_failed == 0


def test_the_end_waits_for_the_last_save(fake):
    fake.may_publish.clear()
    timer = threading.Timer(0.2, fake.may_publish.set)
    with BackgroundSaver(fake) as saver:
        saver.save(1, {})
        timer.start()
    assert fake.done == [("take", 1), ("publish", 1)]


def test_one_save_waits_for_the_one_before(fake):
    fake.may_publish.clear()
    with BackgroundSaver(fake) as saver:
        saver.save(1, {})
        threading.Timer(0.5, fake.may_publish.set).start()
        saver.save(2, {})
        assert fake.done[:3] == [("take", 1), ("publish", 1), ("take", 2)]
        assert saver.standstill_secs > 0.05


class SlowStore(LocalStore):
    """A disk that commits nothing until it may."""

    def __init__(self, root):
        super().__init__(root)
        self.may_commit = threading.Event()

    def commit(self, staging, record):
        assert self.may_commit.wait(TIMEOUT_SECS)
        super().commit(staging, record)


def test_a_snapshot_holds_nothing_that_comes_later(tmp_path):
    store = SlowStore(tmp_path)
    value = tf.Variable(np.arange(10_000, dtype=np.float32))
    checkpointer = checkpoint.Checkpointer(
        objects=tf.train.Checkpoint(value=value),
        store=store,
        keep_checkpoints=1,
        config_digest="c0ffee",
        attempt="a1",
    )
    host_state = {"epoch": 1}
    with BackgroundSaver(checkpointer) as saver:
        saver.save(1, host_state)
        value.assign(tf.zeros_like(value))
        host_state["epoch"] = 2
        assert store.list_names() == []
        store.may_commit.set()
    found = finder.find_newest(store, config_digest="c0ffee")
    assert found.host_state == {"epoch": 1}
    checkpointer.restore(found)
    np.testing.assert_array_equal(value, np.arange(10_000))


@pytest.mark.parametrize("phase", ["take", "publish"])
def test_a_failed_save_is_told_and_training_goes_on(fake, warnings, phase):
    with BackgroundSaver(fake) as saver:
        # Never three in a row.
        for step in (1, 2, 4, 5):
            setattr(fake, f"{phase}_error", full())
            saver.save(step, {})
            with pytest.raises(errors.StorageError, match="disk is full"):
                saver.wait()
            if step % 3 == 2:
                setattr(fake, f"{phase}_error", None)
                saver.save(step + 1, {})
                saver.wait()
    assert saver.num_failed == 4
    assert fake.done[-1] == ("publish", 6)
    assert [line.split(" in a row")[0] for line in warnings] == [
        "The state of step 1 is not saved (failure 1",
        "The state of step 2 is not saved (failure 2",
        "The state of step 4 is not saved (failure 1",
        "The state of step 5 is not saved (failure 2",
    ]
    assert all("The disk is full." in line for line in warnings)


def test_the_third_failure_in_a_row_to_take_it_ends_the_run(fake):
    fake.take_error = full()
    with pytest.raises(errors.StorageError) as caught:
        with BackgroundSaver(fake) as saver:
            for step in (1, 2, 3, 4):
                saver.save(step, {})
    assert fake.done == [("take", 1), ("take", 2), ("take", 3)]
    assert step == 3
    assert caught.value.exit_code == 6
    assert "failures in a row: 3" in str(caught.value)
    assert "The disk is full." in str(caught.value)
    assert "step-000000007" in str(caught.value)


def test_the_save_after_three_failures_to_publish_ends_the_run(fake):
    fake.publish_error = full()
    fake.newest_good = None
    with pytest.raises(errors.StorageError, match="Nothing of this run is"):
        with BackgroundSaver(fake) as saver:
            for step in (1, 2, 3):
                saver.save(step, {})
            assert ("publish", 2) in fake.done
            saver.save(4, {})
    assert ("take", 4) not in fake.done
    assert saver.num_failed == 3


@pytest.mark.parametrize("phase", ["take", "publish"])
def test_the_end_tells_that_the_last_save_failed(fake, phase):
    setattr(fake, f"{phase}_error", full())
    with pytest.raises(errors.StorageError, match="step-000000007"):
        with BackgroundSaver(fake) as saver:
            saver.save(1, {})


def test_what_is_saved_already_is_no_failure(fake):
    fake.take_error = full()
    with BackgroundSaver(fake) as saver:
        saver.save(1, {})
        fake.take_error = None
        fake.is_saved = True
        saver.save(2, {})
        saver.wait()
    assert fake.done == [("take", 1), ("take", 2)]


def test_a_state_that_may_not_be_saved_is_raised_at_once(fake):
    fake.take_error = errors.DivergedError("kernel holds NaN")
    with BackgroundSaver(fake) as saver:
        with pytest.raises(errors.DivergedError, match="kernel"):
            saver.save(1, {})
        assert saver.num_failed == 0
        assert saver.standstill_secs > 0


@pytest.fixture
def told(monkeypatch):
    """Tells of logged errors in which thread, and whether with a traceback."""
    threads = []
    monkeypatch.setattr(
        logging,
        "error",
        lambda text, step, *, exc_info: threads.append(
            threading.current_thread()
        ),
    )
    return threads


def until(is_true):
    deadline = time.monotonic() + TIMEOUT_SECS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("call", ["check", "wait"])
def test_a_defect_is_told_at_once_and_raised_once(fake, told, call):
    fake.publish_error = ZeroDivisionError("ours")
    with BackgroundSaver(fake) as saver:
        saver.save(1, {})
        until(lambda: told)
        assert told[0] is not threading.main_thread()
        until(lambda: saver.has_defect)
        with pytest.raises(ZeroDivisionError, match="ours"):
            getattr(saver, call)()
        saver.check()
        saver.wait()
    assert saver.num_failed == 0


def test_a_check_waits_for_nothing(fake):
    fake.may_publish.clear()
    with BackgroundSaver(fake) as saver:
        saver.save(1, {})
        saver.check()
        assert fake.done == [("take", 1)]
        fake.may_publish.set()


@pytest.mark.parametrize("save", ["save", "save_last"])
def test_a_defect_costs_no_later_save(fake, told, save):
    fake.publish_error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError, match="ours"):
        with BackgroundSaver(fake) as saver:
            saver.save(1, {})
            until(lambda: saver.has_defect)
            fake.publish_error = None
            getattr(saver, save)(2, {})
    assert fake.done[2:] == [("take", 2), ("publish", 2)]
    assert len(told) == 1


@pytest.mark.parametrize(
    ("phase", "error"),
    [("take", full()), ("publish", full()), ("publish", MemoryError())],
)
def test_the_last_save_is_tried_once_more(
    fake, told, monkeypatch, phase, error
):
    pauses = []

    def mend(secs):
        pauses.append(secs)
        setattr(fake, f"{phase}_error", None)

    monkeypatch.setattr(background.time, "sleep", mend)
    setattr(fake, f"{phase}_error", error)
    with BackgroundSaver(fake) as saver:
        with (
            pytest.raises(MemoryError)
            if isinstance(error, MemoryError)
            else contextlib.nullcontext()
        ):
            saver.save_last(1, {})
        assert fake.done[-2:] == [("take", 1), ("publish", 1)]
    assert len(pauses) == 1


def test_the_last_save_is_tried_after_any_number_of_failures(fake, monkeypatch):
    monkeypatch.setattr(background, "_PAUSE_SECS", 0)
    fake.publish_error = full()
    with BackgroundSaver(fake) as saver:
        for step in (1, 2, 3):
            saver.save(step, {})
        with pytest.raises(errors.UnsavedError, match="step 4 .* row: 5"):
            saver.save_last(4, {})
        fake.publish_error = None
        saver.save_last(4, {})


def test_a_failed_save_keeps_no_state_in_memory(fake):
    states = []

    def publish(pending):
        states.append(weakref.ref(pending))
        try:
            raise OSError("full")
        except OSError as error:
            raise full() from error

    fake.publish = publish
    with BackgroundSaver(fake) as saver:
        saver.save(1, {})
        with pytest.raises(errors.StorageError):
            saver.wait()
        assert states[0]() is None
        fake.publish_error = None
        del fake.publish
        saver.save(2, {})


@pytest.mark.parametrize("save", ["save", "save_last"])
def test_whoever_watches_hears_of_a_slow_save(fake, monkeypatch, save):
    monkeypatch.setattr(background, "_SECS_BETWEEN_BEATS", 0.01)
    beats = []

    def beat():
        beats.append(1)
        if len(beats) == 3:
            fake.may_publish.set()

    fake.may_publish.clear()
    with BackgroundSaver(fake, on_wait=beat) as saver:
        getattr(saver, save)(1, {})
    assert len(beats) >= 3


def test_a_save_that_hangs_is_not_excused_for_ever(fake, monkeypatch):
    monkeypatch.setattr(background, "_SECS_BETWEEN_BEATS", 0.01)
    monkeypatch.setattr(background, "_MAX_WAIT_SECS", 0)
    beats = []
    fake.may_publish.clear()
    threading.Timer(0.1, fake.may_publish.set).start()
    with BackgroundSaver(fake, on_wait=lambda: beats.append(1)) as saver:
        saver.save(1, {})
    assert beats == []


@pytest.mark.parametrize("error", [full(), ZeroDivisionError("ours")])
def test_another_error_is_not_hidden_and_hides_nothing(
    fake, error, told, warnings
):
    fake.publish_error = error
    with pytest.raises(KeyError, match="diverged"):
        with BackgroundSaver(fake) as saver:
            saver.save(1, {})
            raise KeyError("diverged")
    assert fake.done == [("take", 1), ("publish", 1)]
    # Either of the two has told it.
    assert len(told) + len(warnings) == 1


@pytest.mark.parametrize("error", [None, full(), KeyError("ours")])
def test_no_thread_is_left(fake, error):
    before = set(threading.enumerate())
    fake.publish_error = error
    try:
        with BackgroundSaver(fake) as saver:
            saver.save(1, {})
            assert set(threading.enumerate()) != before
    except type(error or full()) as raised:
        assert str(error)[:5] in str(raised)
    assert set(threading.enumerate()) <= before


@pytest.mark.slow
def test_a_thousand_saves_leave_nothing_behind(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "checkpoints"
    variable = tf.Variable(tf.zeros([50_000]))
    process = pathlib.Path("/proc/self")

    def resident_bytes() -> int:
        pages = int((process / "statm").read_text().split()[1])
        return pages * resource.getpagesize()

    checkpointer = Checkpointer(
        objects=tf.train.Checkpoint(variable=variable),
        store=LocalStore(root),
        keep_checkpoints=3,
        config_digest="c0ffee",
        attempt="a1",
    )
    with BackgroundSaver(checkpointer) as saver:
        for step in range(1, 1101):
            variable.assign_add(tf.ones([50_000]))
            saver.save(step, {"step": step})
            if step == 100:
                saver.wait()
                before_bytes = resident_bytes()
                num_files = len(list((process / "fd").iterdir()))
                num_threads = threading.active_count()
        saver.wait()
        assert len(list((process / "fd").iterdir())) <= num_files
        assert threading.active_count() <= num_threads
        # One state kept a save would be 200 MB by now.
        assert resident_bytes() - before_bytes < 20e6
    assert sorted(p.name for p in root.iterdir()) == [
        "step-000001098",
        "step-000001099",
        "step-000001100",
    ]
