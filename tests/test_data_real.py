"""Real photographs: CIFAR-10's, and the two that scikit-learn brings."""

import itertools
import pathlib
import zipfile

import numpy as np
import PIL.Image
import pytest

from trainer import data
from trainer.data import packing, pipeline

CIFAR10 = (
    pathlib.Path(__file__).parents[2] / "shared/data/cifar10-train-jpeg.zip"
)
_PER_CLASS = 60
_STEPS = 20


@pytest.fixture(name="cifar10", scope="module")
def _cifar10(tmp_path_factory):
    """A part of each class, one folder a class."""
    if not CIFAR10.exists():
        pytest.skip(f"{CIFAR10} is not there")
    folder = tmp_path_factory.mktemp("cifar10")
    with zipfile.ZipFile(CIFAR10) as archive:
        for name in archive.namelist():
            if name.endswith(".jpg") and int(name[-8:-4]) < _PER_CLASS:
                archive.extract(name, folder)
    return folder


@pytest.fixture(name="photographs", scope="module")
def _photographs(tmp_path_factory):
    """China and the flower, 427x640, cut into overlapping large pieces."""
    from sklearn import datasets

    folder = tmp_path_factory.mktemp("photographs")
    images = datasets.load_sample_images()
    for name, image in zip(("china", "flower"), images.images, strict=True):
        (folder / name).mkdir()
        for number, (top, left) in enumerate(
            itertools.product((0, 50, 107), (0, 60, 140))
        ):
            piece = image[top : top + 320, left : left + 500]
            PIL.Image.fromarray(piece).save(
                folder / name / f"{number}.jpg", quality=90
            )
    return folder


def load(name, **wanted):
    dataset = data.load(name, data_dir=None, wanted=data.Wanted(**wanted))
    streamed = data.load(
        name,
        data_dir=None,
        wanted=data.Wanted(**wanted, memory_bytes=0),
    )
    return dataset, streamed


def batches(dataset, num_steps):
    stream = pipeline.training_batches(
        dataset,
        global_batch_size=16,
        num_replicas=1,
        first_step=_STEPS,
        seed=1,
    )
    return [
        (batch["sample"].numpy().tobytes(), batch["label"].numpy().tobytes())
        for batch in itertools.islice(stream, num_steps)
    ]


def test_cifar10_as_files_and_packed_in_memory_and_streamed(cifar10, tmp_path):
    in_memory, streamed = load(f"folder:{cifar10}")
    assert in_memory.sample_shape == (32, 32, 3)
    assert in_memory.class_names[:2] == ("airplane", "automobile")
    assert np.bincount(in_memory.labels).tolist() == [_PER_CLASS] * 10
    first = PIL.Image.open(cifar10 / "airplane" / "0000.jpg")
    np.testing.assert_array_equal(in_memory.samples[0], np.asarray(first))

    packing.pack(
        streamed, tmp_path / "packed", shard_bytes=200_000, as_samples=False
    )
    expected = batches(in_memory, _STEPS)
    assert batches(streamed, _STEPS) == expected
    for dataset in load(f"tfrecord:{tmp_path}/packed/*.tfrecord"):
        assert batches(dataset, _STEPS) == expected


@pytest.mark.parametrize("resize", ["fit", "crop", "pad"])
def test_photographs_come_out_small_and_recognizable(photographs, resize):
    in_memory, streamed = load(
        f"folder:{photographs}", image_size=(48, 64), resize=resize
    )
    samples = in_memory.samples
    assert samples.shape == (18, 48, 64, 3)
    np.testing.assert_array_equal(samples, streamed.at(np.arange(18)))
    original = PIL.Image.open(photographs / "flower" / "4.jpg")
    if resize == "crop":
        original = original.crop((36, 0, 463, 320))
    size = (64, 41) if resize == "pad" else (64, 48)
    expected = np.asarray(
        original.resize(size, PIL.Image.Resampling.BICUBIC), int
    )
    actual = samples[9 + 4][3:44] if resize == "pad" else samples[9 + 4]
    # Pillow starts from the full size, we from the JPEG's quarter.
    assert np.abs(actual - expected).mean() < 2.0
