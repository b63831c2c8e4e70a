"""Data sets of tensorflow-datasets, prepared offline."""

import pathlib

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from tests import image_files
from trainer import data, errors

SHARED_DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"

NUM_TRAIN, NUM_TEST = 23, 5


class Pets(tfds.core.GeneratorBasedBuilder):
    """Photographs of several sizes, in two configurations."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="labelled"),
        tfds.core.BuilderConfig(name="plain"),
    ]

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/name": tfds.features.Text(),
        }
        if self.builder_config.name == "labelled":
            names = ["cat", "dog", "eel"]
            features["label"] = tfds.features.ClassLabel(names=names)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, NUM_TRAIN),
            "test": self._generate_examples(100, NUM_TEST),
        }

    def _generate_examples(self, first, count):
        for seed in range(first, first + count):
            row = {"image": image_files.pixels(seed, 20 + seed % 3, 30)}
            row["image/name"] = str(seed)
            if self.builder_config.name == "labelled":
                row["label"] = seed % 2
            yield seed, row


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    for config in ("labelled", "plain"):
        Pets(config=config, data_dir=data_dir).download_and_prepare()
    return data_dir


def stream(name, data_dir, **wanted):
    wanted.setdefault("image_size", (20, 30))
    return data.stream(
        f"tfds:{name}", data_dir=str(data_dir), wanted=data.Wanted(**wanted)
    )


def theirs(data_dir, split):
    dataset = tfds.builder("pets/labelled", data_dir=data_dir).as_dataset(
        split=split, shuffle_files=False
    )
    return list(tfds.as_numpy(dataset))


@pytest.mark.parametrize(
    "split", ["train", "test", "train[5:12]", "train[:50%]"]
)
def test_reads_what_tensorflow_datasets_reads(data_dir, split):
    dataset = stream("pets:labelled", data_dir, split=split)
    expected = theirs(data_dir, split)
    assert dataset.labels.tolist() == [row["label"] for row in expected]
    assert dataset.class_names == ("cat", "dog", "eel")
    samples = dataset.at(np.arange(len(expected)))
    for sample, row in zip(samples, expected, strict=True):
        if row["image"].shape == (20, 30, 3):
            np.testing.assert_array_equal(sample, row["image"])


def test_splits_are_added_in_the_order_of_their_files(data_dir):
    dataset = stream("pets:labelled", data_dir, split="train+test")
    expected = theirs(data_dir, "train") + theirs(data_dir, "test")
    assert dataset.labels.tolist() == [row["label"] for row in expected]


def test_the_train_split_is_the_default(data_dir):
    assert len(stream("pets:labelled:1.0.0", data_dir).labels) == NUM_TRAIN


def test_without_labels_all_are_of_one_class(data_dir):
    assert set(stream("pets:plain", data_dir).labels.tolist()) == {0}


def test_a_damaged_file_costs_its_images(data_dir, tmp_path):
    for path in data_dir.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(data_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    [path] = (tmp_path / "pets" / "labelled").rglob("*train.tfrecord*")
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match="1 of 23 images"):
        stream("pets:labelled", tmp_path)


def test_other_splits_are_named(data_dir):
    with pytest.raises(errors.DataError, match="tset.*train, test|test, train"):
        stream("pets:labelled", data_dir, split="tset")


@pytest.mark.parametrize("split", ["train[:0%]", "train[5:5]"])
def test_a_part_without_an_image_is_an_error(data_dir, split):
    with pytest.raises(errors.DataError, match=r"--split=train\[.*no image"):
        stream("pets:labelled", data_dir, split=split)


@pytest.mark.parametrize("name", ["no_such_name", "pets:no_such_config"])
def test_unknown_names(data_dir, name):
    with pytest.raises(errors.DataError, match="no_such"):
        stream(name, data_dir)


def test_what_has_no_images_says_what_it_has(tmp_path):
    class Numbers(Pets):
        BUILDER_CONFIGS = []

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict({"x": np.int64})
            )

        def _generate_examples(self, first, count):
            yield 0, {"x": 1}

    Numbers(data_dir=tmp_path).download_and_prepare()
    with pytest.raises(errors.DataError, match="no image.*but x"):
        stream("numbers", tmp_path)


def test_without_a_network_the_way_out_is_named(tmp_path, monkeypatch):
    def fail(url, *, timeout):
        raise requests.exceptions.ConnectionError(f"no route to {url}")

    monkeypatch.setattr(requests, "head", fail)
    with pytest.raises(errors.DataError) as caught:
        stream("cats_vs_dogs", tmp_path)
    for part in (
        "no route",
        "builder('cats_vs_dogs'",
        "--data_dir",
        str(tmp_path),
    ):
        assert part in str(caught.value)


@pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"MNIST is not in {SHARED_DATA}"
)
def test_real_mnist_by_its_name_and_as_any_data_set():
    by_name = data.load(
        "mnist",
        data_dir=str(SHARED_DATA / "tfds"),
        wanted=data.Wanted(split="test"),
    )
    as_any = data.load(
        "tfds:mnist",
        data_dir=str(SHARED_DATA / "tfds"),
        wanted=data.Wanted(split="test"),
    )
    assert as_any.samples.shape == (10000, 28, 28, 1)
    np.testing.assert_array_equal(by_name.samples, as_any.samples)
    np.testing.assert_array_equal(by_name.labels, as_any.labels)
    assert by_name.class_names == as_any.class_names
