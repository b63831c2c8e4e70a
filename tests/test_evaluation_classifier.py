"""Features of images, on a small part of the embedded digits."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest

from trainer import errors
from trainer.assembly import datasets
from trainer.config import Config
from trainer.data import digits
from trainer.data.array_dataset import ArrayDataset
from trainer.evaluation import (
    classifier,
    classifier_cache,
    extractors,
    inception,
)

NUM_STEPS = 60


@pytest.fixture(scope="module")
def data():
    return digits.load(data_dir=None)


@pytest.fixture(scope="module")
def trained(data):
    return train(data)


def train(data, num_steps=NUM_STEPS):
    return classifier.train(
        lambda indices: data.samples[indices],
        data.labels,
        num_classes=10,
        num_steps=num_steps,
    )


def as_extractor(trained):
    return classifier.as_extractor(
        trained, sample_shape=(28, 28, 1), num_classes=10, name="name"
    )


def test_it_learns_and_tells_how_well_on_images_held_out(trained):
    # A tenth of 1,797. Chance is 0.1; 1,500 steps reach 0.98 or more.
    assert trained.num_held_out == 180
    assert trained.held_out_accuracy > 0.8


def test_images_that_are_all_the_same_measure_nothing(data):
    plain = dataclasses.replace(data, samples=np.zeros_like(data.samples))
    with pytest.raises(errors.DataError, match="All images look the same"):
        train(plain, num_steps=1)


def test_the_same_data_gives_the_same_classifier(data, trained):
    again = train(data, num_steps=3)
    once_more = train(data, num_steps=3)
    for one, other in zip(again.weights, once_more.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(again.weights[0], trained.weights[0])


def test_features_and_probabilities_are_of_the_images(data, trained):
    extractor = as_extractor(trained)
    features, probabilities = extractor.extract(data.samples[:200])
    assert features.shape == (200, extractor.dim)
    assert probabilities.shape == (200, extractor.num_classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    # Scaled for the kernel, which has no scale of its own.
    assert features.var(axis=0).mean() == pytest.approx(1, rel=0.2)
    right = (probabilities.argmax(axis=1) == data.labels[:200]).mean()
    assert right > 0.8
    assert "180 images held out" in extractor.description


@pytest.mark.parametrize("shape", [(32, 48, 3), (8, 8, 1), (5, 9, 1)])
def test_any_image_size_has_features(shape):
    network = classifier.build_network(shape, 3)
    features, logits = network(np.zeros([2, *shape], np.float32))
    assert features.shape == (2, classifier.FEATURE_DIM)
    assert logits.shape == (2, 3)


def test_the_users_precision_changes_no_feature():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = classifier.build_network((16, 16, 1), 2)
    finally:
        keras.config.set_dtype_policy(before)
    assert {v.dtype for v in network.variables} == {"float32"}
    computing = network.layers[1:]  # The input layer only has a shape.
    assert {layer.compute_dtype for layer in computing} == {"float32"}


def test_the_digest_is_that_of_the_data():
    assert classifier.digest("crc32c:1") == classifier.digest("crc32c:1")
    assert classifier.digest("crc32c:1") != classifier.digest("crc32c:2")


def test_other_sizes_of_the_same_images_have_classifiers_of_their_own(
    tmp_path, monkeypatch
):
    # The digest is that of the source, whatever size they are brought to.
    monkeypatch.setattr(
        "trainer.evaluation.classifier.train.__kwdefaults__",
        {"num_steps": 1, "on_progress": lambda: None},
    )
    numbers = np.random.default_rng(0)
    for size in (8, 6):
        dataset = ArrayDataset(
            samples=numbers.integers(0, 256, [40, size, size, 1], np.uint8),
            labels=np.arange(40, dtype=np.int32) % 2,
            source_digest="crc32c:1",
        )
        extractor = extractors.make(
            dataset,
            preparation=datasets.preparation(Config(image_size=str(size))),
            inception_weights=None,
            cache_dir=str(tmp_path),
        )
        features, _ = extractor.extract(dataset.at(np.arange(2)))
        assert features.shape == (2, extractor.dim)
    prepared = [
        datasets.preparation(Config(**changes))
        for changes in (
            {},
            {"image_size": "16"},
            {"image_size": "16", "resize": "pad"},
            {"channels": "3"},
        )
    ]
    assert prepared[0] == ""
    assert len(set(prepared)) == 4


def test_the_cache_gives_back_the_very_same(tmp_path, trained):
    calls = []

    def train_once():
        calls.append(1)
        return trained

    directory = tmp_path / "new" / "cache"
    classifier_cache.get(directory, "abc", train_once)
    found = classifier_cache.get(directory, "abc", train_once)
    assert calls == [1]
    facts, other_facts = dataclasses.asdict(found), dataclasses.asdict(trained)
    arrays = [facts.pop("feature_mean"), *facts.pop("weights")]
    others = [other_facts.pop("feature_mean"), *other_facts.pop("weights")]
    assert facts == other_facts
    for one, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive"])
def test_a_damaged_file_in_the_cache_is_replaced(tmp_path, trained, content):
    path = tmp_path / "classifier-abc.npz"
    path.write_bytes(content)
    classifier_cache.get(tmp_path, "abc", lambda: trained)
    assert path.read_bytes() != content
    found = classifier_cache.get(tmp_path, "abc", pytest.fail)
    assert found.num_held_out == trained.num_held_out


def test_inception_is_never_downloaded(tmp_path):
    with pytest.raises(errors.UsageError, match="not a file.*downloaded"):
        inception.load(str(tmp_path / "missing.h5"))


def test_a_file_with_other_weights_is_refused(tmp_path):
    path = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input([3]), keras.layers.Dense(2)]).save_weights(
        path
    )
    with pytest.raises(errors.UsageError, match="does not hold the weights"):
        inception.load(str(path))
    path.write_bytes(b"no HDF5")
    with pytest.raises(errors.UsageError, match="does not hold the weights"):
        inception.load(str(path))


def test_images_are_made_what_inception_takes():
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape([2, 4, 4, 1]) * 8
    prepared = inception.prepare(images).numpy()
    assert prepared.shape == (2, 299, 299, 3)
    np.testing.assert_array_equal(prepared[..., 0], prepared[..., 2])
    assert prepared.min() == -1
    assert prepared.max() == pytest.approx(31 * 8 / 127.5 - 1)


@pytest.mark.slow
def test_inception_gives_its_features_from_a_file(tmp_path: pathlib.Path):
    path = tmp_path / "inception.weights.h5"
    network = keras.applications.InceptionV3(weights=None)
    network.save_weights(path)
    extractor = inception.load(str(path))
    images = np.random.default_rng(0).integers(
        0, 256, [3, 32, 32, 3], dtype=np.uint8
    )
    features, probabilities = extractor.extract(images)
    assert features.shape == (3, extractor.dim)
    expected = network.predict(inception.prepare(images), verbose=0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    assert "not the weights of published" in extractor.description
