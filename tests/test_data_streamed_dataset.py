"""Streaming gives what memory gives, bad files or not."""

import itertools
import threading
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests import image_files
from trainer import data, errors
from trainer.data import (
    headers,
    patience,
    pipeline,
    quarantine,
    streamed_dataset,
)

BATCH_SIZE = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All formats, grey and coloured, of several sizes."""
    root = tmp_path_factory.mktemp("images")
    seed = 0
    for name, image_format in itertools.product("ab", headers.FORMATS):
        for size in ((32, 32), (40, 60), (300, 200)):
            content = image_files.encode(
                image_files.pixels(seed, *size), image_format
            )
            path = root / name / f"{image_format}-{size[0]}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            seed += 1
    grey = image_files.encode(image_files.pixels(seed, channels=1), "JPEG")
    (root / "a" / "grey").write_bytes(grey)
    return root


def stream(root, **wanted):
    wanted.setdefault("image_size", (32, 32))
    return data.stream(
        f"folder:{root}", data_dir=None, wanted=data.Wanted(**wanted)
    )


def batches(dataset, num_batches, **kwargs):
    arguments = {
        "global_batch_size": BATCH_SIZE,
        "num_replicas": 1,
        "first_step": 0,
        "seed": 3,
        **kwargs,
    }
    found = pipeline.training_batches(dataset, **arguments)
    return [
        (batch["sample"].numpy(), batch["label"].numpy())
        for batch in itertools.islice(found, num_batches)
    ]


def assert_same(one, other):
    assert len(one) == len(other)
    for (samples, labels), (others, other_labels) in zip(
        one, other, strict=True
    ):
        np.testing.assert_array_equal(samples, others)
        np.testing.assert_array_equal(labels, other_labels)


def break_some(root, copy, *names):
    """Copies the folder, with some of the files damaged past their headers."""
    for path in root.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            if str(path.relative_to(root)) in names:
                content = image_files.damage(content)
            target.write_bytes(content)
    return copy


@pytest.mark.parametrize("channels", [1, 3])
def test_in_memory_and_streamed_are_the_same(root, channels):
    streamed = stream(root, channels=channels)
    in_memory = data.load(
        f"folder:{root}",
        data_dir=None,
        wanted=data.Wanted(image_size=(32, 32), channels=channels),
    )
    assert isinstance(in_memory, data.ArrayDataset)
    assert in_memory.digest() == streamed.digest()
    assert in_memory.sample_shape == streamed.sample_shape
    assert in_memory.class_names == streamed.class_names == ("a", "b")
    np.testing.assert_array_equal(
        in_memory.at(np.arange(9)), streamed.at(np.arange(9))
    )
    # Three epochs.
    assert_same(batches(streamed, 21), batches(in_memory, 21))


def test_the_budget_decides(root):
    num_bytes = 31 * 32 * 32 * 3
    for budget, kind in (
        (num_bytes, data.ArrayDataset),
        (num_bytes - 1, streamed_dataset.StreamedDataset),
    ):
        wanted = data.Wanted(image_size=(32, 32), memory_bytes=budget)
        dataset = data.load(f"folder:{root}", data_dir=None, wanted=wanted)
        assert isinstance(dataset, kind)


def test_decodes_what_pillow_decodes(root):
    dataset = stream(root)
    for index in range(len(dataset.labels)):
        name = dataset.images.storage.name(index)
        path = root / name
        expected = PIL.Image.open(path).convert("RGB")
        if "grey" not in name and "32" not in name:
            continue  # Resizing is the business of another test.
        content = dataset.read_encoded(index)
        difference = dataset.decode(index, content).astype(int) - expected
        assert np.abs(difference).max() <= (2 if "WEBP" in name else 0), name


def test_large_jpegs_are_shrunk_while_they_are_decoded(root):
    dataset = stream(root)
    for index in range(len(dataset.labels)):
        name = dataset.images.storage.name(index)
        if name != "a/JPEG-300":
            continue
        # To a quarter: to decode all of it takes longer.
        content = tf.constant(dataset.read_encoded(index))
        decoded = dataset._decode(content, dataset._choices[index])
        assert decoded.shape == (75, 50, 3)
        image = PIL.Image.open(root / name).crop((0, 50, 200, 250))
        expected = image.resize((32, 32), PIL.Image.Resampling.BICUBIC)
        actual = dataset.decode(index, dataset.read_encoded(index))
        assert np.abs(actual.astype(int) - expected).max() <= 8
        return
    pytest.fail("there is no such file")


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_together_see_each_example_once_an_epoch(root, num_workers):
    dataset = stream(root)
    whole = batches(dataset, 5, global_batch_size=6)
    shares = [
        batches(
            dataset,
            5,
            global_batch_size=6,
            num_replicas=num_workers,
            local_replicas=range(worker, worker + 1),
        )
        for worker in range(num_workers)
    ]
    together = [
        tuple(np.concatenate(parts) for parts in zip(*step, strict=True))
        for step in zip(*shares, strict=True)
    ]
    assert_same(together, whole)
    seen = np.concatenate([samples for samples, _ in together])
    assert len(np.unique(seen.reshape(30, -1), axis=0)) == 30


@pytest.mark.parametrize("first_step", [1, 5, 7, 16])
def test_resuming_anywhere_gives_the_remaining_batches(root, first_step):
    dataset = stream(root)
    whole = batches(dataset, first_step + 4)
    resumed = batches(stream(root), 4, first_step=first_step)
    assert_same(resumed, whole[first_step:])


def test_the_order_is_independent_of_the_threads(root, monkeypatch):
    usual = batches(stream(root), 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(16))
    assert_same(batches(stream(root), 8), usual)


def test_reads_wait_together_and_the_slow_ones_keep_their_places(
    root, monkeypatch
):
    dataset = stream(root)
    count = len(dataset.labels)
    [(expected, _)] = batches(dataset, 1, global_batch_size=count)
    storage = dataset.images.storage
    # None gets an answer before all have asked, and the first the last one.
    everybody = threading.Barrier(count)

    def answer(index):
        everybody.wait(timeout=20)
        time.sleep(0.005 * float(count - places[index]))
        return storage.read(index)

    def load(index):
        return tf.ensure_shape(
            tf.numpy_function(answer, [index], tf.string, stateful=False), []
        )

    indices = pipeline.example_indices(
        0,
        tf.range(count),
        num_examples=count,
        global_batch_size=count,
        seed=3,
    )
    places = np.argsort(indices.numpy())
    monkeypatch.setattr(storage, "is_remote", True)
    monkeypatch.setattr(storage, "graph_reader", lambda: (tf.identity, load))
    monkeypatch.setattr(
        dataset, "_complete", lambda *_: pytest.fail("some had to wait")
    )
    [(samples, _)] = batches(dataset, 1, global_batch_size=count)
    np.testing.assert_array_equal(samples, expected)


def test_a_damaged_body_is_replaced_by_the_next_good_one_of_its_class(
    root, tmp_path
):
    damaged = ("a/JPEG-40", "a/PNG-300", "a/grey", "b/GIF-32")
    copy = break_some(root, tmp_path / "copy", *damaged)
    dataset = stream(copy, max_bad_fraction=0.2)
    in_memory = stream(copy, max_bad_fraction=0.2).in_memory()
    assert_same(batches(dataset, 21), batches(in_memory, 21))
    assert set(dataset.quarantine.reasons) <= set(damaged)

    names = [dataset.images.storage.name(i) for i in range(31)]
    good = stream(root).in_memory().samples
    for name in damaged:
        same_class = [n for n in names if n[0] == name[0]]
        place = same_class.index(name)
        following = same_class[place + 1 :] + same_class[:place]
        other = next(n for n in following if n not in damaged)
        np.testing.assert_array_equal(
            in_memory.samples[names.index(name)], good[names.index(other)]
        )
    reasons = in_memory.quarantine.reasons
    assert reasons.keys() == set(damaged)
    assert "4 of 31 images are not used (4 of them" in (
        in_memory.quarantine.summary()
    )
    # Without what TensorFlow adds about graphs.
    assert not any("node" in reason for reason in reasons.values())


@pytest.mark.parametrize("in_memory", [True, False])
def test_too_many_damaged_bodies_end_it(root, tmp_path, in_memory):
    copy = break_some(root, tmp_path / "copy", "a/JPEG-40", "a/PNG-300")
    dataset = stream(copy, max_bad_fraction=1 / 31)
    with (
        pytest.raises(errors.DataError, match="2 of 31 images cannot"),
        quarantine.told_at_the_end(dataset.quarantine),
    ):
        if in_memory:
            dataset.in_memory()
        else:
            batches(dataset, 8)


def test_a_class_of_which_nothing_decodes_ends_it(tmp_path):
    image_files.write_folder(tmp_path, 3)
    for path in (tmp_path / "dog").iterdir():
        path.write_bytes(image_files.damage(path.read_bytes()))
    dataset = stream(tmp_path, max_bad_fraction=1.0)
    with pytest.raises(errors.DataError, match="No image of class 1"):
        dataset.in_memory()


def test_a_bad_image_is_found_out_only_once(root, tmp_path, monkeypatch):
    damaged = ("a/JPEG-40", "a/PNG-300", "b/GIF-32")
    copy = break_some(root, tmp_path / "copy", *damaged)
    dataset = stream(copy, max_bad_fraction=0.2)
    read_slowly, slow = dataset._read_or_replace, []

    def count(index):
        slow.append(dataset.images.storage.name(index))
        return read_slowly(index)

    monkeypatch.setattr(dataset, "_read_or_replace", count)
    read = dataset.reader()
    everything = tf.range(31, dtype=tf.int64)
    first = read(everything)
    assert set(slow) == set(damaged)  # And not the others of the batch.
    slow.clear()
    np.testing.assert_array_equal(read(everything), first)
    np.testing.assert_array_equal(dataset.at(np.arange(31)), first)
    assert_same(batches(dataset, 14), batches(dataset.in_memory(), 14))
    assert not slow[31:]  # Those of `at`, which always goes one by one.
    # One that replaces others may turn out bad later.
    other = np.flatnonzero(
        dataset._replacements.apply(np.arange(31)) != range(31)
    )
    replaced = int(other[0])
    [instead] = dataset._replacements.apply(np.array([replaced]))
    path = copy / dataset.images.storage.name(int(instead))
    path.write_bytes(image_files.damage(path.read_bytes()))
    again = read(everything)
    slow.clear()
    np.testing.assert_array_equal(read(everything), again)
    assert not slow


def test_a_batch_of_which_nothing_can_be_read_at_once(tmp_path):
    image_files.write_folder(tmp_path, 4)
    for name in ("0000", "0001"):
        path = tmp_path / "cat" / f"{name}.jpg"
        path.write_bytes(image_files.damage(path.read_bytes()))
    dataset = stream(tmp_path, max_bad_fraction=0.5)
    samples = dataset.reader()(tf.constant([1, 0], tf.int64))
    good = dataset.at(np.array([2, 2]))
    np.testing.assert_array_equal(samples, good)


def test_a_file_that_changes_or_goes_away_meanwhile(root, tmp_path):
    copy = break_some(root, tmp_path / "copy")
    dataset = stream(copy, max_bad_fraction=0.1)
    larger = image_files.encode(image_files.pixels(5, 64, 64))
    (copy / "a" / "PNG-32").write_bytes(larger)
    (copy / "b" / "PNG-32").unlink()
    batches(dataset, 8)  # More than an epoch.
    reasons = dataset.quarantine.reasons
    assert reasons["a/PNG-32"] == "it has changed since the start"
    assert reasons["b/PNG-32"] == "it was removed after the start"


def test_an_outage_is_waited_for_and_changes_nothing(root, monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_WAIT_SECS", 0.001)
    dataset = stream(root)
    expected = dataset.at(np.arange(5))
    storage = dataset.images.storage
    read, calls = storage.read, []

    def read_at_last(index):
        calls.append(index)
        if len(calls) < 8:
            raise OSError("503")
        return read(index)

    monkeypatch.setattr(storage, "read", read_at_last)
    np.testing.assert_array_equal(dataset.at(np.arange(5)), expected)
    assert calls == [0] * 7 + [0, 1, 2, 3, 4]
    assert not dataset.quarantine.reasons


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_long_outage_is_an_error_of_storage(
    root, tmp_path, monkeypatch, is_empty
):
    monkeypatch.setattr(patience, "_FIRST_WAIT_SECS", 0.001)
    monkeypatch.setattr(patience, "_PATIENCE_SECS", 0.01)
    copy = break_some(root, tmp_path / "copy")
    dataset = stream(copy)
    copy.rename(tmp_path / "elsewhere")
    if is_empty:
        copy.mkdir()  # What is left of a mount.
    with (
        pytest.raises(errors.StorageError, match="[ab]/.* could not be read"),
        quarantine.told_at_the_end(dataset.quarantine),
    ):
        batches(dataset, 1)
    assert not dataset.quarantine.reasons


def test_only_what_does_not_decode_is_bad(root, monkeypatch):
    dataset = stream(root)

    def fail(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    monkeypatch.setattr(dataset, "_decode", fail)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        dataset.at(np.arange(1))
    assert not dataset.quarantine.reasons


@pytest.mark.parametrize("num_parts", [1, 2])
def test_flips_belong_to_positions_of_the_global_batch(root, num_parts):
    dataset = stream(root).in_memory()
    plain = batches(dataset, 14)
    flipped = batches(dataset, 14, random_flip=True)
    num_flipped = 0
    for (samples, _), (others, _) in zip(plain, flipped, strict=True):
        for sample, other in zip(samples, others, strict=True):
            is_flipped = not np.array_equal(sample, other)
            np.testing.assert_array_equal(
                sample[:, ::-1] if is_flipped else sample, other
            )
            num_flipped += is_flipped
    assert 14 < num_flipped < 42  # Of 56.
    shares = batches(
        dataset,
        28,
        num_replicas=2,
        num_parts=num_parts,
        random_flip=True,
    )
    for step, (whole, _) in enumerate(flipped):
        one, other = (samples for samples, _ in shares[2 * step : 2 * step + 2])
        parts = [
            part
            for pair in zip(
                np.split(one, num_parts),
                np.split(other, num_parts),
                strict=True,
            )
            for part in pair
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_as_many_batches_as_there_are_images_at_least(root):
    with pytest.raises(errors.DataError, match="31 examples.*32"):
        batches(stream(root), 1, global_batch_size=32)


@pytest.mark.parametrize(
    ("image_format", "size", "resize", "common_size"),
    [
        ("JPEG", (71, 90), "crop", (36, 45)),
        ("PNG", (71, 90), "pad", (71, 90)),
        ("PNG", (300, 300), "fit", None),  # Too large for a whole batch.
    ],
)
def test_images_of_one_size_are_resized_together(
    tmp_path, image_format, size, resize, common_size
):
    height, width = size
    image_files.write_folder(
        tmp_path, 4, height=height, width=width, image_format=image_format
    )
    damaged = next((tmp_path / "cat").iterdir())
    damaged.write_bytes(image_files.damage(damaged.read_bytes()))
    dataset = stream(tmp_path, resize=resize, max_bad_fraction=0.2)
    assert dataset._common_size == common_size
    samples = dataset.reader()(tf.range(8, dtype=tf.int64))
    one_by_one = [dataset.at(np.array([index]))[0] for index in range(8)]
    np.testing.assert_array_equal(samples, one_by_one)
    assert len(dataset.quarantine.reasons) == 1


def test_a_header_that_lies_about_the_common_size(tmp_path):
    image_files.write_folder(tmp_path, 4, height=40, width=60)
    dataset = stream(tmp_path)
    expected = dataset.at(np.arange(8))
    dataset._common_size = (41, 60)  # As if the first ones were exceptions.
    samples = dataset.reader()(tf.range(8, dtype=tf.int64))
    np.testing.assert_array_equal(samples, expected)


def test_batches_in_order_are_smaller_where_images_are_large(root):
    dataset = stream(root, image_size=(512, 512))
    sizes = [len(batch) for batch in dataset.in_order()]
    assert max(sizes) == 8 < sum(sizes) == len(dataset.labels)
