"""Random numbers are a function of their address, and good random numbers."""

import itertools
import math
import threading

import numpy as np
import pytest
import tensorflow as tf

from trainer import randomness

_KINDS = ("normal", "uniform", "mask")
# Of one example: whole counters of four words, and parts of them.
_EXAMPLE_SHAPES = ((), (1,), (7,), (8,), (3, 2, 3))


def _draw(
    kind,
    shape,
    *,
    seed=0,
    purpose="test",
    step=5,
    first_position=0,
    num_skipped=0,
):
    """Returns the draw that follows `num_skipped` others, as a tensor."""
    draws = randomness.Draws(
        seed=seed, purpose=purpose, step=step, first_position=first_position
    )
    for _ in range(num_skipped):
        draws.uniform((1,))
    if kind == "mask":
        return draws.mask(shape, keep_probability=0.5)[0]
    return getattr(draws, kind)(shape)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("num_replicas", [2, 4])
def test_replicas_draw_the_rows_of_the_whole_batch(kind, num_replicas):
    for example_shape in _EXAMPLE_SHAPES:
        whole = _draw(kind, (8, *example_shape)).numpy()
        share = 8 // num_replicas
        parts = [
            _draw(kind, (share, *example_shape), first_position=i * share)
            for i in range(num_replicas)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_replicas_of_a_strategy_draw_the_rows_of_the_whole_batch(num_replicas):
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(num_replicas)]
    )

    @tf.function
    def run(step):
        def replica_fn():
            replica = tf.distribute.get_replica_context()
            share = 8 // num_replicas
            first = replica.replica_id_in_sync_group * share
            return [
                _draw(kind, (share, 5), step=step, first_position=first)
                for kind in _KINDS
            ]

        return strategy.run(replica_fn)

    for kind, parts in zip(_KINDS, run(tf.constant(5, tf.int64)), strict=True):
        np.testing.assert_array_equal(
            np.concatenate(strategy.experimental_local_results(parts)),
            _draw(kind, (8, 5)),
        )


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_other_addresses_share_no_numbers(kind):
    shape = (64, 6)
    others = [
        {},
        {"seed": 1},
        {"purpose": "other"},
        {"step": 6},
        {"step": 5 + 2**32},
        {"step": 2**40},
        {"num_skipped": 1},
        {"first_position": 64},
        {"first_position": 2**33},
    ]
    numbers = [_draw(kind, shape, **other).numpy().ravel() for other in others]
    for one, two in itertools.combinations(numbers, 2):
        # Of 384 numbers with 2^24 values, 0.009 are common by chance.
        assert len(np.intersect1d(one, two)) <= 1
        # Nor are they a function of each other.
        assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(one.size)
    # Within a draw no number repeats either.
    assert len(np.unique(np.concatenate(numbers))) > 0.99 * 9 * one.size


def test_masks_of_other_addresses_agree_by_chance_only():
    shape = (100, 101)
    first = _draw("mask", shape).numpy()
    for other in (
        {"seed": 1},
        {"purpose": "other"},
        {"step": 6},
        {"num_skipped": 1},
        {"first_position": 100},
    ):
        agreement = np.mean(first == _draw("mask", shape, **other).numpy())
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(first.size)


@pytest.mark.parametrize("kind", _KINDS)
def test_the_same_address_gives_the_same_numbers_in_every_way(kind):
    eager = _draw(kind, (5, 7), step=9, first_position=3).numpy()

    def draw(step, first_position):
        return _draw(kind, (5, 7), step=step, first_position=first_position)

    arguments = tf.constant(9, tf.int64), tf.constant(3, tf.int64)
    np.testing.assert_array_equal(draw(*arguments), eager)
    np.testing.assert_array_equal(tf.function(draw)(*arguments), eager)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("shape", [(5, 7), (64, 100), (6,)])
def test_xla_draws_the_same_numbers(kind, shape):
    def draw(step, first_position):
        return _draw(kind, shape, step=step, first_position=first_position)

    arguments = tf.constant(2**40 + 9), tf.constant(3, tf.int64)
    compiled = tf.function(draw, jit_compile=True)(*arguments)
    np.testing.assert_array_equal(compiled, draw(*arguments))


def test_normal_numbers_are_normal():
    numbers = _draw("normal", (1000, 201)).numpy()
    assert numbers.dtype == np.float32
    n = numbers.size
    # Each moment within 5 of its standard deviations.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15)):
        error = np.mean(numbers.astype(np.float64) ** power) - moment
        assert abs(error) < 5 * math.sqrt(variance / n)
    for bound in (0.5, 1.0, 2.0, 3.0):
        share = math.erfc(bound / math.sqrt(2)) / 2
        deviation = math.sqrt(share * (1 - share) / n)
        assert abs(np.mean(numbers > bound) - share) < 5 * deviation
        assert abs(np.mean(numbers < -bound) - share) < 5 * deviation
    # The two numbers of a pair come from one radius; neighbours as well.
    for distance in (1, 100, 101):
        one, two = numbers[:, :-distance], numbers[:, distance:]
        for f in (np.asarray, np.square):
            correlation = np.corrcoef(f(one).ravel(), f(two).ravel())[0, 1]
            assert abs(correlation) < 5 / math.sqrt(one.size)


def test_uniform_numbers_are_uniform():
    numbers = _draw("uniform", (1000, 201)).numpy()
    assert numbers.dtype == np.float32
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=100, range=(0.0, 1.0))
    chi_squared = np.sum((counts - numbers.size / 100) ** 2) * (
        100 / numbers.size
    )
    # 99 degrees of freedom: mean 99, standard deviation 14.
    assert abs(chi_squared - 99) < 5 * 14
    correlation = np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())
    assert abs(correlation[0, 1]) < 5 / math.sqrt(numbers.size)


@pytest.mark.parametrize("keep_probability", [0.001, 0.3, 0.5, 0.7, 0.999])
def test_masks_keep_the_share_that_they_report(keep_probability):
    draws = randomness.Draws(seed=0, purpose="test", step=0)
    mask, actual = draws.mask((500, 11, 13), keep_probability=keep_probability)
    assert mask.dtype == tf.bool
    assert mask.shape == (500, 11, 13)
    assert (actual * 2**16).is_integer()
    assert abs(actual - keep_probability) <= 2**-17
    deviation = math.sqrt(actual * (1 - actual) / mask.numpy().size)
    assert abs(mask.numpy().mean() - actual) < 5 * deviation
    # Both halves of each word decide.
    even, odd = mask.numpy()[:, 0, ::2], mask.numpy()[:, 0, 1::2]
    for half in (even, odd):
        deviation = math.sqrt(actual * (1 - actual) / half.size)
        assert abs(half.mean() - actual) < 5 * deviation


@pytest.mark.parametrize("keep_probability", [0.0, 1.0])
def test_masks_at_the_bounds_are_exact(keep_probability):
    draws = randomness.Draws(seed=0, purpose="test", step=0)
    mask, actual = draws.mask((400, 1001), keep_probability=keep_probability)
    assert actual == keep_probability
    assert np.all(mask.numpy() == bool(keep_probability))


def test_layers_draw_from_the_innermost_block_of_their_thread():
    outer = randomness.Draws(seed=0, purpose="outer", step=0)
    inner = randomness.Draws(seed=0, purpose="inner", step=0)
    seen = []

    def look():
        try:
            seen.append(randomness.current_draws())
        except RuntimeError:
            seen.append(None)

    with randomness.draw_from(outer):
        with randomness.draw_from(inner):
            look()
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        look()
    assert seen == [inner, None, outer]


def test_threads_do_not_see_each_other_s_blocks():
    barrier = threading.Barrier(4, timeout=10)
    seen = {}

    def work(purpose):
        draws = randomness.Draws(seed=0, purpose=purpose, step=0)
        with randomness.draw_from(draws):
            barrier.wait()  # All are inside of their blocks now.
            seen[purpose] = randomness.current_draws() is draws
            barrier.wait()

    threads = [
        threading.Thread(target=work, args=[name]) for name in ("a", "b", "c")
    ]
    for thread in threads:
        thread.start()
    barrier.wait()
    with pytest.raises(RuntimeError):
        randomness.current_draws()
    barrier.wait()
    for thread in threads:
        thread.join()
    assert seen == {"a": True, "b": True, "c": True}


def test_a_draw_outside_of_any_block_says_what_to_do():
    draws = randomness.Draws(seed=0, purpose="test", step=0)
    with pytest.raises(KeyError), randomness.draw_from(draws):
        raise KeyError  # The block is left by an exception, too.
    with pytest.raises(RuntimeError, match="draw_from.*training=False"):
        randomness.current_draws()
