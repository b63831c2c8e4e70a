"""Statistics on features, against closed forms and other packages."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn.metrics import pairwise
from sklearn.neighbors import NearestNeighbors

from trainer import errors
from trainer.evaluation import frechet, kernel, manifold, metrics
from trainer.evaluation.class_score import ClassScore
from trainer.evaluation.feature_set import FeatureSet
from trainer.evaluation.moments import Moments

RANDOM = np.random.default_rng(0)


def normal(count, dim, *, mean=0.0, scale=1.0, seed=0):
    return mean + scale * np.random.default_rng(seed).normal(size=[count, dim])


def moments_of(features, batch=100):
    moments = Moments(features.shape[1])
    for start in range(0, len(features), batch):
        moments.add(features[start : start + batch])
    return moments


def exact_moments(mean, covariance):
    """The moments of a distribution itself instead of samples."""
    moments = Moments(len(mean))
    moments.count = 2
    moments.mean = np.asarray(mean, float)
    moments._scatter = np.asarray(covariance, float)  # Divided by 2 - 1.
    return moments


def feature_set(features, probabilities=None, *, max_kept=10_000):
    classes = 0 if probabilities is None else probabilities.shape[1]
    result = FeatureSet(
        dim=features.shape[1], num_classes=classes, max_kept=max_kept
    )
    result.add(features, probabilities)
    return result


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_streamed_moments_are_those_of_all_at_once(batch):
    # So far from 0 that E[x^2] - E[x]^2 would have no right digit.
    features = normal(200, 5, mean=1e8)
    moments = moments_of(features, batch)
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(
        moments.covariance, np.cov(features, rowvar=False), rtol=1e-6
    )


def test_merged_moments_are_those_of_both():
    one, other = normal(30, 4, seed=1), normal(50, 4, mean=3, seed=2)
    merged = moments_of(one)
    merged.merge(moments_of(other))
    both = moments_of(np.concatenate([one, other]), 1000)
    assert merged.count == 80
    np.testing.assert_allclose(merged.mean, both.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, both.covariance, rtol=1e-12)


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="1 features"):
        _ = moments_of(normal(1, 3)).covariance


def test_frechet_distance_of_gaussians_that_commute_is_their_closed_form():
    # Rotated alike, so that the covariances commute but are not diagonal.
    rotation = scipy.stats.ortho_group.rvs(6, random_state=1)
    scales1, scales2 = RANDOM.uniform(0.1, 3, 6), RANDOM.uniform(0.1, 3, 6)
    means = RANDOM.normal(size=[2, 6])
    value = frechet.frechet_distance(
        exact_moments(means[0], rotation * scales1**2 @ rotation.T),
        exact_moments(means[1], rotation * scales2**2 @ rotation.T),
    )
    expected = np.sum((means[0] - means[1]) ** 2)
    expected += np.sum((scales1 - scales2) ** 2)
    assert value == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_agrees_with_scipys_root():
    real = moments_of(normal(300, 20, seed=1) @ RANDOM.normal(size=[20, 20]))
    fake = moments_of(normal(400, 20, seed=2) @ RANDOM.normal(size=[20, 20]))
    root = scipy.linalg.sqrtm(real.covariance @ fake.covariance)
    expected = np.sum((real.mean - fake.mean) ** 2) + np.trace(
        real.covariance + fake.covariance - 2 * root.real
    )
    value = frechet.frechet_distance(real, fake)
    assert value == pytest.approx(expected, rel=1e-6)
    assert frechet.frechet_distance(fake, real) == pytest.approx(value)


def test_frechet_distance_bears_singular_covariances():
    # Five samples in 50 dimensions; and features that never change.
    few = moments_of(normal(5, 50))
    constant = moments_of(np.ones([5, 50]))
    assert frechet.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    expected = np.sum((few.mean - 1) ** 2) + np.trace(few.covariance)
    value = frechet.frechet_distance(few, constant)
    assert value == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_samples_is_too_large_by_a_share_of_one_over_n():
    def distance(count, seed):
        return frechet.frechet_distance(
            moments_of(normal(count, 10, seed=2 * seed)),
            moments_of(normal(count, 10, seed=2 * seed + 1)),
        )

    small = np.mean([distance(200, seed) for seed in range(20)])
    large = np.mean([distance(800, seed) for seed in range(20)])
    assert small / large == pytest.approx(4, rel=0.15)


def test_kernel_distance_is_the_estimator_written_out():
    real, fake = normal(40, 8, seed=1), normal(40, 8, mean=0.3, seed=2)
    within = 0.0
    for samples in (real, fake):
        matrix = pairwise.polynomial_kernel(samples, degree=3, coef0=1)
        np.fill_diagonal(matrix, 0.0)
        within += matrix.sum() / (40 * 39)
    across = pairwise.polynomial_kernel(real, fake, degree=3, coef0=1)
    value = kernel.kernel_distance(real, fake)
    assert value.value == pytest.approx(within - 2 * across.mean(), abs=1e-10)
    assert math.isnan(value.standard_error)  # There is only one such subset.


def test_kernel_distance_is_unbiased_and_knows_its_error():
    same = [
        kernel.kernel_distance(
            normal(20, 3, seed=2 * seed), normal(20, 3, seed=2 * seed + 1)
        ).value
        for seed in range(1000)
    ]
    error = np.std(same) / math.sqrt(len(same))
    assert abs(np.mean(same)) < 3 * error
    # The diagonals are 8 on average, or more, and the rest is about 2: with
    # them in it, the mean would be off by far more than that.
    assert 2 * (8 - 2) / 20 > 10 * error


def test_kernel_distance_of_shifted_gaussians_is_its_closed_form():
    # In one dimension, with x, x' ~ N(0, 1) and y, y' ~ N(m, 1):
    # E(xx'+1)^3 = 4; E(yy'+1)^3 = M3^2 + 3 M2^2 + 3 M1^2 + 1;
    # E(xy+1)^3 = 3 M2 + 1, the odd moments of x being 0.
    mean = 0.7
    m1, m2, m3 = mean, mean**2 + 1, mean**3 + 3 * mean
    expected = 4 + (m3**2 + 3 * m2**2 + 3 * m1**2 + 1) - 2 * (3 * m2 + 1)
    values = [
        kernel.kernel_distance(
            normal(50, 1, seed=2 * seed),
            normal(50, 1, mean=mean, seed=2 * seed + 1),
        ).value
        for seed in range(500)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert np.mean(values) == pytest.approx(expected, abs=3 * error)
    assert error < expected / 10


def test_kernel_distance_says_how_much_its_subsets_scatter():
    real, fake = normal(500, 4, seed=1), normal(500, 4, seed=2)
    value = kernel.kernel_distance(real, fake, num_subsets=50, subset_size=40)
    assert 0 < value.standard_error < 0.05
    assert value == kernel.kernel_distance(
        real, fake, num_subsets=50, subset_size=40
    )


def test_precision_and_recall_agree_with_another_search():
    real = normal(700, 5, mean=100, seed=1)
    fake = normal(600, 5, mean=100.5, scale=0.8, seed=2)

    def share(samples, centres):
        search = NearestNeighbors(n_neighbors=4).fit(centres)
        radii = search.kneighbors(centres)[0][:, -1]
        distances = pairwise.euclidean_distances(samples, centres)
        return (distances <= radii).any(axis=1).mean()

    value = manifold.precision_recall(real, fake)
    assert value.precision == pytest.approx(share(fake, real), abs=1e-6)
    assert value.recall == pytest.approx(share(real, fake), abs=1e-6)
    assert 0 < value.recall < value.precision < 1


def test_density_and_coverage_agree_with_another_search():
    real, fake = normal(700, 5, seed=1), normal(600, 5, scale=0.7, seed=2)
    search = NearestNeighbors(n_neighbors=6).fit(real)
    radii = search.kneighbors(real)[0][:, -1]
    is_inside = pairwise.euclidean_distances(fake, real) <= radii
    value = manifold.density_coverage(real, fake)
    assert value.density == pytest.approx(
        is_inside.sum(axis=1).mean() / 5, abs=1e-6
    )
    assert value.coverage == pytest.approx(
        is_inside.any(axis=0).mean(), abs=1e-6
    )


def test_coverage_of_the_same_distribution_is_its_closed_form():
    # Lemma 2 of the paper: E[coverage] is 1 - ((N-1)...(N-k)) / ((2N-1)...),
    # about 1 - 2^-k, and E[density] is 1.
    values = [
        manifold.density_coverage(
            normal(300, 3, seed=2 * seed), normal(300, 3, seed=2 * seed + 1)
        )
        for seed in range(20)
    ]
    assert np.mean([v.coverage for v in values]) == pytest.approx(
        1 - 2**-5, abs=0.01
    )
    assert np.mean([v.density for v in values]) == pytest.approx(1, abs=0.05)


def test_collapsed_fakes_keep_precision_and_lose_recall():
    real = normal(500, 4, seed=1)
    fake = real[0] + normal(500, 4, scale=1e-3, seed=2)
    precision_recall = manifold.precision_recall(real, fake)
    assert precision_recall.precision == 1
    assert precision_recall.recall < 0.05
    assert manifold.density_coverage(real, fake).coverage < 0.1


def test_too_few_samples_for_neighbours_are_refused():
    with pytest.raises(ValueError, match="3 features have no 3 neighbours"):
        manifold.precision_recall(normal(3, 2), normal(9, 2))


def test_class_score_is_that_of_the_entropies():
    probabilities = RANDOM.dirichlet(np.full(10, 0.2), size=200)
    score = ClassScore(10)
    for start in range(0, 200, 30):
        score.add(probabilities[start : start + 30])
    divergences = scipy.stats.entropy(
        probabilities, probabilities.mean(axis=0, keepdims=True), axis=1
    )
    assert score.value == pytest.approx(np.exp(divergences.mean()), abs=1e-6)


def test_class_score_goes_from_1_to_the_number_of_classes():
    sure = ClassScore(10)
    sure.add(np.eye(10))
    assert sure.value == pytest.approx(10)
    vague = ClassScore(10)
    vague.add(np.full([7, 10], 0.1))
    assert vague.value == pytest.approx(1)


def test_a_set_keeps_a_bounded_number_and_counts_all():
    features = normal(1000, 3)
    small = FeatureSet(dim=3, num_classes=0, max_kept=64)
    for start in range(0, 1000, 50):
        small.add(features[start : start + 50], None)
    assert small.count == 1000
    np.testing.assert_array_equal(small.kept, features[:64].astype("f4"))
    np.testing.assert_allclose(small.moments.mean, features.mean(axis=0))


def test_diversity_is_the_distance_between_two_samples():
    features = normal(300, 6, scale=2.5)
    distances = pairwise.euclidean_distances(features, squared=True)
    expected = math.sqrt(distances.sum() / (300 * 299))
    assert feature_set(features).diversity == pytest.approx(expected, rel=1e-9)


def test_two_merged_sets_are_one():
    features, probabilities = normal(90, 3), RANDOM.dirichlet(np.ones(4), 90)
    merged = feature_set(features[:40], probabilities[:40])
    merged.merge(feature_set(features[40:], probabilities[40:]))
    both = feature_set(features, probabilities)
    np.testing.assert_array_equal(merged.kept, both.kept)
    for name in metrics.METRICS:
        merged_values = metrics.measure([name], both, merged)
        assert merged_values == pytest.approx(
            metrics.measure([name], both, both), abs=1e-9, nan_ok=True
        )


def test_every_metric_names_its_values():
    features, probabilities = normal(50, 3), RANDOM.dirichlet(np.ones(4), 50)
    one = feature_set(features, probabilities)
    other = feature_set(normal(50, 3, seed=3), probabilities)
    assert set(metrics.measure(list(metrics.METRICS), one, other)) == {
        "frechet_distance",
        "kernel_distance",
        "kernel_distance_standard_error",
        "precision",
        "recall",
        "density",
        "coverage",
        "classifier_score",
        "diversity",
    }


def test_features_without_classes_have_no_classifier_score():
    features = feature_set(normal(50, 3))
    assert metrics.measure(["classifier_score"], features, features) == {}


def test_an_unknown_metric_is_answered_with_the_known_ones():
    with pytest.raises(errors.UsageError, match="'fid' is unknown.*frechet"):
        metrics.check_names(["kernel_distance", "fid"])
