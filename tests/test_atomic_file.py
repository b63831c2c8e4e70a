"""A file is the old one or the new one, whatever fails in between."""

import errno
import os
import time

import pytest

from trainer import atomic_file, errors


def test_writes_and_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "config.json"
    atomic_file.write_bytes(path, b"old")
    atomic_file.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("function", ["fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_refusal_keeps_the_old_content(tmp_path, monkeypatch, function, code):
    path = tmp_path / "config.json"
    path.write_bytes(b"old")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(errors.StorageError) as caught:
        atomic_file.write_bytes(path, b"new")
    assert caught.value.exit_code == 6
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert "--workdir" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["config.json"]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "rename"):
        original = getattr(os, name)

        def record(*args, name=name, original=original):
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(os, name, record)
    atomic_file.write_bytes(tmp_path / "a", b"data")
    assert calls == ["fsync", "rename", "fsync"]


def test_an_interruption_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_file.write_bytes(tmp_path / "a", b"data")
    assert os.listdir(tmp_path) == []


def test_a_directory_without_fsync_is_accepted(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    atomic_file.fsync_directory(tmp_path)
    with pytest.raises(OSError, match="Invalid"):
        path = tmp_path / "a"
        path.touch()
        atomic_file.fsync_file(path)


def test_a_path_under_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(errors.StorageError, match="Not a directory"):
        atomic_file.write_bytes(tmp_path / "file" / "a", b"data")


def test_what_killed_processes_left_is_removed_when_it_is_old(tmp_path):
    path = tmp_path / "a[1].json"
    old = tmp_path / ".a[1].json.tmp-0123"
    young = tmp_path / ".a[1].json.tmp-4567"
    others = tmp_path / ".a1.json.tmp-0123"
    for leftover in (old, young, others):
        leftover.write_bytes(b"half")
    for leftover in (old, others):
        os.utime(leftover, (time.time() - 4000,) * 2)
    atomic_file.write_bytes(path, b"data")
    assert path.read_bytes() == b"data"
    assert set(tmp_path.iterdir()) == {path, young, others}


def test_left_overs_that_cannot_be_removed_are_no_error(tmp_path):
    leftover = tmp_path / ".a.tmp-0123"
    leftover.mkdir()
    os.utime(leftover, (0, 0))
    atomic_file.write_bytes(tmp_path / "a", b"data")
    assert leftover.exists()
