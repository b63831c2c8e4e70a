"""The metrics by name. To add one, write a function and add a line."""

from collections.abc import Callable, Sequence

from trainer import errors
from trainer.evaluation import frechet, kernel, manifold
from trainer.evaluation.feature_set import FeatureSet

Values = dict[str, float]


def _frechet_distance(real: FeatureSet, fake: FeatureSet) -> Values:
    return {
        "frechet_distance": frechet.frechet_distance(real.moments, fake.moments)
    }


def _kernel_distance(real: FeatureSet, fake: FeatureSet) -> Values:
    fewer = min(len(real.kept), len(fake.kept))
    # Subsets of all there is would not differ, and tell no error.
    size = min(kernel.SUBSET_SIZE, fewer // 2)
    result = kernel.kernel_distance(real.kept, fake.kept, subset_size=size)
    return {
        "kernel_distance": result.value,
        "kernel_distance_standard_error": result.standard_error,
    }


def _precision_recall(real: FeatureSet, fake: FeatureSet) -> Values:
    return manifold.precision_recall(real.kept, fake.kept)._asdict()


def _density_coverage(real: FeatureSet, fake: FeatureSet) -> Values:
    return manifold.density_coverage(real.kept, fake.kept)._asdict()


def _classifier_score(real: FeatureSet, fake: FeatureSet) -> Values:
    if fake.class_score is None:
        return {}  # The features come without probabilities of classes.
    return {"classifier_score": fake.class_score.value}


def _diversity(real: FeatureSet, fake: FeatureSet) -> Values:
    return {"diversity": fake.diversity / real.diversity}


# Each compares fakes with reals and names its values; for the floor, two sets
# of reals take both places.
METRICS: dict[str, Callable[[FeatureSet, FeatureSet], Values]] = {
    "frechet_distance": _frechet_distance,
    "kernel_distance": _kernel_distance,
    "precision_recall": _precision_recall,
    "density_coverage": _density_coverage,
    "classifier_score": _classifier_score,
    "diversity": _diversity,
}


def check_names(names: Sequence[str]) -> None:
    """Refuses names of no metric.

    Raises:
      UsageError: the message lists the known ones.
    """
    for name in names:
        if name not in METRICS:
            raise errors.UsageError(
                f"--metrics={','.join(names)}: {name!r} is unknown. Choose from"
                f" {', '.join(METRICS)}, with commas between them."
            )


def measure(names: Sequence[str], real: FeatureSet, fake: FeatureSet) -> Values:
    """Returns the values of the named metrics, by their own names."""
    values = {}
    for name in names:
        values.update(METRICS[name](real, fake))
    return values
