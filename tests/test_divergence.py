"""What counts as divergence."""

import math

import pytest
import tensorflow as tf

from trainer import divergence, errors


def test_an_overflow_is_divergence_only_at_the_lowest_scale() -> None:
    good = {"g_loss": 1.0, "d_loss": 1.0, "real_probability": 0.5}
    scaled = {**good, "g_loss_scale": 1.0, "d_loss_scale": 8.0}
    divergence.check_metrics(scaled, 3)
    # The discriminator's scale can still fall, the generator's cannot.
    divergence.check_metrics({**scaled, "d_gradient_norm": math.inf}, 3)
    divergence.check_metrics({**scaled, "real_probability": math.nan}, 3)
    with pytest.raises(errors.DivergedError, match="g_gradient_norm is inf"):
        divergence.check_metrics({**scaled, "g_gradient_norm": math.inf}, 3)
    with pytest.raises(errors.DivergedError, match="real_probability is nan"):
        divergence.check_metrics({**good, "real_probability": math.nan}, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_in_one_variable_is_divergence(bad: float) -> None:
    variables = [
        tf.Variable(tf.ones([3, 2])),
        tf.Variable(7, dtype=tf.int64),
        tf.Variable([1.0, 2.0], name="kernel"),
    ]
    divergence.check_variables(variables, 5)
    variables[2][1].assign(bad)
    with pytest.raises(errors.DivergedError, match="kernel.*step 5"):
        divergence.check_variables(variables, 5)


def test_a_rollback_has_a_seed_of_its_own() -> None:
    assert divergence.seed_after(7, 0) == 7
    seeds = {
        divergence.seed_after(seed, num_rollbacks)
        for seed in (0, 1, 2, 2**31 - 1)
        for num_rollbacks in range(10)
    }
    assert len(seeds) == 40
    assert all(0 <= seed < 2**31 for seed in seeds)
