"""TFRecord files are scanned once, and again when they have changed."""

import os
import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf

from tests.test_data_records import labels_and_samples, write_shards
from tests.test_data_remote import upload
from trainer import data, errors
from trainer.data import (
    files,
    packed,
    patience,
    record_file,
    record_index,
    record_scan,
)


@pytest.fixture(name="shards")
def _shards(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two shards; one record of the second is damaged."""
    folder = tmp_path / "shards"
    write_shards(folder)
    path = folder / "part-1.tfrecord"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    return folder


@pytest.fixture(name="scanned")
def _scanned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that are scanned from now on."""
    sizes: list[int] = []
    scan = record_file.scan

    def scan_and_note(file, num_bytes):
        sizes.append(num_bytes)
        return scan(file, num_bytes)

    monkeypatch.setattr(record_file, "scan", scan_and_note)
    return sizes


def stream(folder, cache, **wanted):
    wanted.setdefault("max_bad_fraction", 0.1)
    return data.stream(
        f"tfrecord:{folder}/*.tfrecord",
        data_dir=None,
        wanted=data.Wanted(cache_dir=cache, **wanted),
    )


def index_of(cache: pathlib.Path) -> pathlib.Path:
    [path] = cache.iterdir()
    return path


def assert_same(one, other):
    assert one.digest() == other.digest()
    assert one.quarantine.summary() == other.quarantine.summary() != ""
    # More than two epochs.
    assert labels_and_samples(one, 6) == labels_and_samples(other, 6)


def test_a_second_start_scans_nothing_and_gives_the_same(
    tmp_path, shards, scanned
):
    first = stream(shards, tmp_path / "cache")
    assert len(scanned) == 2
    second = stream(shards, tmp_path / "cache")
    assert len(scanned) == 2
    assert_same(second, first)
    with pytest.raises(errors.DataError, match="1 of 10 images"):
        stream(shards, tmp_path / "cache", max_bad_fraction=0.05)
    # Nothing is kept where none is wanted.
    stream(shards, None)
    assert len(scanned) == 4


def test_only_a_file_that_changed_is_scanned_again(tmp_path, shards, scanned):
    stream(shards, tmp_path / "cache")
    path = shards / "part-0.tfrecord"
    state = path.stat()
    # As many bytes as before, at another time.
    content = (shards / "part-0.tfrecord").read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    del scanned[:]
    changed = stream(shards, tmp_path / "cache", max_bad_fraction=0.3)
    assert scanned == [len(content)]
    assert len(changed.labels) == 8
    assert_same(changed, stream(shards, None, max_bad_fraction=0.3))
    del scanned[:]
    stream(shards, tmp_path / "cache", max_bad_fraction=0.3)
    assert not scanned


def test_what_the_scan_depends_on_has_an_index_of_its_own(tmp_path, shards):
    cache = tmp_path / "cache"
    assert len(stream(shards, cache).labels) == 9
    with pytest.raises(errors.DataError, match="no image"):
        stream(shards, cache, max_pixels=10, max_bad_fraction=1.0)
    assert len(stream(shards, cache).labels) == 9


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "rows", "huge"])
def test_a_damaged_index_is_made_anew(
    tmp_path, shards, scanned, damage, monkeypatch, caplog
):
    cache = tmp_path / "cache"
    first = stream(shards, cache)
    path = index_of(cache)
    whole = path.read_bytes()
    if damage == "rows":
        facts = np.load(path)["facts"]
        np.savez(path, rows=np.zeros(3, packed.ROW), facts=facts)
    elif damage == "huge":
        monkeypatch.setattr(record_index, "_MAX_BYTES", len(whole) - 1)
    else:
        path.write_bytes(
            {
                "cut": whole[: len(whole) // 2],
                "noise": whole[:200] + os.urandom(200) + whole[400:],
                "empty": b"",
            }[damage]
        )
    again = stream(shards, cache)
    assert len(scanned) == 4
    assert "is made anew" in caplog.text
    assert_same(again, first)
    if damage == "huge":
        assert "is not kept" in caplog.text
    else:
        assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, shards, caplog):
    (tmp_path / "file").write_text("")
    assert len(stream(shards, tmp_path / "file" / "cache").labels) == 9
    assert "the next start reads them once more" in caplog.text


def test_the_oldest_indexes_are_dropped(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(record_index, "_MAX_INDEXES", 2)
    cache = tmp_path / "cache"
    names = []
    for number in range(3):
        stream(shards, cache, max_pixels=10_000 + number)
        [name] = {path.name for path in cache.iterdir()} - set(names)
        os.utime(cache / name, ns=(number, number))
        names.append(name)
    assert {path.name for path in cache.iterdir()} == set(names[1:])


def test_in_a_bucket_the_servers_times_count(
    tmp_path, shards, scanned, monkeypatch
):
    url = upload(shards, "ram://bucket/indexed")
    cache = tmp_path / "cache"
    first = stream(url, cache)
    assert not cache.exists()  # This server gives no times.
    stat, times = tf.io.gfile.stat, {"time": 1}

    def stat_with_time(path):
        length = stat(path).length
        return types.SimpleNamespace(length=length, mtime_nsec=times["time"])

    monkeypatch.setattr(tf.io.gfile, "stat", stat_with_time)
    stream(url, cache)
    del scanned[:]
    assert_same(stream(url, cache), first)
    assert not scanned
    times["time"] = 2
    stream(url, cache)
    assert len(scanned) == 2


def test_progress_is_told(tmp_path, shards, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(record_scan, "_SECS_BETWEEN_REPORTS", -1.0)
    stream(shards, None)
    assert "GiB of TFRecord files" in caplog.text


# A server or disk that does not answer.


def test_a_scan_goes_on_after_an_outage(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_WAIT_SECS", 0.001)
    url = upload(shards, "ram://bucket/outage")
    expected = stream(url, None)
    read, stat, calls = files._RemoteFile.read, tf.io.gfile.stat, []

    def read_at_last(file, size=-1):
        calls.append(size)
        if len(calls) % 3:
            raise OSError("503")
        return read(file, size)

    def stat_at_last(path):
        calls.append(path)
        if len(calls) < 4:
            raise tf.errors.UnavailableError(None, None, "503")
        return stat(path)

    with monkeypatch.context() as patch:
        patch.setattr(files._RemoteFile, "read", read_at_last)
        patch.setattr(tf.io.gfile, "stat", stat_at_last)
        found = stream(url, None)
    assert_same(found, expected)


@pytest.mark.parametrize("what", ["read", "state"])
def test_an_outage_that_lasts_is_one_of_storage(shards, monkeypatch, what):
    def fail(*_):
        raise OSError("Stale file handle")

    monkeypatch.setattr(patience, "_PATIENCE_SECS", 0.0)
    monkeypatch.setattr(
        files, {"read": "open_binary", "state": "state"}[what], fail
    )
    with pytest.raises(errors.StorageError, match="part-.*Stale"):
        stream(shards, None)


def test_what_is_no_file_is_not_waited_for(shards):
    (shards / "x.tfrecord").mkdir()
    with pytest.raises(errors.DataError, match="x.tfrecord cannot be read"):
        stream(shards, None)
