"""The factor of the learning rates, step by step."""

import math

import numpy as np
import pytest

from trainer import config, errors, learning_rates
from trainer.learning_rates import LearningRateFactor


def _factors(steps, **settings) -> list[float]:
    factor = LearningRateFactor(**settings)
    return [float(factor(step)) for step in steps]


def test_by_default_nothing_changes():
    assert LearningRateFactor().is_constant
    assert _factors([0, 1, 10**9]) == [1.0, 1.0, 1.0]


def test_a_warm_up_ends_after_its_steps():
    settings = {"warmup_steps": 4}
    assert not LearningRateFactor(**settings).is_constant
    assert _factors(range(6), **settings) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_decay_follows_the_warm_up_and_stays_at_its_end():
    settings = {
        "schedule": "linear",
        "warmup_steps": 2,
        "decay_steps": 10,
        "final_factor": 0.5,
    }
    np.testing.assert_allclose(
        _factors([0, 1, 2, 7, 11, 12, 10**9], **settings),
        [0.5, 1.0, 1.0, 0.75, 0.55, 0.5, 0.5],
        rtol=1e-6,
    )


def test_cosine_decay_is_the_paper_s():
    expected = [
        0.25 + 0.75 * 0.5 * (1.0 + math.cos(math.pi * t / 8)) for t in range(9)
    ]
    actual = _factors(
        range(9), schedule="cosine", decay_steps=8, final_factor=0.25
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_an_unknown_schedule_names_the_known_ones():
    with pytest.raises(errors.UsageError, match="=steps is unknown.*cosine"):
        LearningRateFactor(schedule="steps")


def test_the_flag_knows_all_schedules():
    assert config.LEARNING_RATE_SCHEDULES == tuple(learning_rates.SCHEDULES)
