"""Data in a bucket, for which TensorFlow's file system in memory stands."""

import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests import image_files
from trainer import data, errors
from trainer.data import files, packing, patience, pipeline, quarantine


@pytest.fixture(name="local", scope="module")
def _local(tmp_path_factory):
    """Good files, one with a damaged body, and one that is no image."""
    root = tmp_path_factory.mktemp("local")
    image_files.write_folder(root, 9)
    (root / "dog" / "notes.txt").write_bytes(b"Remember the milk.")
    damaged = root / "cat" / "0003.jpg"
    damaged.write_bytes(image_files.damage(damaged.read_bytes()))
    return root


@pytest.fixture(name="remote", scope="module")
def _remote(local):
    return upload(local, "ram://bucket/folder")


def upload(local: pathlib.Path, url: str) -> str:
    for path in local.rglob("*"):
        if path.is_file():
            target = f"{url}/{path.relative_to(local).as_posix()}"
            tf.io.gfile.makedirs(target.rpartition("/")[0])
            with tf.io.gfile.GFile(target, "wb") as file:
                file.write(path.read_bytes())
    return url


def load(name, *, memory_bytes=0, data_dir=None):
    wanted = data.Wanted(max_bad_fraction=0.2, memory_bytes=memory_bytes)
    return data.load(name, data_dir=data_dir, wanted=wanted)


def batches(dataset, num_batches=9, first_step=0):
    found = pipeline.training_batches(
        dataset,
        global_batch_size=4,
        num_replicas=1,
        first_step=first_step,
        seed=0,
    )
    return [
        (batch["sample"].numpy().tobytes(), batch["label"].numpy().tobytes())
        for batch in itertools.islice(found, num_batches)
    ]


def test_a_folder_gives_what_it_gives_on_a_disk(local, remote):
    on_disk, in_bucket = load(f"folder:{local}"), load(f"folder:{remote}")
    assert in_bucket.images.storage.is_remote
    assert in_bucket.digest() == on_disk.digest()
    assert in_bucket.class_names == on_disk.class_names == ("cat", "dog")
    expected = batches(on_disk)  # More than two epochs.
    assert batches(in_bucket) == expected
    reasons = in_bucket.quarantine.reasons
    assert reasons == on_disk.quarantine.reasons
    assert set(reasons) == {"dog/notes.txt", "cat/0003.jpg"}
    in_memory = load(f"folder:{remote}", memory_bytes=1 << 30)
    assert batches(in_memory) == expected
    # In the middle of the second epoch, in another process.
    resumed = load("folder:folder", data_dir="ram://bucket")
    assert batches(resumed, 3, first_step=6) == expected[6:]


def test_labels_from_a_table(local):
    remote = upload(local, "ram://bucket/labelled")
    rows = ["file,label"] + [f"cat/{i:04d}.jpg,{i % 3}" for i in range(9)]
    with tf.io.gfile.GFile(f"{remote}/labels.csv", "w") as file:
        file.write("\n".join(rows))
    with pytest.raises(errors.DataError, match="it has no label"):
        load(f"folder:{remote}")
    dataset = data.load(
        f"folder:{remote}",
        data_dir=None,
        wanted=data.Wanted(max_bad_fraction=0.6),
    )
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.labels.tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize("is_packed", [True, False])
def test_records_give_what_they_give_on_a_disk(tmp_path, local, is_packed):
    packing.pack(
        load(f"folder:{local}"),
        tmp_path,
        shard_bytes=8_000,
        as_samples=False,
    )
    if not is_packed:
        for path in tmp_path.iterdir():
            if path.suffix != ".tfrecord":
                path.unlink()
    url = upload(tmp_path, f"ram://bucket/records-{is_packed}")
    on_disk = load(f"tfrecord:{tmp_path}/*.tfrecord")
    in_bucket = load(f"tfrecord:{url}/*.tfrecord")
    assert len(tf.io.gfile.glob(f"{url}/*.tfrecord")) > 1
    assert in_bucket.digest() == on_disk.digest()
    expected = batches(on_disk)
    assert batches(in_bucket) == expected
    resumed = load("tfrecord:*.tfrecord", data_dir=url)
    assert batches(resumed, 2, first_step=5) == expected[5:7]


def test_what_is_not_there(remote):
    for name in ("folder:ram://bucket/nothing", "tfrecord:ram://bucket/no*"):
        with pytest.raises(errors.DataError, match=r"Correct|usable|no image"):
            load(name)
    missing = load(f"folder:{remote}")
    with pytest.raises(errors.DataError, match="/other"):
        data.load(
            f"folder:{remote}",
            data_dir=None,
            wanted=data.Wanted(split="other"),
        )
    assert len(missing.labels) == 18


def test_a_file_that_was_removed_meanwhile_is_replaced(local, monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_WAIT_SECS", 0.001)
    remote = upload(local, "ram://bucket/shrinking")
    dataset = load(f"folder:{remote}")
    tf.io.gfile.remove(f"{remote}/dog/0004.jpg")
    batches(dataset, 5)
    assert dataset.quarantine.reasons["dog/0004.jpg"] == (
        "it was removed after the start"
    )
    index = dataset.images.storage._names.index("dog/0004.jpg")
    np.testing.assert_array_equal(
        *dataset.at(np.array([index, index + 1])),
    )


def test_a_server_that_does_not_answer_at_the_start_is_waited_for(
    remote, monkeypatch
):
    monkeypatch.setattr(patience, "_FIRST_WAIT_SECS", 0.001)
    expected = load(f"folder:{remote}").digest()
    open_file, calls = tf.io.gfile.GFile, []

    def open_at_last(path, mode):
        calls.append(path)
        if "0005" in path and calls.count(path) < 4:
            raise tf.errors.UnavailableError(None, None, "503")
        return open_file(path, mode)

    monkeypatch.setattr(tf.io.gfile, "GFile", open_at_last)
    dataset = load(f"folder:{remote}")
    assert dataset.digest() == expected
    assert calls.count(f"{remote}/cat/0005.jpg") == 4
    monkeypatch.setattr(patience, "_PATIENCE_SECS", 0.0)
    calls.clear()
    with pytest.raises(errors.StorageError, match="0005.*503"):
        load(f"folder:{remote}")


def test_a_header_that_cannot_be_read_at_once_is_not_damaged(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(patience, "_FIRST_WAIT_SECS", 0.001)
    image_files.write_folder(tmp_path, 3, height=200, width=200)
    remote = upload(tmp_path, "ram://bucket/large")
    expected = load(f"folder:{remote}").digest()
    read, calls = files._RemoteFile.read, []

    def read_at_last(file, size=-1):
        calls.append(size)
        if 1 < len(calls) < 6:
            raise OSError("503")
        return read(file, size)

    monkeypatch.setattr(files._RemoteFile, "read", read_at_last)
    dataset = load(f"folder:{remote}")
    assert not dataset.quarantine.reasons
    assert dataset.digest() == expected


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_signal_ends_the_waiting(local, monkeypatch, in_memory):
    dataset = load(f"folder:{local}")

    def fail(index):
        raise OSError("503")

    monkeypatch.setattr(dataset.images.storage, "read", fail)
    monkeypatch.setattr(
        dataset.images.storage,
        "graph_reader",
        lambda: (tf.identity, lambda index: tf.strings.as_string(index)),
    )
    signals = iter([0] * 3)
    with (
        patience.stoppable(lambda: next(signals, 143)),
        pytest.raises(errors.StoppedError, match="newest") as stopped,
        quarantine.told_at_the_end(dataset.quarantine),
    ):
        dataset.in_memory() if in_memory else batches(dataset)
    assert stopped.value.exit_code == 143
