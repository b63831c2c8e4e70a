"""Samples are functions of their own latents and label, and of nothing else."""

import numpy as np
import pytest

from tests import stored_runs, tiny
from trainer import generation


@pytest.fixture(name="plain", scope="module")
def _plain():
    return generation.Generation(tiny.build_generator(latent_dim=10))


def collect(made, count, **arguments):
    return np.concatenate(list(made.stream(count, **arguments)))


def test_a_longer_stream_begins_like_a_shorter_one(plain):
    # 64 are made at a time.
    short = collect(plain, 5, seed=1, purpose="test")
    long = collect(plain, 130, seed=1, purpose="test")
    assert short.shape == (5, 28, 28, 1)
    assert long.shape == (130, 28, 28, 1)
    np.testing.assert_array_equal(short, long[:5])
    # No part is that of before.
    assert len(np.unique(long.reshape([130, -1]), axis=0)) == 130


def test_seed_and_purpose_decide_the_latents(plain):
    def draw(**changes):
        arguments = {"seed": 1, "first": 0, "count": 4, "purpose": "a"}
        return plain.latents(**(arguments | changes))

    np.testing.assert_array_equal(draw(), draw())
    np.testing.assert_array_equal(draw()[2:], draw(first=2, count=2))
    assert not np.array_equal(draw(), draw(seed=2))
    assert not np.array_equal(draw(), draw(purpose="b"))


def test_a_stream_holds_a_bounded_number(plain):
    sizes = [len(part) for part in plain.stream(130, seed=0, purpose="test")]
    assert sizes == [64, 64, 2]


def test_samples_are_of_the_classes_asked_for():
    generator = stored_runs.conditional_generator()
    made = generation.Generation(generator)
    assert generation.takes_labels(generator)
    labels = np.arange(70, dtype=np.int32) % 2
    samples = made.samples(np.zeros([70, 3], np.float32), labels)
    np.testing.assert_allclose(samples.mean(axis=(1, 2, 3)), labels)


def test_classes_that_are_not_asked_for_are_missed():
    made = generation.Generation(stored_runs.conditional_generator())
    with pytest.raises(ValueError, match="takes labels"):
        made.samples(np.zeros([1, 3], np.float32))
