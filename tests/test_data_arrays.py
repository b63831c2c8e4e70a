"""CIFAR-10 and Fashion-MNIST as published, and splits of all arrays."""

import numpy as np
import pytest

from tests import idx_files
from trainer import data, errors
from trainer.data import cifar10


def load(name, directory, split=None):
    return data.load(
        name, data_dir=str(directory), wanted=data.Wanted(split=split)
    )


def write_cifar10(folder, per_file=4):
    """Writes the binary version with random pixels; returns all of them."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    rows = []
    for split, names in cifar10.FILES.items():
        for name in names:
            images = generator.integers(
                0, 256, [per_file, 32, 32, 3], dtype=np.uint8
            )
            labels = generator.integers(0, 10, per_file).astype(np.uint8)
            with open(folder / name, "wb") as file:
                for image, label in zip(images, labels, strict=True):
                    # Plane by plane: red, green, blue.
                    file.write(bytes([label]))
                    file.write(image.transpose(2, 0, 1).tobytes())
            if split == "train":
                rows.append((images, labels))
    images, labels = zip(*rows, strict=True)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin"])
def test_cifar10_from_its_binary_files(tmp_path, folder):
    images, labels = write_cifar10(tmp_path / folder)
    dataset = load("cifar10", tmp_path)
    np.testing.assert_array_equal(dataset.samples, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.samples.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    assert dataset.class_names[3] == "cat"
    assert len(load("cifar10", tmp_path, "test").labels) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "12291 bytes"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.unlink(), "does not exist, but its companions"),
        (
            lambda path: path.write_bytes(b"\x0a" + path.read_bytes()[1:]),
            "label 10",
        ),
    ],
)
def test_names_the_file_that_is_damaged(tmp_path, change, message):
    write_cifar10(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    change(path)
    with pytest.raises(errors.DataError, match=message) as caught:
        load("cifar10", tmp_path)
    assert str(path) in str(caught.value)


def test_fashion_mnist_has_the_files_of_mnist_and_other_classes(tmp_path):
    idx_files.write_random(tmp_path)
    fashion, mnist = load("fashion_mnist", tmp_path), load("mnist", tmp_path)
    np.testing.assert_array_equal(fashion.samples, mnist.samples)
    assert fashion.class_names[9] == "Ankle boot"
    assert mnist.class_names == tuple("0123456789")
    assert fashion.digest() == mnist.digest()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_unknown_splits_and_directories(tmp_path, name):
    with pytest.raises(errors.UsageError, match="valid.*train, test"):
        load(name, tmp_path, "valid")
    with pytest.raises(errors.DataError, match="tpyo is not a directory"):
        load(name, tmp_path / "tpyo")


def test_digits_have_one_part():
    with pytest.raises(errors.UsageError, match="--split=test has no use"):
        data.load("digits", data_dir=None, wanted=data.Wanted(split="test"))


def test_digests_of_older_runs_are_still_those():
    # Checkpoints hold them: that of the arrays, whatever else is known.
    dataset = data.load("digits", data_dir=None)
    plain = data.ArrayDataset(dataset.samples, dataset.labels)
    assert dataset.class_names
    assert dataset.digest() == plain.digest()
