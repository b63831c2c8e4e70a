"""Puts what a generator makes beside the data, in bounded memory."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from trainer import errors, samples
from trainer.data.dataset import Dataset
from trainer.evaluation import metrics
from trainer.evaluation.extractor import Extractor
from trainer.evaluation.feature_set import FeatureSet
from trainer.generation import Generation

# What compares pairs takes at most so many of either kind.
_MAX_KEPT = 10_000
_REALS_PER_CALL = 64
# Density and coverage need more than five of each half.
_MIN_SAMPLES = 20
_PURPOSE = "evaluation latents"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured, and how.

    Attributes:
      values: by name.
      floor: what two halves of the real data give in place of fakes and reals,
        by the same names. The halves are smaller, which leaves some metrics
        further from their best (a Frechet distance falls like 1 / count): a
        generator that is as good as real samples may get a little below.
      protocol: what was compared: `features`, `split`, `num_fake`,
        `num_real`, `num_floor` (of each of the halves) and the seed. Values of
        two evaluations can be compared if it is equal.
      features_description: what makes the features, and how good it is.
    """

    values: dict[str, float]
    floor: dict[str, float]
    protocol: dict[str, Any]
    features_description: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns one flat record; a floor is `<name>_floor`.

        What is not finite is None, for JSON knows no other.
        """
        floor = {f"{name}_floor": v for name, v in self.floor.items()}
        numbers = {
            name: value if math.isfinite(value) else None
            for name, value in (self.values | floor).items()
        }
        described = {"features_description": self.features_description}
        return self.protocol | described | numbers


def check_count(dataset: Dataset) -> None:
    """Refuses to compare with too few real samples.

    Raises:
      DataError: there are too few.
    """
    if len(dataset.labels) < _MIN_SAMPLES:
        raise errors.DataError(
            f"{len(dataset.labels)} real samples are too few to measure"
            f" anything; {_MIN_SAMPLES} are needed. Compare with another part"
            " of the data."
        )


class Evaluator:
    """Measures generators against one set of real samples.

    The latents and the choice of real samples are functions of the seed, so
    that the same weights give the same values. Real and fake samples alike are
    rounded to uint8 before features are made of them.
    """

    def __init__(
        self,
        extractor: Extractor,
        *,
        dataset: Dataset,
        split: str,
        num_samples: int,
        metric_names: Sequence[str],
        seed: int,
    ) -> None:
        """Reads nothing yet.

        Args:
          extractor: makes the features.
          dataset: the real samples, of which at most `num_samples` are taken.
          split: what part of the data that is, in words.
          num_samples: fakes to make.
          metric_names: keys of `metrics.METRICS`.
          seed: of the latents and of the choice.

        Raises:
          DataError: there are too few real samples.
          UsageError: a name is unknown.
        """
        metrics.check_names(metric_names)
        check_count(dataset)
        num_real = min(len(dataset.labels), num_samples)
        self._extractor = extractor
        self._dataset = dataset
        self._metric_names = list(metric_names)
        self._seed = seed
        self._num_samples = num_samples
        # The order of the data may be by class.
        order = np.random.default_rng(seed).permutation(len(dataset.labels))
        self._chosen = order[:num_real]
        self._real: FeatureSet | None = None
        self._floor: dict[str, float] = {}
        self.protocol: dict[str, Any] = {
            "features": extractor.name,
            "split": split,
            "num_fake": num_samples,
            "num_real": num_real,
            "num_floor": num_real // 2,
            "evaluation_seed": seed,
        }

    def evaluate(
        self,
        generator: keras.Model,
        *,
        on_progress: Callable[[], object] = lambda: None,
    ) -> Evaluation:
        """Measures one generator; the first time, also the real samples.

        Args:
          generator: see `Generation`.
          on_progress: is called again and again, and may raise to end this.
        """
        if self._real is None:
            self._real = self._read_real(on_progress)
        real = self._real
        fake = self._new_set(_MAX_KEPT)
        for made in Generation(generator).stream(
            self._num_samples,
            seed=self._seed,
            purpose=_PURPOSE,
            label_of=self._label_of,
        ):
            fake.add(*self._extractor.extract(samples.to_uint8(made)))
            on_progress()
        values = metrics.measure(self._metric_names, real, fake)
        return Evaluation(
            values, self._floor, self.protocol, self._extractor.description
        )

    def _read_real(self, on_progress: Callable[[], object]) -> FeatureSet:
        """Makes the features of the real samples, and measures the floor."""
        halves = []
        for chosen in np.array_split(self._chosen, 2):
            half = self._new_set(_MAX_KEPT // 2)
            for start in range(0, len(chosen), _REALS_PER_CALL):
                indices = chosen[start : start + _REALS_PER_CALL]
                half.add(*self._extractor.extract(self._dataset.at(indices)))
                on_progress()
            halves.append(half)
        self._floor = metrics.measure(self._metric_names, *halves)
        on_progress()
        both = self._new_set(_MAX_KEPT)
        for half in halves:
            both.merge(half)
        return both

    def _new_set(self, max_kept: int) -> FeatureSet:
        return FeatureSet(
            dim=self._extractor.dim,
            num_classes=self._extractor.num_classes,
            max_kept=max_kept,
        )

    def _label_of(self, positions: np.ndarray) -> np.ndarray:
        """Returns labels as often as they are among the real samples."""
        chosen = self._chosen[positions % len(self._chosen)]
        return self._dataset.labels[chosen].astype(np.int32)
