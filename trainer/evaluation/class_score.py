"""The classifier score: whether samples are distinct, and of all classes."""

import numpy as np


class ClassScore:
    """exp(I(y; x)) of a classifier's probabilities p(y|x), in one pass.

    The form of the inception score (Salimans et al., "Improved techniques for
    training GANs", arXiv:1606.03498, section 4): exp(E_x KL(p(y|x) || p(y))),
    from 1 (all samples look alike to the classifier) to the number of classes.
    It never looks at real samples; they get a score of their own to compare
    with. Of finite samples it is too small, by an amount that falls with N, and
    it is not that of the paper, which is the mean over 10 splits.
    """

    def __init__(self, num_classes: int) -> None:
        """Starts with no samples."""
        self._count = 0
        self._sum = np.zeros(num_classes)
        self._sum_of_negative_entropies = 0.0

    def add(self, probabilities: np.ndarray) -> None:
        """Takes a batch [B, num_classes], whose rows sum to 1."""
        values = np.asarray(probabilities, np.float64)
        self._count += len(values)
        self._sum += values.sum(axis=0)
        self._sum_of_negative_entropies += float(_x_log_x(values).sum())

    def merge(self, other: "ClassScore") -> None:
        """Takes what another one has seen."""
        self._count += other._count
        self._sum = self._sum + other._sum
        self._sum_of_negative_entropies += other._sum_of_negative_entropies

    @property
    def value(self) -> float:
        """The score of what was added.

        Raises:
          ValueError: there was nothing.
        """
        if not self._count:
            raise ValueError("No samples have no score.")
        marginal = self._sum / self._count
        information = (
            self._sum_of_negative_entropies / self._count
            - _x_log_x(marginal).sum()
        )
        return float(np.exp(information))


def _x_log_x(values: np.ndarray) -> np.ndarray:
    """Returns x log(x), whose limit at 0 is 0."""
    return values * np.log(np.where(values > 0.0, values, 1.0))
