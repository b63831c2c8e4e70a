"""The order of the data, and how it is dealt out to replicas."""

import itertools
import time

import numpy as np
import pytest
import tensorflow as tf

from trainer import data, errors
from trainer.data import array_dataset, pipeline

NUM_EXAMPLES = 107
BATCH_SIZE = 8
STEPS = 13  # Of 8 examples each, which leaves 3 out.


@pytest.fixture(scope="module")
def dataset():
    """Examples that tell their index by their label and by each pixel."""
    index = np.arange(NUM_EXAMPLES)
    samples = np.broadcast_to(
        index.astype(np.uint8)[:, None, None, None], (NUM_EXAMPLES, 4, 5, 3)
    )
    return data.ArrayDataset(
        samples=np.ascontiguousarray(samples),
        labels=index.astype(np.int32),
    )


def batches(dataset, *, num_replicas=1, first_step=0, seed=0):
    return pipeline.training_batches(
        dataset,
        global_batch_size=BATCH_SIZE,
        num_replicas=num_replicas,
        first_step=first_step,
        seed=seed,
    )


def labels(dataset, *, num_steps, num_replicas=1, **kwargs):
    """Returns int32 [num_steps, BATCH_SIZE]."""
    stream = batches(dataset, num_replicas=num_replicas, **kwargs)
    elements = itertools.islice(stream, num_steps * num_replicas)
    rows = [element["label"].numpy() for element in elements]
    return np.concatenate(rows).reshape(num_steps, BATCH_SIZE)


@pytest.mark.parametrize("num_parts", [1, 2])
def test_processes_together_deal_out_what_one_does(dataset, num_parts):
    def elements(**kwargs):
        stream = pipeline.training_batches(
            dataset,
            global_batch_size=BATCH_SIZE,
            num_replicas=4,
            num_parts=num_parts,
            first_step=5,
            seed=0,
            **kwargs,
        )
        return [
            e["label"].numpy().tolist() for e in itertools.islice(stream, 8)
        ]

    first = elements(local_replicas=range(2))
    second = elements(local_replicas=range(2, 4))
    alone = elements()
    # Two steps of four replicas.
    assert alone == [*first[:2], *second[:2], *first[2:4], *second[2:4]]


def test_a_part_is_the_same_piece_of_the_batch_for_any_number_of_replicas(
    dataset,
):
    [whole] = labels(dataset, num_steps=1)
    for num_replicas in (1, 2):
        stream = pipeline.training_batches(
            dataset,
            global_batch_size=BATCH_SIZE,
            num_replicas=num_replicas,
            num_parts=2,
            first_step=0,
            seed=0,
        )
        shares = [
            np.split(element["label"].numpy(), 2)
            for element in itertools.islice(stream, num_replicas)
        ]
        for part, expected in enumerate(np.split(whole, 2)):
            together = np.concatenate([share[part] for share in shares])
            np.testing.assert_array_equal(together, expected)


def epoch_order(epoch, *, num_examples, seed=0):
    """Returns an epoch's examples, in batches of one."""
    return pipeline.example_indices(
        epoch,
        tf.range(num_examples),
        num_examples=num_examples,
        global_batch_size=num_examples,
        seed=seed,
    ).numpy()


def test_steps_per_epoch_drops_the_remainder():
    assert pipeline.steps_per_epoch(60_000, 256) == 234
    assert pipeline.steps_per_epoch(256, 256) == 1
    with pytest.raises(errors.DataError, match="255 examples.*256"):
        pipeline.steps_per_epoch(255, 256)


@pytest.mark.parametrize("num_examples", [1, 2, 3, 10, 1024, 1797, 60_000])
def test_an_epoch_is_a_permutation(num_examples):
    order = epoch_order(3, num_examples=num_examples)
    np.testing.assert_array_equal(np.sort(order), np.arange(num_examples))


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_orders_are_independent(other):
    # With the 4 rounds of tf.random.experimental.index_shuffle, the correlation
    # between two epochs is 0.9 and that between neighbours 0.09.
    n = 60_000
    first = epoch_order(0, num_examples=n)
    second = epoch_order(
        other.get("epoch", 0), num_examples=n, seed=other.get("seed", 0)
    )
    five_sigma = 5 / n**0.5
    for x, y in (
        (first, second),
        (first, np.arange(n)),
        (first[1:], first[:-1]),
        (second[1:], second[:-1]),
    ):
        assert abs(np.corrcoef(x, y)[0, 1]) < five_sigma
    assert np.unique(first ^ second, return_counts=True)[1].max() < 20


def test_no_example_repeats_within_an_epoch(dataset):
    epochs = labels(dataset, num_steps=3 * STEPS).reshape(3, -1)
    left_out = []
    for order in epochs:
        assert len(np.unique(order)) == STEPS * BATCH_SIZE
        left_out.append(frozenset(range(NUM_EXAMPLES)) - set(order))
    assert len(set(left_out)) == 3
    assert not np.array_equal(epochs[0], epochs[1])


def test_the_seed_decides_the_order(dataset):
    first, same, other = (
        labels(dataset, num_steps=STEPS, seed=seed) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_the_order_is_pinned():
    # Another order would make every checkpoint resume on other batches.
    assert epoch_order(2, num_examples=10, seed=5).tolist() == [
        0,
        8,
        6,
        4,
        1,
        5,
        3,
        7,
        9,
        2,
    ]


@pytest.mark.parametrize("first_step", [1, STEPS - 1, STEPS, 2 * STEPS + 5])
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_resuming_continues_the_stream(dataset, first_step, num_replicas):
    whole = labels(dataset, num_steps=first_step + 15)
    resumed = labels(
        dataset,
        num_steps=15,
        num_replicas=num_replicas,
        first_step=first_step,
    )
    np.testing.assert_array_equal(resumed, whole[first_step:])


def test_resuming_late_replays_nothing(dataset):
    # A replay of so many steps would take hours; int32 would overflow.
    start = time.monotonic()
    labels(dataset, num_steps=2, first_step=10**10)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_element_k_is_replica_k_of_its_step(dataset, num_replicas):
    whole = labels(dataset, num_steps=STEPS + 2)
    size = BATCH_SIZE // num_replicas
    stream = iter(batches(dataset, num_replicas=num_replicas))
    for step, replica in itertools.product(
        range(STEPS + 2), range(num_replicas)
    ):
        rows = whole[step, replica * size : (replica + 1) * size]
        np.testing.assert_array_equal(next(stream)["label"], rows)


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_mirrored_strategy_gives_each_replica_its_rows(dataset, num_replicas):
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < num_replicas:
        pytest.skip(f"{num_replicas} logical CPU devices are needed")
    strategy = tf.distribute.MirroredStrategy(
        [device.name for device in devices[:num_replicas]]
    )
    stream = iter(
        strategy.distribute_datasets_from_function(
            lambda context: batches(
                dataset, num_replicas=context.num_replicas_in_sync
            )
        )
    )

    @tf.function
    def next_labels():
        def replica_labels(batch):
            replica = tf.distribute.get_replica_context()
            return replica.replica_id_in_sync_group, batch["label"]

        return strategy.run(replica_labels, (next(stream),))

    whole = labels(dataset, num_steps=STEPS + 2)
    size = BATCH_SIZE // num_replicas
    for step in range(STEPS + 2):
        ids, rows = map(strategy.experimental_local_results, next_labels())
        for replica, row in zip(ids, rows, strict=True):
            first = int(replica) * size
            np.testing.assert_array_equal(
                row, whole[step, first : first + size]
            )


def test_batches_are_bytes_of_static_shape(dataset):
    stream = batches(dataset, num_replicas=2)
    assert stream.element_spec == {
        "sample": tf.TensorSpec([4, 4, 5, 3], tf.uint8),
        "label": tf.TensorSpec([4], tf.int32),
    }


def test_sample_and_label_belong_together(dataset):
    for batch in batches(dataset).take(STEPS):
        index = batch["sample"].numpy()
        expected = batch["label"].numpy()[:, None, None, None]
        np.testing.assert_array_equal(
            index, np.broadcast_to(expected, index.shape)
        )


def test_samples_of_any_rank(dataset):
    waveforms = data.ArrayDataset(
        dataset.samples.reshape(NUM_EXAMPLES, 20, 3),
        dataset.labels,
    )
    assert batches(waveforms).element_spec["sample"].shape == (8, 20, 3)


def test_the_stream_is_known_to_be_endless(dataset):
    # A distributed iterator otherwise checks for the end at every step.
    assert batches(dataset).cardinality() == tf.data.INFINITE_CARDINALITY


def test_refuses_what_cannot_be_shared_or_filled(dataset):
    with pytest.raises(ValueError, match="=8 for num_replicas=3"):
        batches(dataset, num_replicas=3)
    with pytest.raises(errors.DataError, match="107 examples.*128"):
        pipeline.training_batches(
            dataset,
            global_batch_size=128,
            num_replicas=1,
            first_step=0,
            seed=0,
        )


@pytest.mark.parametrize("copies", [True, False])
def test_large_data_are_not_held_twice(dataset, copies):
    samples = np.empty(dataset.samples.shape, np.uint8)[1:]
    if not copies:
        samples = array_dataset.aligned_empty(samples.shape)
    samples[:] = dataset.samples[1:]
    read = data.ArrayDataset(samples, dataset.labels[1:]).reader()
    samples[5] = 255
    row = read(tf.constant([5], tf.int64)).numpy()
    assert (row == (6 if copies else 255)).all()
    kept = read(tf.constant([7], tf.int64))
    del samples
    np.testing.assert_array_equal(kept, dataset.samples[[8]])
