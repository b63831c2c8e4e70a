"""The local store and the manifest, without TensorFlow."""

import fcntl
import json
import os
import pathlib
import subprocess
import sys

import pytest

from trainer import errors
from trainer.storage import files, manifest
from trainer.storage.local import LocalStore
from trainer.storage.manifest import BadCheckpointError

STEP = 350
NAME = "step-000000350"


def put(store, *, step=STEP, attempt="a1", content=b"weights"):
    """Commits a checkpoint of two files and returns its manifest."""
    name = manifest.checkpoint_name(step)
    staging = store.stage(name, attempt=attempt)
    (staging / "state.index").write_bytes(b"index")
    (staging / "data").write_bytes(content)
    record = files.describe(
        staging, step=step, attempt=attempt, config_digest="c0ffee"
    )
    store.commit(staging, record)
    return record


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def store(root):
    return LocalStore(root)


def test_commit_makes_it_exist_and_nothing_else(store, root):
    assert store.list_names() == []
    assert not root.exists(), "a reader must create nothing"
    record = put(store)
    assert os.listdir(root) == [NAME] == store.list_names()
    assert store.read_manifest(NAME) == record
    assert store.problems(record) == []
    assert sorted(os.listdir(store.fetch(record))) == [
        "MANIFEST.json",
        "data",
        "state.index",
    ]


def test_the_crc_is_the_published_crc32c(tmp_path):
    path = tmp_path / "check"
    path.write_bytes(b"123456789")
    assert files.measure(path).crc32c == "e3069283"
    # More than one chunk, the last one short.
    path.write_bytes(b"x" * (2 * (1 << 20) + 5))
    assert files.measure(path).size == 2 * (1 << 20) + 5


def test_everything_is_on_the_disk_before_the_rename(store, root, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor):
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append(path.name)
        fsync(descriptor)

    def record_rename(*args):
        calls.append("rename")
        rename(*args)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    put(store)
    assert calls == [
        "data",
        "state.index",
        "MANIFEST.json",
        f"{NAME}.tmp-a1",
        "rename",
        "checkpoints",
        root.parent.name,
    ]


def test_a_commit_never_replaces(store):
    put(store, content=b"first")
    with pytest.raises(errors.StorageError, match="another process"):
        put(store, attempt="a2", content=b"second")
    directory = store.fetch(store.read_manifest(NAME))
    assert (directory / "data").read_bytes() == b"first"


def test_leftovers_are_ignored_and_cleaned_when_the_owner_is_dead(store, root):
    put(store)
    names = [f"{NAME}.tmp-dead", f"{NAME}.deleting-12", "mine", "step-1.bak"]
    for name in [*names, f"{NAME}.tmp-alive"]:
        (root / name).mkdir()
        (root / name / "MANIFEST.json").write_bytes(b"{}")
    alive = os.open(root / f"{NAME}.tmp-alive", os.O_RDONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)
    assert store.list_names() == [NAME]
    assert len(os.listdir(root)) == 6, "a reader must clean nothing"
    put(store, step=400)
    kept = {NAME, "step-000000400", "mine", "step-1.bak", f"{NAME}.tmp-alive"}
    assert set(os.listdir(root)) == kept
    os.close(alive)
    put(store, step=450)
    assert f"{NAME}.tmp-alive" not in os.listdir(root)


def test_a_live_writer_keeps_its_staging_directory(store, root):
    staging = store.stage(NAME, attempt="a1")
    put(LocalStore(root), step=400, attempt="a2")
    assert staging.is_dir()
    store.discard(staging)
    assert os.listdir(root) == ["step-000000400"]


@pytest.mark.parametrize("point", ["rename", "rmtree"])
def test_a_crash_while_deleting_leaves_no_broken_checkpoint(
    store, root, monkeypatch, point
):
    record = put(store)

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    owner = os if point == "rename" else __import__("shutil")
    with monkeypatch.context() as patch:
        patch.setattr(owner, point, refuse)
        with pytest.raises(errors.StorageError, match="not permitted"):
            store.delete(NAME)
    if point == "rename":
        assert store.problems(record) == []
    else:
        assert store.list_names() == []
    put(store, step=400)
    assert not [name for name in os.listdir(root) if "deleting" in name]


CRASH = """
import os, pathlib, sys
from trainer.storage import files, local
root, point, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = local.LocalStore(root)
staging = store.stage("step-000000400", attempt="a2")
for name in ("a", "b"):
    (staging / name).write_bytes(b"new")
record = files.describe(
    staging, step=400, attempt="a2", config_digest="c0ffee")
original = getattr(os, point)
def crash(*args, **options):
    global index
    index -= 1
    if index == 0:
        os._exit(9)
    return original(*args, **options)
setattr(os, point, crash)
store.commit(staging, record)
store.delete("step-000000350")
"""


@pytest.mark.parametrize(
    ("point", "index", "expected"),
    [
        *(("fsync", index, ["step-000000350"]) for index in (1, 2, 3, 4)),
        ("rename", 1, ["step-000000350"]),
        ("fsync", 5, ["step-000000350", "step-000000400"]),
        ("rename", 2, ["step-000000350", "step-000000400"]),
        ("fsync", 7, ["step-000000400"]),
        ("unlink", 2, ["step-000000400"]),
    ],
)
def test_a_killed_process_leaves_only_good_checkpoints(
    store, root, point, index, expected
):
    put(store)
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(root), point, str(index)],
        cwd=pathlib.Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 9
    assert sorted(store.list_names()) == expected
    for name in expected:
        assert store.problems(store.read_manifest(name)) == []
    put(store, step=500)
    assert sorted(os.listdir(root)) == [*expected, "step-000000500"]


def test_a_root_under_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    store = LocalStore(tmp_path / "file" / "checkpoints")
    with pytest.raises(errors.StorageError, match="Not a directory") as caught:
        store.stage(NAME, attempt="a1")
    assert caught.value.exit_code == 6
    with pytest.raises(errors.StorageError):
        store.list_names()


@pytest.mark.parametrize("kind", ["symlink", "pipe", "directory"])
def test_only_regular_files_are_read(store, root, kind):
    record = put(store)
    path = root / NAME / "data"
    outside = root.parent / "outside"
    path.rename(outside)
    if kind == "symlink":
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    (problem,) = store.problems(record)
    assert problem.startswith("data ")
    with pytest.raises(ValueError, match="symbolic link|not a regular file"):
        files.measure(path)
    manifest_path = root / NAME / "MANIFEST.json"
    manifest_path.rename(outside)
    manifest_path.symlink_to(outside)
    with pytest.raises(BadCheckpointError, match="symbolic link"):
        store.read_manifest(NAME)


@pytest.mark.parametrize("kind", ["file", "symlink", "empty"])
def test_a_name_that_is_no_checkpoint_is_reported(store, root, kind):
    put(store, step=1)
    if kind == "file":
        (root / NAME).touch()
    elif kind == "symlink":
        (root / NAME).symlink_to(root / "step-000000001")
    else:
        (root / NAME).mkdir()
    assert NAME in store.list_names()
    with pytest.raises(BadCheckpointError):
        store.read_manifest(NAME)
    store.delete(NAME)
    assert store.list_names() == ["step-000000001"]
    assert store.problems(store.read_manifest("step-000000001")) == []


def forge(**changes):
    """A manifest whose digest is right and whose content is hostile."""
    file = {"name": "data", "size": 7, "crc32c": "00000000"}
    body = {
        "schema_version": 1,
        "step": STEP,
        "attempt": "a1",
        "config_digest": "c0ffee",
        "files": [{**file, **changes.pop("file", {})}],
        **changes,
    }
    return json.dumps({**body, "digest": manifest._digest(body)}).encode()


def test_the_forged_manifest_is_otherwise_right():
    assert manifest.parse(forge(), name=NAME).files[0].name == "data"


HOSTILE_NAMES = [
    *("../x", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\0b", "a\n"),
    *("MANIFEST.json", "x" * 300, "a\\b", "ü", 7, None, ["a"]),
]


@pytest.mark.parametrize(
    "data",
    [
        *(forge(file={"name": name}) for name in HOSTILE_NAMES),
        *(
            forge(file={"size": size})
            for size in (-1, 1 << 41, 1.0, "7", True, None, 10**400)
        ),
        *(
            forge(file={"crc32c": crc})
            for crc in ("", "0" * 9, "ABCDEF00", 5, None)
        ),
        *(forge(step=step) for step in (351, -1, True, "350", 1.5, 10**30)),
        forge(attempt="a/b"),
        forge(config_digest=None),
        forge(files={}),
        forge(files=[1]),
        forge(files=[[]]),
        forge(files=[{"name": "a"}]),
        forge(files=json.loads(forge())["files"] * 2),
        forge(files=[{}] * 2000),
        forge(extra=1),
        forge(schema_version=2),
        forge(schema_version=True),
        forge().replace(b"c0ffee", b"c0ffef"),
        forge()[:-5],
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe\x00",
        b"not json",
        b"[" * 200_000,
        b'{"schema_version": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"9" * 10_000,
        b" " * ((1 << 20) + 1),
    ],
)
def test_a_hostile_manifest_is_a_problem_and_no_traceback(data):
    with pytest.raises(BadCheckpointError) as caught:
        manifest.parse(data, name=NAME)
    assert "MANIFEST.json" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_oversized_manifest_is_not_read_whole(store, root):
    put(store)
    with open(root / NAME / "MANIFEST.json", "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadCheckpointError, match="more than"):
        store.read_manifest(NAME)


def test_a_file_of_another_size_is_not_read_at_all(store, root):
    record = put(store)
    os.truncate(root / NAME / "data", 1 << 40)
    assert store.problems(record) == [f"data has {1 << 40} bytes, not 7"]


@pytest.mark.parametrize("name", ["state_temp", "state"])
def test_only_a_temporary_directory_is_no_part_of_a_checkpoint(tmp_path, name):
    (tmp_path / "file_temp").write_bytes(b"123")
    (tmp_path / name).mkdir()
    options = {"step": 1, "attempt": "a1", "config_digest": "c0ffee"}
    if name == "state":
        with pytest.raises(ValueError, match="state is not a regular file"):
            files.describe(tmp_path, **options)
    else:
        (file,) = files.describe(tmp_path, **options).files
        assert file.name == "file_temp"


@pytest.mark.parametrize("step", [-1, 10**18])
def test_an_impossible_step_has_no_name(step):
    with pytest.raises(ValueError, match=str(step)):
        manifest.checkpoint_name(step)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-000000000", 0),
        ("step-1234567890", 1234567890),
        ("step-0000000350", None),
        ("step-350", None),
        ("step-000000350.tmp-a", None),
        ("step-00000035٠", None),
    ],
)
def test_one_step_has_one_name(name, step):
    assert manifest.step_of(name) == step
