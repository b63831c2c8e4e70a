"""What counts as divergence."""

import math

import pytest

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


def test_a_rollback_has_a_seed_of_its_own() -> None:
    assert divergence.seed_after(7, 0) == 7
    seeds = {
        divergence.seed_after(seed, num_rollbacks)
        for seed in (0, 1, 2, 2**31 - 1)
        for num_rollbacks in range(10)
    }
    assert len(seeds) == 40
    assert all(0 <= seed < 2**31 for seed in seeds)
