"""A place that cannot keep checkpoints is known before the first step."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import logging

from trainer import errors, preflight
from trainer.storage import files, finder, manifest
from trainer.storage.local import LocalStore

MEGABYTE = 10**6


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


class Limited(LocalStore):
    """A store on a disk with so much room, or with none that is known."""

    def __init__(self, root, free_bytes):
        super().__init__(root)
        self._free_bytes = free_bytes

    def free_bytes(self):
        return self._free_bytes


def probe(store, *, keep=3, size=MEGABYTE):
    preflight.probe(
        store, keep_checkpoints=keep, checkpoint_bytes=size, attempt="a1"
    )


def put(store, step):
    """Commits the least that a reader takes for a checkpoint."""
    staging = store.stage(manifest.checkpoint_name(step), attempt="a0")
    (staging / "state.index").write_bytes(b"index")
    (staging / "host_state.json").write_bytes(b"{}")
    record = files.describe(
        staging, step=step, attempt="a0", config_digest="c0ffee"
    )
    store.commit(staging, record)


def test_a_good_place_passes_and_is_left_as_it_was(root):
    store = LocalStore(root)
    num_files = len(os.listdir("/proc/self/fd"))
    probe(store)
    assert os.listdir(root) == []
    put(store, 350)
    probe(store)
    assert os.listdir(root) == ["step-000000350"]
    assert len(os.listdir("/proc/self/fd")) == num_files


def test_a_checkpoint_is_really_saved_and_deleted(root, monkeypatch):
    calls = []
    for name in ("stage", "commit", "problems", "fetch", "delete", "discard"):
        method = getattr(LocalStore, name)
        monkeypatch.setattr(
            LocalStore,
            name,
            lambda self, *args, _name=name, _method=method, **options: (
                calls.append((self.location, _name)),
                _method(self, *args, **options),
            )[1],
        )
    probe(LocalStore(root))
    place = str(root / "step-000000000.tmp-scratch-a1")
    assert calls == [
        (str(root), "stage"),
        (place, "stage"),
        (place, "commit"),
        (place, "problems"),
        (place, "fetch"),
        (place, "delete"),
        (str(root), "discard"),
    ]


@pytest.mark.parametrize(
    ("owner", "function"),
    [(os, "rename"), (os, "fsync"), (os, "mkdir"), (files, "measure")],
)
def test_what_the_disk_refuses_ends_the_run_before_it_begins(
    root, monkeypatch, owner, function
):
    root.mkdir()
    store = LocalStore(root)
    num_files = len(os.listdir("/proc/self/fd"))

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, refuse)
        if function == "mkdir":
            patch.setattr(pathlib.Path, "mkdir", refuse)
        with pytest.raises(errors.StorageError, match="not permitted") as info:
            probe(store)
    assert info.value.exit_code == 6
    assert str(root) in str(info.value)
    assert os.listdir(root) == []
    assert len(os.listdir("/proc/self/fd")) == num_files


def test_a_disk_that_does_not_delete_is_refused(root, monkeypatch):
    rmtree = shutil.rmtree

    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(1, "Operation not permitted")
        rmtree(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(errors.StorageError, match="Cannot delete"):
        probe(LocalStore(root))
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr(LocalStore, "delete", lambda self, name: None)
    with pytest.raises(errors.StorageError, match="still there"):
        probe(LocalStore(root))


def test_a_disk_that_gives_back_something_else_is_refused(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "problems", lambda *_: ["crc32c differs"])
        with pytest.raises(errors.StorageError, match="crc32c differs"):
            probe(LocalStore(root))

    def fetch(self, record):
        (root / "other").mkdir()
        (root / "other" / "state.index").write_bytes(b"something else")
        return root / "other"

    monkeypatch.setattr(LocalStore, "fetch", fetch)
    with pytest.raises(errors.StorageError, match="something else"):
        probe(LocalStore(root))


@pytest.mark.parametrize(
    ("steps", "needed"),
    [
        ([], 4),
        ([10], 3),
        ([10, 20, 30], 1),
        # More than are kept give no more room, and one is always written.
        ([10, 20, 30, 40, 50], 1),
    ],
)
def test_the_room_for_those_to_come_is_needed(root, steps, needed):
    for step in steps:
        put(LocalStore(root), step)
    probe(Limited(root, needed * MEGABYTE))
    with pytest.raises(errors.StorageError) as caught:
        probe(Limited(root, needed * MEGABYTE - 1))
    message = str(caught.value)
    assert caught.value.exit_code == 6
    assert f"needs {needed}.0 MB" in message
    assert f"{min(len(steps), 3)} of them there already" in message
    assert "--keep_checkpoints=3" in message
    assert "--workdir" in message
    assert str(root) in message
    assert sorted(os.listdir(root)) == [f"step-{n:09d}" for n in steps]


def test_an_uncommitted_checkpoint_is_not_counted(root):
    put(LocalStore(root), 10)
    (root / "step-000000020").mkdir()
    with pytest.raises(errors.StorageError, match="1 of them there"):
        probe(Limited(root, 0))


def test_a_place_without_a_known_limit_passes(root):
    probe(Limited(root, None), size=10**30)


def test_the_room_is_that_of_the_file_system(root, monkeypatch):
    root.mkdir()
    store = LocalStore(root)
    usage = shutil.disk_usage(root)
    assert 0 < store.free_bytes() <= usage.total
    with pytest.raises(errors.StorageError, match="MB free"):
        probe(store, size=usage.total)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type(usage)(0, 0, 0))
    assert store.free_bytes() is None
    shutil.rmtree(root)
    monkeypatch.undo()
    with pytest.raises(errors.StorageError, match="No such file"):
        store.free_bytes()


CRASH = """
import os, pathlib, sys
from trainer import preflight
from trainer.storage.local import LocalStore
point, index = sys.argv[2], int(sys.argv[3])
original = getattr(os, point)
def crash(*args, **options):
    global index
    index -= 1
    if index == 0:
        os._exit(9)
    return original(*args, **options)
setattr(os, point, crash)
preflight.probe(
    LocalStore(pathlib.Path(sys.argv[1])),
    keep_checkpoints=1, checkpoint_bytes=1, attempt="dead")
"""


@pytest.mark.parametrize(
    ("point", "index"),
    [
        *(("fsync", index) for index in (1, 3, 5, 7)),
        *(("rename", index) for index in (1, 2)),
        ("unlink", 1),
    ],
)
def test_a_process_that_dies_in_it_leaves_nothing_that_counts(
    root, point, index
):
    store = LocalStore(root)
    put(store, 350)
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(root), point, str(index)],
        cwd=pathlib.Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 9
    assert len(os.listdir(root)) == 2, "it must have died in the middle"
    assert store.list_names() == ["step-000000350"]
    found = finder.find_newest(store, config_digest="c0ffee")
    assert found.step == 350
    probe(store)
    assert os.listdir(root) == ["step-000000350"]


def test_those_that_stay_for_ever_are_reckoned_with(root, monkeypatch):
    lines = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: lines.append(text % args)
    )
    # Three to keep, one being written, and ten that nobody deletes.
    for free, warns in ((14, False), (13, True)):
        preflight.probe(
            Limited(root, free * MEGABYTE),
            keep_checkpoints=3,
            checkpoint_bytes=MEGABYTE,
            attempt="a1",
            keep_for_ever=10,
        )
        assert bool(lines) == warns
    assert "keeps 10 more checkpoints for ever" in lines[0]


def test_what_is_on_its_way_to_a_bucket_needs_room_too(root):
    options = {
        "keep_checkpoints": 3,
        "checkpoint_bytes": MEGABYTE,
        "attempt": "a1",
        "num_in_transit": 2,
    }
    preflight.probe(Limited(root, 6 * MEGABYTE), **options)
    with pytest.raises(errors.StorageError, match="2 on their way"):
        preflight.probe(Limited(root, 6 * MEGABYTE - 1), **options)
