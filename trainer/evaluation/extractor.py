"""What makes numbers of pictures that statistics can be taken of."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extractor:
    """Makes features of images.

    Attributes:
      name: tells apart what gives different numbers; values of two names say
        nothing about each other.
      description: for people: what it is, and how good.
      dim: d, the numbers in a feature.
      num_classes: of the probabilities; 0 if there are none.
      extract: uint8 [B, H, W, C] in 0..255 -> features float32 [B, d], and
        probabilities float32 [B, num_classes] or None.
    """

    name: str
    description: str
    dim: int
    num_classes: int
    extract: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
