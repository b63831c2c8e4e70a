"""Which image takes the place of one that turned out bad."""

from collections.abc import Iterable

import numpy as np


class Replacements:
    """Remembers replacements, so that a bad image is found out only once."""

    def __init__(self, labels: np.ndarray) -> None:
        """Nothing is replaced yet.

        Args:
          labels: int32 [N]; an image is replaced by one with its label.
        """
        self._labels = labels
        self._by_label = np.argsort(labels, kind="stable")
        self._sorted_labels = labels[self._by_label]
        # Int64 [N]: what to read for each image; at first, itself.
        self._instead = np.arange(len(labels))

    def apply(self, indices: np.ndarray) -> np.ndarray:
        """Returns what to read for some images, int64 [B]."""
        return self._instead[indices]

    def candidates(self, index: int) -> np.ndarray:
        """Returns all images of its class, from `index` on and around."""
        label = self._labels[index]
        start, end = np.searchsorted(self._sorted_labels, [label, label + 1])
        same_class = self._by_label[start:end]
        return np.roll(same_class, -int(np.searchsorted(same_class, index)))

    def note(self, bad: Iterable[int], good: int) -> None:
        """Has `good` read from now on where one of `bad` would be."""
        for index in bad:
            # It may have been the replacement of others.
            self._instead[self._instead == index] = good
