"""Notices when a generator that was good is no longer."""

from collections.abc import Mapping

# A generator that forgets half of the variety that it had, or goes to three
# times the distance, is not fluctuating. Both are measured against the best of
# the same run, since every run starts far away and with little variety.
_MIN_SHARE_OF_DIVERSITY = 0.5
_MAX_TIMES_THE_DISTANCE = 3.0

DISTANCE = "frechet_distance"
DIVERSITY = "diversity"


def describe(
    values: Mapping[str, float],
    *,
    best: Mapping[str, float],
    floor: Mapping[str, float],
) -> str | None:
    """Says how the samples have collapsed, or None if they have not.

    Args:
      values: of the evaluation.
      best: of the best one before, measured in the same way.
      floor: of real samples; below it, distances say nothing.
    """
    diversity, best_diversity = values[DIVERSITY], best[DIVERSITY]
    if diversity < _MIN_SHARE_OF_DIVERSITY * best_diversity:
        return (
            f"samples differ from each other {diversity:.3g} times as much as"
            f" real ones, after {best_diversity:.3g} at the best"
        )
    distance, best_distance = values[DISTANCE], best[DISTANCE]
    if distance > _MAX_TIMES_THE_DISTANCE * max(best_distance, floor[DISTANCE]):
        return (
            f"their Frechet distance is {distance:.4g}, after"
            f" {best_distance:.4g} at the best"
        )
    return None
