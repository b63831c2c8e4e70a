"""The Frechet distance between two sets of features."""

import numpy as np

from trainer.evaluation.moments import Moments


def frechet_distance(real: Moments, fake: Moments) -> float:
    """Returns the squared Frechet distance of two Gaussians; 0 is best.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), after Dowson and Landau ("The
    Frechet distance between multivariate normal distributions", 1982) and
    equation 6 of Heusel et al., "GANs trained by a two time-scale update rule
    converge to a local Nash equilibrium" (arXiv:1706.08500), whose "FID" it is
    on features of Inception.

    Of finite samples it is too large, by an amount that falls like 1/N (Chong
    and Forsyth, arXiv:1911.07023): about 0 only for N much larger than the
    number of features. Compare values of equal counts only, and against the
    value between two sets of real samples.

    Raises:
      ValueError: one has fewer than two features.
    """
    difference = real.mean - fake.mean
    covariance1, covariance2 = real.covariance, fake.covariance
    value = (
        difference @ difference
        + np.trace(covariance1)
        + np.trace(covariance2)
        - 2.0 * _trace_of_root(covariance1, covariance2)
    )
    # Rounding can leave a tiny negative number where the two are the same.
    return max(float(value), 0.0)


def _trace_of_root(covariance1: np.ndarray, covariance2: np.ndarray) -> float:
    """Returns tr((C1 C2)^(1/2)).

    C1 C2 is not symmetric, and its root by Schur's method is unstable where the
    matrices are singular (fewer samples than features). It has the eigenvalues
    of R C2 R with R = C1^(1/2), though, which is symmetric: two symmetric
    eigendecompositions do, and rounding shows as small negative eigenvalues,
    which are known to be 0.
    """
    eigenvalues, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T
    product = root @ covariance2 @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2.0)
    return float(np.sqrt(np.clip(eigenvalues, 0.0, None)).sum())
