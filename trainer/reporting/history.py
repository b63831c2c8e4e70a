"""What a run has recorded, read back; damaged lines are left out."""

import array
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_KEYS_OF_LINES = {"step", "epoch", "kind"}


@dataclasses.dataclass(frozen=True)
class Series:
    """The values of one name.

    Attributes:
      steps: int64 [N], ascending.
      values: float64 [N]; NaN where what was recorded is no finite number.
    """

    steps: np.ndarray
    values: np.ndarray

    @property
    def num_missing(self) -> int:
        """How many values are no finite numbers."""
        return int(np.isnan(self.values).sum())

    @property
    def is_constant(self) -> bool:
        """Whether it never changes."""
        return bool((self.values == self.values[0]).all())


@dataclasses.dataclass(frozen=True)
class History:
    """The lines of `metrics.jsonl`.

    Attributes:
      series: by name, in the order in which the names appear.
      evaluations: the lines of evaluations, by step.
      last_step: of all lines; 0 without any.
      last_epoch: that of the last step.
    """

    series: dict[str, Series]
    evaluations: list[dict[str, Any]]
    last_step: int
    last_epoch: int

    def total(self, name: str) -> float:
        """Returns the sum of a series; 0 if there is none."""
        found = self.series.get(name)
        return float(np.nansum(found.values)) if found else 0.0

    def training_secs(self, images_per_step: int) -> float:
        """Returns how long the recorded steps took, without saves."""
        speed = self.series.get("images_per_sec")
        if speed is None:
            return 0.0
        num_steps = np.diff(speed.steps, prepend=0)
        is_known = speed.values > 0
        return float(
            (num_steps[is_known] * images_per_step / speed.values[is_known])
            .sum()
            .item()
        )


def read_history(path: Path) -> History:
    """Reads `metrics.jsonl`, which need not exist.

    Raises:
      OSError: it exists and cannot be read.
    """
    columns: dict[str, tuple[array.array, array.array]] = {}
    evaluations = []
    last_step = last_epoch = 0
    for line in read_lines(path):
        step = line["step"]
        if step >= last_step:
            last_step = step
            last_epoch = line.get("epoch", last_epoch)
        if line.get("kind") == "evaluation":
            evaluations.append(line)
            continue
        for name, value in line.items():
            if name in _KEYS_OF_LINES or isinstance(value, str | list | dict):
                continue
            steps, values = columns.setdefault(
                name, (array.array("q"), array.array("d"))
            )
            steps.append(step)
            values.append(_finite_or_nan(value))
    series = {
        name: _sorted(np.array(steps), np.array(values))
        for name, (steps, values) in columns.items()
    }
    evaluations.sort(key=lambda line: line["step"])
    return History(series, evaluations, last_step, last_epoch)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file with one in each line, if it exists.

    A line that is torn, or has no step, is none of ours.

    Raises:
      OSError: the file exists and cannot be read.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and _is_step(line.get("step")):
                yield line


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _finite_or_nan(value: object) -> float:
    if not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _sorted(steps: np.ndarray, values: np.ndarray) -> Series:
    order = np.argsort(steps, kind="stable")
    return Series(steps[order], values[order])
