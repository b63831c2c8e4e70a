"""What is kept of many samples: bounded memory, however many they are."""

import numpy as np

from trainer.evaluation.class_score import ClassScore
from trainer.evaluation.moments import Moments


class FeatureSet:
    """The statistics of samples that come batch by batch.

    Attributes:
      moments: of the features of all samples.
      class_score: of all samples; None without class probabilities.
    """

    def __init__(self, *, dim: int, num_classes: int, max_kept: int) -> None:
        """Starts with no samples.

        Args:
          dim: numbers in a feature.
          num_classes: of the probabilities; 0 if there are none.
          max_kept: so many features are kept as they are, for what compares
            pairs; of further samples, only the statistics.
        """
        self.moments = Moments(dim)
        self.class_score = ClassScore(num_classes) if num_classes else None
        self._max_kept = max_kept
        self._kept = np.empty([0, dim], np.float32)

    @property
    def count(self) -> int:
        """How many samples were added."""
        return self.moments.count

    @property
    def kept(self) -> np.ndarray:
        """The features of the first samples, float32 [at most max_kept, d]."""
        return self._kept

    @property
    def diversity(self) -> float:
        """The root mean square distance between the features of two samples.

        Of independent x and y, E|x - y|^2 is twice the covariance's trace.
        """
        return float(np.sqrt(2.0 * np.trace(self.moments.covariance)))

    def add(
        self, features: np.ndarray, probabilities: np.ndarray | None
    ) -> None:
        """Takes a batch: features [B, d], probabilities [B, classes]."""
        self.moments.add(features)
        if self.class_score is not None and probabilities is not None:
            self.class_score.add(probabilities)
        self._keep(features)

    def merge(self, other: "FeatureSet") -> None:
        """Takes what another one has seen."""
        self.moments.merge(other.moments)
        if self.class_score is not None and other.class_score is not None:
            self.class_score.merge(other.class_score)
        self._keep(other.kept)

    def _keep(self, features: np.ndarray) -> None:
        rest = self._max_kept - len(self._kept)
        if rest > 0:
            self._kept = np.concatenate(
                [self._kept, features[:rest].astype(np.float32)]
            )
