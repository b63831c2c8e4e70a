"""Whether fakes lie where reals do, and reals where fakes do.

Both pairs of numbers separate quality from variety. Around each sample lies the
ball that reaches to its k-th neighbour of the same kind.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Of the papers: precision and recall 3, density and coverage 5.
_NEIGHBOURS_OF_PRECISION = 3
_NEIGHBOURS_OF_DENSITY = 5
# So many rows of distances are in memory at once.
_ROWS = 512


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]; 1 is best.

    Attributes:
      precision: the share of fakes in a ball of a real sample.
      recall: the share of reals in a ball of a fake.
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """1 is what real samples get.

    Attributes:
      density: how many balls of reals a fake lies in, on average, over k; it
        may exceed 1.
      coverage: the share of reals with a fake in their ball, in [0, 1].
    """

    density: float
    coverage: float


def precision_recall(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    num_neighbours: int = _NEIGHBOURS_OF_PRECISION,
) -> PrecisionRecall:
    """Measures both, after Kynkaanniemi et al. (arXiv:1904.06991, eq. 1, 2).

    More samples make smaller balls: compare values of equal counts only.

    Args:
      real: features [N, d].
      fake: features [M, d].
      num_neighbours: k.

    Raises:
      ValueError: there are not more than k of each.
    """
    real_radii = _squared_radii(real, num_neighbours)
    fake_radii = _squared_radii(fake, num_neighbours)
    in_real = [
        (distances <= real_radii).any(axis=1)
        for distances in _squared_distances(fake, real)
    ]
    in_fake = [
        (distances <= fake_radii).any(axis=1)
        for distances in _squared_distances(real, fake)
    ]
    return PrecisionRecall(
        float(np.concatenate(in_real).mean()),
        float(np.concatenate(in_fake).mean()),
    )


def density_coverage(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    num_neighbours: int = _NEIGHBOURS_OF_DENSITY,
) -> DensityCoverage:
    """Measures both, after Naeem et al. (arXiv:2002.09797, eq. 3, 4).

    One real outlier with a large ball makes every fake in it count as precise;
    density counts the balls instead. Coverage uses balls of reals only, since
    fakes have more outliers.

    Args:
      real: features [N, d].
      fake: features [M, d].
      num_neighbours: k.

    Raises:
      ValueError: there are not more than k reals.
    """
    radii = _squared_radii(real, num_neighbours)
    num_balls = 0
    is_covered = np.zeros(len(real), bool)
    for distances in _squared_distances(fake, real):
        is_inside = distances <= radii
        num_balls += int(is_inside.sum())
        is_covered |= is_inside.any(axis=0)
    return DensityCoverage(
        num_balls / (num_neighbours * len(fake)), float(is_covered.mean())
    )


def _squared_radii(features: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Returns how far each one's k-th neighbour is, squared."""
    if len(features) <= num_neighbours:
        raise ValueError(
            f"{len(features)} features have no {num_neighbours} neighbours."
        )
    return np.concatenate(
        [
            # The nearest is the sample itself.
            np.partition(distances, num_neighbours, axis=1)[:, num_neighbours]
            for distances in _squared_distances(features, features)
        ]
    )


def _squared_distances(
    one: np.ndarray, other: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields some rows after the other of the distances [N, M]."""
    # Centred, since |x|^2 - 2 x.y + |y|^2 loses digits far from 0.
    centre = other.mean(axis=0, dtype=np.float64)
    others = other - centre
    others_norms = np.einsum("ij,ij->i", others, others)
    for start in range(0, len(one), _ROWS):
        rows = one[start : start + _ROWS] - centre
        norms = np.einsum("ij,ij->i", rows, rows)
        distances = norms[:, np.newaxis] + others_norms - 2.0 * rows @ others.T
        yield np.clip(distances, 0.0, None)
