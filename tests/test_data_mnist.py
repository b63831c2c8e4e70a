"""The three ways to MNIST, and what is said where each is blocked."""

import gzip
import logging
import pathlib

import numpy as np
import pytest
import requests
from absl import logging as absl_logging

from tests import idx_files
from trainer import data, errors, main
from trainer.data import mnist

SHARED_DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"MNIST is not in {SHARED_DATA}"
)


def load(directory):
    return data.load("mnist", data_dir=str(directory))


def rewrite(path, change):
    """Applies `change` to the uncompressed content of a file."""
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(change(content)))


def test_reads_the_original_files(tmp_path):
    images, labels = idx_files.write_random(tmp_path)
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.samples, images[..., np.newaxis])
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.samples.dtype == np.uint8
    assert dataset.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (mnist.IMAGES_FILE, lambda c: c[:-1], "promises 15680.*holds 15679"),
        (mnist.IMAGES_FILE, lambda c: c + b"0", "promises 15680.*15681"),
        (mnist.IMAGES_FILE, lambda c: c[:6], "not an IDX file"),
        (mnist.IMAGES_FILE, lambda c: b"", "0 bytes start with ''"),
        (
            mnist.IMAGES_FILE,
            lambda c: b"\0\0\x08\1" + c[4:],
            "00000801.*not with '00000803'",
        ),
        (
            mnist.LABELS_FILE,
            lambda c: b"\0\0\x08\3" + c[4:],
            "not with '00000801'",
        ),
        (mnist.LABELS_FILE, lambda c: c[:-1] + b"\x0a", "label 10"),
    ],
)
def test_names_the_file_that_is_damaged(tmp_path, name, change, message):
    idx_files.write_random(tmp_path)
    rewrite(tmp_path / name, change)
    with pytest.raises(errors.DataError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not gzip"])
def test_names_the_file_that_cannot_be_decompressed(tmp_path, damage):
    idx_files.write_random(tmp_path)
    path = tmp_path / mnist.IMAGES_FILE
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0x10
    else:
        content = b"<html>404</html>"
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match="cannot be read") as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)


def test_refuses_files_of_different_splits(tmp_path):
    idx_files.write(tmp_path, images=np.zeros((5, 28, 28)), labels=np.zeros(4))
    with pytest.raises(errors.DataError, match="4 labels for the 5 images"):
        load(tmp_path)


@pytest.mark.parametrize("shape", [(5, 32, 32), (0, 28, 28)])
def test_refuses_images_of_another_shape(tmp_path, shape):
    idx_files.write(tmp_path, images=np.zeros(shape), labels=np.zeros(shape[0]))
    with pytest.raises(errors.DataError, match=r"\[60000, 28, 28\]"):
        load(tmp_path)


@pytest.mark.parametrize("name", [mnist.IMAGES_FILE, mnist.LABELS_FILE])
def test_names_the_missing_companion(tmp_path, name):
    idx_files.write_random(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(errors.DataError, match=f"{name} does not exist"):
        load(tmp_path)


def test_does_not_download_into_a_mistyped_path(tmp_path):
    with pytest.raises(errors.DataError, match="tpyo is not a directory"):
        load(tmp_path / "tpyo")
    assert not list(tmp_path.iterdir())


def test_names_both_ways_out_without_a_network(tmp_path, monkeypatch):
    def fail(url, *, timeout):
        raise requests.exceptions.ConnectionError(f"no route to {url}")

    monkeypatch.setattr(requests, "head", fail)
    with pytest.raises(errors.DataError) as caught:
        load(tmp_path)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    for part in (
        str(tmp_path),
        "no route to http",
        "download_and_prepare()",
        mnist.IMAGES_FILE,
        mnist.LABELS_FILE,
        "--data_dir",
    ):
        assert part in message
    assert not list(tmp_path.iterdir())


def test_without_a_network_there_is_one_error_and_no_warning(
    tmp_path, monkeypatch, capfd
):
    def fail(url, *, timeout):
        raise requests.exceptions.ConnectionError(f"no route to {url}")

    def run(*_):
        load(tmp_path)

    monkeypatch.setattr(requests, "head", fail)
    monkeypatch.setattr("trainer.train.run", run)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    # In place of pytest's handlers, so that warnings reach stderr.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert main.main(["main.py", "--dataset=mnist"]) == 3
    absl_logging.warning("others")
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("warning:")] == [
        "warning: others"
    ]
    assert len([line for line in lines if line.startswith("error:")]) == 1


def test_failed_download_is_a_data_error(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self):
        raise tfds.download.DownloadError("HTTP code: 403")

    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(errors.DataError, match="HTTP code: 403"):
        load(tmp_path)


@needs_shared_data
def test_both_ways_hold_the_same_training_images():
    original = load(SHARED_DATA / "mnist")
    prepared = load(SHARED_DATA / "tfds")

    def rows(dataset):
        assert dataset.samples.shape == (60000, 28, 28, 1)
        assert dataset.samples.dtype == np.uint8
        assert dataset.labels.dtype == np.int32
        return sorted(
            sample.tobytes() + bytes([label])
            for sample, label in zip(
                dataset.samples, dataset.labels, strict=True
            )
        )

    # Label 1 is the most frequent in the published training split.
    assert np.bincount(original.labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert rows(original) == rows(prepared)
    assert load(SHARED_DATA / "tfds").digest() == prepared.digest()


@needs_shared_data
def test_damaged_preparation_is_a_data_error(tmp_path):
    source = SHARED_DATA / "tfds" / "mnist" / "3.0.1"
    target = tmp_path / "mnist" / "3.0.1"
    target.mkdir(parents=True)
    for path in source.iterdir():
        if "tfrecord" not in path.name:
            (target / path.name).write_bytes(path.read_bytes())
        elif "train" in path.name:
            (target / path.name).write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(errors.DataError, match="cannot be read") as caught:
        load(tmp_path)
    assert str(target) in str(caught.value)
