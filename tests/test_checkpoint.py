"""A saved state comes back to the bit, or is refused by name and reason."""

import errno
import json
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from trainer import checkpoint, errors, snapshot
from trainer.storage import files, finder, manifest
from trainer.storage.local import LocalStore

FILES = [
    "MANIFEST.json",
    "host_state.json",
    "state.data-00000-of-00001",
    "state.index",
]

(CPU,) = tf.config.list_physical_devices("CPU")
if not tf.config.get_logical_device_configuration(CPU):
    tf.config.set_logical_device_configuration(
        CPU, [tf.config.LogicalDeviceConfiguration()] * 4
    )


def build(replicas, *, units=4):
    """A network with slots and moving statistics, and an int64 step."""
    devices = [f"CPU:{index}" for index in range(replicas)]
    with tf.distribute.MirroredStrategy(devices).scope():
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(units),
                keras.layers.BatchNormalization(),
            ]
        )
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        step = tf.Variable(
            0,
            dtype=tf.int64,
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
    return tf.train.Checkpoint(model=model, optimizer=optimizer, step=step)


def variables(objects):
    return [*objects.model.variables, *objects.optimizer.variables]


def randomise(objects, seed):
    random = np.random.default_rng(seed)
    for variable in variables(objects):
        value = random.normal(size=variable.shape)
        variable.assign(value.astype(variable.dtype))
    objects.step.assign(2**40 + seed)


def values(objects):
    return [variable.numpy() for variable in variables(objects)] + [
        objects.step.numpy()
    ]


def small(seed=0.0):
    """The least that can be saved, for what does not look at the values."""
    return tf.train.Checkpoint(value=tf.Variable([seed, 1.0]))


def checkpointer(root, objects, *, keep=5, store=None, **changes):
    options = {"config_digest": "c0ffee", "attempt": "a1", **changes}
    return checkpoint.Checkpointer(
        objects=objects,
        store=LocalStore(root) if store is None else store,
        keep_checkpoints=keep,
        **options,
    )


def save_steps(root, steps, **options):
    objects = small()
    saver = checkpointer(root, objects, **options)
    for step in steps:
        objects.value.assign([float(step), 1.0])
        saver.save(step, {"epoch": step})


def restored_step(root, **options):
    """The step that a new process would restore, checked by its value."""
    objects = small()
    found = restore_newest(
        root, checkpointer(root, objects, **options), **options
    )
    assert objects.value.numpy()[0] == found.step
    return found.step


def restore_newest(root, saver, *, config_digest="c0ffee", **_):
    """Does what a new process does before it trains."""
    found = finder.find_newest(LocalStore(root), config_digest=config_digest)
    if found is not None:
        saver.restore(found)
    return found


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: lines.append(text % args)
    )
    return lines


@pytest.mark.parametrize(
    ("saved_on", "restored_on"), [(1, 1), (2, 2), (2, 1), (1, 4), (4, 2)]
)
def test_the_state_comes_back_to_the_bit(root, saved_on, restored_on):
    objects = build(saved_on)
    randomise(objects, seed=7)
    host_state = {"epoch": 3, "best": 0.1 + 0.2, "names": ["a", None]}
    checkpointer(root, objects).save(350, host_state)
    assert sorted(os.listdir(root / "step-000000350")) == FILES
    assert os.listdir(root) == ["step-000000350"]

    other = build(restored_on)
    found = restore_newest(root, checkpointer(root, other, attempt="a2"))
    assert (found.step, found.name) == (350, "step-000000350")
    assert found.host_state == host_state
    for expected, value in zip(values(objects), values(other), strict=True):
        assert expected.dtype == value.dtype
        np.testing.assert_array_equal(expected, value)
    if restored_on > 1:
        copies = other.model.variables[0].value.values
        assert len(copies) == restored_on
        for copy in copies:
            np.testing.assert_array_equal(copy.numpy(), values(objects)[0])


def test_no_checkpoint_at_all_is_none(root):
    objects = small(3.0)
    assert restore_newest(root, checkpointer(root, objects)) is None
    root.mkdir()
    assert restore_newest(root, checkpointer(root, objects)) is None
    assert finder.find_newest(LocalStore(root), config_digest="a") is None
    assert objects.value.numpy()[0] == 3.0
    assert os.listdir(root) == []


def damage(root, newest, name, how):
    path = root / newest / name
    data = path.read_bytes()
    if how == "flipped":
        middle = len(data) // 2
        flipped = bytes([data[middle] ^ 0x80])
        path.write_bytes(data[:middle] + flipped + data[middle + 1 :])
    elif how == "truncated":
        # Two bytes: the manifest's last one is a line break, which may go.
        path.write_bytes(data[:-2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "deleted":
        path.unlink()
    else:
        shutil.copy(root / "step-000000001" / name, path)


DAMAGES = ["flipped", "truncated", "emptied", "deleted", "swapped"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_falls_back_one(root, warnings, name, how):
    save_steps(root, [1, 2, 3])
    damage(root, "step-000000003", name, how)
    assert restored_step(root) == 2
    (line,) = warnings
    assert "step-000000003" in line
    assert name in line
    assert sorted(os.listdir(root)) == [
        "step-000000001",
        "step-000000002",
        "step-000000003",
    ]


def test_none_good_stops_and_deletes_nothing(root):
    save_steps(root, [1, 2, 3])
    for step, name in enumerate(FILES[:3], start=1):
        damage(root, f"step-00000000{step}", name, "deleted")
    before = sorted(root.rglob("*"))
    with pytest.raises(errors.CheckpointError) as caught:
        restore_newest(root, checkpointer(root, small()))
    assert caught.value.exit_code == 4
    for step, name in enumerate(FILES[:3], start=1):
        assert f"step-00000000{step}: {name} is missing" in str(caught.value)
    assert "--workdir" in str(caught.value)
    assert sorted(root.rglob("*")) == before


def test_another_configuration_is_refused_and_not_skipped(root):
    save_steps(root, [1])
    save_steps(root, [2], config_digest="f0e")
    objects = small(9.0)
    with pytest.raises(errors.CheckpointError, match="configuration.*f0e"):
        restore_newest(root, checkpointer(root, objects))
    with pytest.raises(errors.CheckpointError, match="configuration"):
        checkpointer(root, objects).save(2, {})
    assert objects.value.numpy()[0] == 9.0


@pytest.mark.parametrize("units", [5, None])
def test_other_variables_are_named_and_not_half_accepted(root, units):
    checkpointer(root, build(1)).save(1, {})
    other = small() if units is None else build(1, units=units)
    with pytest.raises(errors.CheckpointError, match="does not fit") as caught:
        restore_newest(root, checkpointer(root, other))
    assert "step-000000001" in str(caught.value)


@pytest.mark.parametrize(
    ("saved", "restored"), [("a", "ab"), ("ab", "a"), ("ab", "ac")]
)
def test_missing_or_left_over_variables_are_not_accepted(root, saved, restored):
    def objects(names):
        return tf.train.Checkpoint(**{name: tf.Variable(1.0) for name in names})

    checkpointer(root, objects(saved)).save(1, {})
    with pytest.raises(errors.CheckpointError, match="does not fit"):
        restore_newest(root, checkpointer(root, objects(restored)))


def test_a_file_cut_after_the_verification_is_no_traceback(root):
    save_steps(root, [1])
    saver = checkpointer(root, small())
    found = finder.find_newest(LocalStore(root), config_digest="c0ffee")
    damage(root, found.name, FILES[2], "truncated")
    with pytest.raises(errors.CheckpointError, match="step-000000001"):
        saver.restore(found)


def test_retention_keeps_the_newest_good(root, warnings):
    save_steps(root, [1, 2, 3])
    damage(root, "step-000000002", FILES[2], "flipped")
    save_steps(root, [4, 5], keep=3, attempt="a2")
    # The bad one counts for nothing and stays among those that are kept.
    assert sorted(step_numbers(root)) == [3, 4, 5]
    save_steps(root, [6], keep=1, attempt="a3")
    assert step_numbers(root) == [6]
    assert warnings == []


def step_numbers(root):
    return [manifest.step_of(name) for name in os.listdir(root)]


def test_a_bad_one_does_not_count_as_kept(root):
    save_steps(root, [1, 2])
    damage(root, "step-000000002", FILES[2], "flipped")
    save_steps(root, [3], keep=2, attempt="a2")
    assert sorted(step_numbers(root)) == [1, 2, 3]


def test_what_was_just_saved_is_never_deleted(root):
    save_steps(root, [5, 6])
    save_steps(root, [2, 3], keep=1, attempt="a2")
    # The step before counts as older than the newest, which is 6.
    assert sorted(step_numbers(root)) == [3, 6]


class Unreadable(LocalStore):
    """A disk that gives back something else than what was written."""

    def problems(self, record):
        return ["state.index has crc32c 0, not 1"]


def test_nothing_is_deleted_before_the_newer_one_is_verified(root):
    save_steps(root, [1, 2])
    saver = checkpointer(root, small(), keep=1, store=Unreadable(root))
    with pytest.raises(errors.StorageError, match="does not read back"):
        saver.save(3, {})
    assert sorted(step_numbers(root)) == [1, 2, 3]


def test_a_failing_deletion_does_not_stop_training(root, warnings, monkeypatch):
    save_steps(root, [1, 2])

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        save_steps(root, [3], keep=1, attempt="a2")
    assert len(warnings) == 2
    assert all("not permitted" in line for line in warnings)
    assert LocalStore(root).list_names() == ["step-000000003"]
    save_steps(root, [4], keep=1, attempt="a3")
    assert step_numbers(root) == [4]


def test_a_saved_step_is_not_written_again(root, monkeypatch, warnings):
    objects = small()
    saver = checkpointer(root, objects)
    saver.save(1, {"epoch": 1})
    before = (root / "step-000000001" / FILES[0]).stat()
    saver.save(1, {"epoch": 1})
    assert (root / "step-000000001" / FILES[0]).stat() == before
    # Another attempt neither replaces a good one nor keeps silent about it.
    levels = []

    def log(level, text, *args):
        if text.startswith("Checkpoint"):  # Not TensorFlow's own.
            levels.append(level)

    monkeypatch.setattr(logging, "log", log)
    save_steps(root, [1], attempt="a2")
    resumed = checkpointer(root, objects, attempt="a3")
    restore_newest(root, resumed)
    resumed.save(1, {"epoch": 1})
    assert levels == [logging.WARNING, logging.INFO]
    assert (root / "step-000000001" / FILES[0]).stat() == before


@pytest.mark.parametrize("name", FILES)
def test_a_bad_checkpoint_of_the_same_step_is_replaced(root, warnings, name):
    save_steps(root, [1, 2])
    damage(root, "step-000000002", name, "flipped")
    assert restored_step(root) == 1
    save_steps(root, [2], attempt="a2")
    assert restored_step(root) == 2
    assert sorted(step_numbers(root)) == [1, 2]
    assert name in warnings[-1]


def test_the_variables_may_change_between_take_and_publish(root):
    objects = build(2)
    randomise(objects, seed=7)
    expected = values(objects)
    saver = checkpointer(root, objects)
    pending = saver.take(350, {"epoch": 3})
    assert LocalStore(root).list_names() == []
    randomise(objects, seed=8)
    saver.publish(pending)
    assert saver.newest_good == "step-000000350"
    assert os.listdir(root) == ["step-000000350"]
    restore_newest(root, saver)
    for value, restored in zip(expected, values(objects), strict=True):
        np.testing.assert_array_equal(value, restored)


def test_there_is_nothing_to_publish_for_a_saved_step(root):
    save_steps(root, [1, 2])
    saver = checkpointer(root, small(), attempt="a2")
    assert saver.newest_good is None
    assert saver.take(1, {}) is None
    assert saver.newest_good == "step-000000001"
    restore_newest(root, saver)
    assert saver.newest_good == "step-000000002"


def poison(variable, value, copy=0):
    """Puts one such number into one replica's copy of a Keras variable."""
    target = variable.value.values[copy]
    poisoned = target.numpy()
    poisoned.flat[-1] = value
    target.assign(poisoned)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("model", "kernel"),
        ("model", "moving_variance"),
        ("optimizer", "kernel_velocity"),
    ],
)
def test_what_is_not_finite_is_never_saved(root, owner, name, value):
    objects = build(2)
    saver = checkpointer(root, objects)
    saver.save(1, {})
    (variable,) = (
        v for v in getattr(objects, owner).variables if v.path.endswith(name)
    )
    poison(variable, value)
    with pytest.raises(errors.DivergedError, match="at step 2") as caught:
        saver.save(2, {})
    assert variable.path in str(caught.value)
    assert caught.value.exit_code == 5
    assert os.listdir(root) == ["step-000000001"]
    poison(variable, 0.0)
    saver.save(2, {})
    assert sorted(step_numbers(root)) == [1, 2]


def test_one_poisoned_replica_is_enough(root):
    objects = build(4)
    poison(objects.model.variables[0], np.nan, copy=3)
    with pytest.raises(errors.DivergedError, match="kernel"):
        checkpointer(root, objects).save(1, {})
    assert not root.exists()


def test_the_largest_numbers_and_other_types_are_finite(root):
    objects = tf.train.Checkpoint(
        large=tf.Variable([np.float32(3.4e38), -np.float32(3.4e38)]),
        half=tf.Variable([65504.0], dtype=tf.float16),
        brain=tf.Variable([3e38], dtype=tf.bfloat16),
        empty=tf.Variable(np.zeros([0, 3], np.float32)),
        step=tf.Variable(2**62, dtype=tf.int64),
        flag=tf.Variable(True),
    )
    checkpointer(root, objects).save(1, {})
    objects.brain.assign([np.inf])
    with pytest.raises(errors.DivergedError, match="brain"):
        checkpointer(root, objects).save(2, {})
    no_floats = tf.train.Checkpoint(step=objects.step)
    checkpointer(root, no_floats).save(3, {})
    assert sorted(step_numbers(root)) == [1, 3]


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    tf.errors.ResourceExhaustedError(None, None, "No space left on device"),
]
# With the bundle, with the host state, and with the manifest.
WRITES = [
    (snapshot.Snapshot, "write", 1),
    (pathlib.Path, "write_bytes", 1),
    (pathlib.Path, "write_bytes", 2),
]


def refuse(patch, owner, function, *, error, first, times=1):
    """Lets some calls of a function fail, from the so-manieth on."""
    calls = []
    original = getattr(owner, function)

    def call(*args, **options):
        calls.append(args)
        if first <= len(calls) < first + times:
            raise error
        return original(*args, **options)

    patch.setattr(owner, function, call)


@pytest.mark.parametrize(
    ("owner", "function", "first", "error"),
    [
        *((*write, error) for write in WRITES for error in FULL[:2]),
        (*WRITES[0], FULL[2]),
    ],
)
def test_a_full_disk_costs_the_oldest_checkpoint(
    root, monkeypatch, warnings, owner, function, first, error
):
    save_steps(root, [1, 2, 3])
    with monkeypatch.context() as patch:
        refuse(patch, owner, function, error=error, first=first)
        save_steps(root, [4], attempt="a2")
    assert restored_step(root) == 4
    assert sorted(os.listdir(root)) == [f"step-{n:09d}" for n in (2, 3, 4)]
    (line,) = warnings
    assert "step-000000001 was deleted to make room" in line


@pytest.mark.parametrize(("owner", "function", "first"), WRITES)
def test_a_full_disk_is_tried_once_more_and_not_for_ever(
    root, monkeypatch, owner, function, first
):
    save_steps(root, [1, 2, 3])
    with monkeypatch.context() as patch:
        refuse(patch, owner, function, error=FULL[0], first=first, times=9)
        with pytest.raises(errors.StorageError, match="No space left"):
            save_steps(root, [4], attempt="a2")
    assert sorted(os.listdir(root)) == ["step-000000002", "step-000000003"]
    assert restored_step(root) == 3


@pytest.mark.parametrize(("owner", "function", "first"), WRITES)
def test_no_other_error_costs_a_checkpoint(
    root, monkeypatch, owner, function, first
):
    save_steps(root, [1, 2, 3])
    error = OSError(errno.EIO, "Input/output error")
    with monkeypatch.context() as patch:
        refuse(patch, owner, function, error=error, first=first)
        with pytest.raises(errors.StorageError, match="Input/output"):
            save_steps(root, [4], attempt="a2")
    assert sorted(step_numbers(root)) == [1, 2, 3]


def test_a_disk_that_is_full_after_the_rename_is_named_as_such(
    root, monkeypatch
):
    save_steps(root, [1, 2])
    with monkeypatch.context() as patch:
        refuse(patch, os, "fsync", error=FULL[0], first=6)
        with pytest.raises(errors.StorageError, match="No space left"):
            save_steps(root, [3], attempt="a2")
    assert restored_step(root) == 3
    assert sorted(step_numbers(root)) == [1, 2, 3]


def test_a_disk_that_is_really_full(small_disk, warnings):
    root = small_disk / "checkpoints"
    # A third of the disk each, so that the third one does not fit.
    objects = tf.train.Checkpoint(value=tf.Variable(tf.zeros([85_000])))
    saver = checkpointer(root, objects, keep=5)
    for step in (1, 2, 3, 4):
        objects.value.assign(tf.fill([85_000], float(step)))
        saver.save(step, {})
    assert sorted(os.listdir(root)) == ["step-000000003", "step-000000004"]
    assert len(warnings) == 2
    assert all("to make room" in line for line in warnings)
    # What may not be deleted is not, even if nothing can be saved any more.
    (small_disk / "others").write_bytes(b"x" * 300_000)
    keeper = checkpointer(root, objects, attempt="a2", keep_every_steps=3)
    with pytest.raises(errors.StorageError, match="No space left"):
        keeper.save(5, {})
    assert sorted(os.listdir(root)) == ["step-000000003", "step-000000004"]
    assert restore_newest(root, saver).step == 4
    np.testing.assert_array_equal(objects.value, np.full([85_000], 4.0))


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


POINTS = [
    (pathlib.Path, "mkdir", 1),
    (snapshot.Snapshot, "write", 1),
    (files, "describe", 1),
    *((os, "fsync", index) for index in range(1, 8)),
    (os, "rename", 1),
    (finder, "verify", 1),
    (os, "rename", 2),
    (shutil, "rmtree", 1),
]


@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, "No space left on device")]
)
@pytest.mark.parametrize(("owner", "function", "index"), POINTS)
def test_a_failure_anywhere_in_a_save_loses_nothing(
    root, monkeypatch, owner, function, index, error
):
    save_steps(root, [1])
    left = [index]
    original = getattr(owner, function)

    def fail(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            raise error
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, fail)
        try:
            save_steps(root, [2], keep=1, attempt="a2")
        except (Killed, errors.StorageError) as raised:
            if isinstance(raised, errors.StorageError):
                assert raised.exit_code == 6
                assert "No space left" in str(raised)
                assert str(root) in str(raised)
        except OSError:
            # Only the verification, whose store answers for its errors.
            assert owner is finder
    assert left[0] <= 0
    committed = "step-000000002" in os.listdir(root)
    assert restored_step(root) == 1 + committed
    save_steps(root, [2], keep=1, attempt="a3")
    assert restored_step(root) == 2
    save_steps(root, [3], keep=1, attempt="a4")
    assert os.listdir(root) == ["step-000000003"]


def test_what_tensorflow_cannot_remove_is_no_part_of_a_checkpoint(
    root, monkeypatch
):
    write = snapshot.Snapshot.write

    def write_and_leave(self, prefix):
        write(self, prefix)
        os.mkdir(f"{prefix}_temp")

    monkeypatch.setattr(snapshot.Snapshot, "write", write_and_leave)
    save_steps(root, [1, 2], keep=1)
    record = LocalStore(root).read_manifest("step-000000002")
    assert [file.name for file in record.files] == FILES[1:]
    assert restored_step(root) == 2
    assert os.listdir(root) == ["step-000000002"]


def test_what_tensorflow_cannot_write_is_a_storage_error(root, monkeypatch):
    def refuse(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "disk is full")

    monkeypatch.setattr(snapshot.Snapshot, "write", refuse)
    with pytest.raises(errors.StorageError, match="disk is full"):
        checkpointer(root, small()).save(1, {})
    assert os.listdir(root) == []


def test_an_impossible_directory_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    saver_root = tmp_path / "file" / "checkpoints"
    saver = checkpointer(saver_root, small())
    for action in (
        lambda: saver.save(1, {}),
        lambda: restore_newest(saver_root, saver),
    ):
        with pytest.raises(errors.StorageError) as caught:
            action()
        assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "data", [b"[]", b"{", b"[" * 100_000, b"\xff", b" " * (1 << 20) + b"{}"]
)
def test_a_hostile_host_state_is_a_reason(root, data):
    store = LocalStore(root)
    staging = store.stage("step-000000001", attempt="a1")
    (staging / "state.index").touch()
    (staging / "host_state.json").write_bytes(data)
    record = files.describe(
        staging, step=1, attempt="a1", config_digest="c0ffee"
    )
    store.commit(staging, record)
    with pytest.raises(errors.CheckpointError, match="host_state.json cannot"):
        finder.find_newest(store, config_digest="c0ffee")


def test_a_manifest_without_the_bundle_is_not_good(root):
    store = LocalStore(root)
    staging = store.stage("step-000000001", attempt="a1")
    store.commit(
        staging,
        manifest.Manifest(
            step=1, attempt="a1", config_digest="c0ffee", files=()
        ),
    )
    with pytest.raises(errors.CheckpointError, match="state.index is not in"):
        finder.find_newest(store, config_digest="c0ffee")


@pytest.mark.parametrize(
    "changes",
    [
        {"keep": 0},
        {"keep_every_steps": 0},
        {"attempt": "a/b"},
        {"config_digest": ""},
    ],
)
def test_impossible_settings_are_refused(root, changes):
    with pytest.raises(ValueError, match="must be"):
        checkpointer(root, small(), **changes)


def test_a_host_state_that_cannot_be_read_back_is_not_written(root):
    saver = checkpointer(root, small())
    with pytest.raises(ValueError, match="host state"):
        saver.save(1, {"text": "x" * (1 << 20)})
    with pytest.raises(TypeError):
        saver.save(1, {"value": object()})
    assert not root.exists()


def test_the_files_are_what_other_tools_expect(root):
    """The manifest is plain JSON that a shell can check."""
    save_steps(root, [1])
    record = json.loads((root / "step-000000001" / FILES[0]).read_bytes())
    assert record["schema_version"] == 1
    assert record["step"] == 1
    assert [file["name"] for file in record["files"]] == FILES[1:]
    for file in record["files"]:
        path = root / "step-000000001" / file["name"]
        assert path.stat().st_size == file["size"]
