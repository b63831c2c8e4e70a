"""The kernel distance (KID) between two sets of features."""

from typing import NamedTuple

import numpy as np

_NUM_SUBSETS = 100
SUBSET_SIZE = 1000


class KernelDistance(NamedTuple):
    """An estimate and how far off it may be.

    Attributes:
      value: the mean over the subsets.
      standard_error: of that mean, as if the subsets were independent.
    """

    value: float
    standard_error: float


def kernel_distance(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    num_subsets: int = _NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> KernelDistance:
    """Estimates the squared maximum mean discrepancy; 0 is best.

    After Binkowski et al., "Demystifying MMD GANs" (arXiv:1801.01401, section
    4): the unbiased estimator of Gretton et al. ("A kernel two-sample test",
    JMLR 2012, equation 3) with the kernel (x.y / d + 1)^3, averaged over random
    subsets. Its expectation does not depend on the counts; it can be below 0.

    Args:
      real: features [N, d].
      fake: features [M, d].
      num_subsets: pairs of subsets.
      subset_size: of each, if there are so many features.
      seed: of the choice of the subsets.

    Raises:
      ValueError: one has fewer than two features.
    """
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise ValueError(f"{len(real)} and {len(fake)} features are too few.")
    if size == len(real) == len(fake):
        num_subsets = 1  # They would all be the same.
    choices = np.random.default_rng(seed)
    values = np.array(
        [
            _unbiased_discrepancy(
                real[choices.choice(len(real), size, replace=False)],
                fake[choices.choice(len(fake), size, replace=False)],
            )
            for _ in range(num_subsets)
        ]
    )
    spread = values.std(ddof=1) if num_subsets > 1 else np.nan
    return KernelDistance(
        float(values.mean()), float(spread / np.sqrt(num_subsets))
    )


def _unbiased_discrepancy(real: np.ndarray, fake: np.ndarray) -> float:
    """Leaves out the pairs of a sample with itself, which bias the mean."""
    size = len(real)
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    within = 0.0
    for samples in (real, fake):
        kernel = _cubic_kernel(samples, samples)
        within += (kernel.sum() - np.trace(kernel)) / (size * (size - 1))
    return float(within - 2.0 * _cubic_kernel(real, fake).mean())


def _cubic_kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1.0) ** 3
