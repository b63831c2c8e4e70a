"""Mean and covariance of features that come batch by batch."""

import numpy as np


class Moments:
    """Count, mean and covariance, in float64 and in one pass.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque
    ("Updating formulae and a pairwise algorithm for computing sample
    variances", 1979). Sums of x and of x x^T would be shorter, but their
    difference loses all digits where the mean is large.
    """

    def __init__(self, dim: int) -> None:
        """Starts with no features of `dim` numbers."""
        self.count = 0
        self.mean = np.zeros(dim)
        # The sum of (x - mean)(x - mean)^T.
        self._scatter = np.zeros([dim, dim])

    def add(self, features: np.ndarray) -> None:
        """Takes a batch [B, dim]."""
        if not len(features):
            return
        batch = Moments(len(self.mean))
        values = np.asarray(features, np.float64)
        batch.count = len(values)
        batch.mean = values.mean(axis=0)
        centred = values - batch.mean
        batch._scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: "Moments") -> None:
        """Takes what another one has seen."""
        count = self.count + other.count
        if not count:
            return
        delta = other.mean - self.mean
        self._scatter = (
            self._scatter
            + other._scatter
            + np.outer(delta, delta) * (self.count * other.count / count)
        )
        self.mean = self.mean + delta * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance [dim, dim].

        Raises:
          ValueError: there are fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} features have no covariance.")
        return self._scatter / (self.count - 1)
