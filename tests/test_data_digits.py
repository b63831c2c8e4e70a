"""The table of data sets and the embedded digits."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from trainer import data, errors
from trainer.data import digits


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits", data_dir=None)


def test_importing_the_package_imports_no_tensorflow():
    code = (
        "import sys, trainer.data;"
        "trainer.data.load('digits', data_dir=None);"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(errors.UsageError, match="minst.*digits, mnist"):
        data.load("minst", data_dir=None)


def test_shapes_types_and_labels(dataset):
    assert dataset.samples.shape == (1797, 28, 28, 1)
    assert dataset.samples.dtype == np.uint8
    assert dataset.labels.shape == (1797,)
    assert dataset.labels.dtype == np.int32
    assert np.bincount(dataset.labels).min() > 170


def test_looks_like_mnist(dataset):
    # MNIST: mean 33.3, 80.9% zero, 10.2% above 200; ink in a box of 20x20.
    samples = dataset.samples[..., 0]
    assert 30 < samples.mean() < 37
    assert 0.77 < np.mean(samples == 0) < 0.84
    assert 0.08 < np.mean(samples > 200) < 0.12
    assert samples.max(axis=(1, 2)).min() > 200
    extents = np.stack(
        [(samples > 0).any(axis=axis).sum(axis=1) for axis in (1, 2)]
    )
    assert extents.max(axis=0).max() == 20
    assert extents.max(axis=0).mean() > 19.9


def test_centre_of_mass_is_the_centre(dataset):
    samples = dataset.samples[..., 0].astype(np.float64)
    for axis in (1, 2):
        mass = samples.sum(axis=axis)
        centres = mass @ np.arange(28) / mass.sum(axis=1)
        # To the nearest pixel.
        assert np.abs(centres - 13.5).max() <= 0.51


def test_is_deterministic(dataset):
    again = digits.load(data_dir=None)
    np.testing.assert_array_equal(again.samples, dataset.samples)
    assert again.digest() == dataset.digest()


def test_refuses_a_directory():
    with pytest.raises(errors.UsageError, match="/some/where.*embedded"):
        data.load("digits", data_dir="/some/where")


@pytest.mark.parametrize("what", ["sample", "label", "order", "shape"])
def test_digest_sees_every_change(dataset, what):
    samples, labels = dataset.samples.copy(), dataset.labels.copy()
    if what == "sample":
        samples[-1, 14, 14, 0] ^= 1
    elif what == "label":
        labels[-1] ^= 1
    elif what == "order":
        samples, labels = samples[::-1], labels[::-1]
    else:
        samples = samples.reshape(1797, 14, 56, 1)
    changed = dataclasses.replace(dataset, samples=samples, labels=labels)
    assert changed.digest() != dataset.digest()


def test_digest_is_a_crc32c_of_shape_samples_and_labels():
    # Pinned: another way to compute it would orphan every checkpoint.
    dataset = data.ArrayDataset(
        samples=np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1),
        labels=np.array([0, 1], np.int32),
    )
    assert dataset.digest() == "crc32c:f1aa9508"
