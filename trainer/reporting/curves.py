"""Long curves in few points, and the axes that they are drawn on."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# From here on a linear axis would press most of a curve onto its edge.
_LOGARITHMIC_FROM_RATIO = 100.0
_AVERAGED_SHARE = 0.02


def decimate(values: np.ndarray, max_points: int) -> np.ndarray:
    """Chooses points of a curve such that no spike and no gap gets lost.

    Each of equally long parts keeps its least and its greatest value, and one
    that is missing.

    Args:
      values: float [N], NaN where one is missing.
      max_points: 10 or more.

    Returns:
      ascending indices, int [at most max_points], the first and the last among
      them.
    """
    count = len(values)
    if count <= max_points:
        return np.arange(count)
    has_gaps = bool(np.isnan(values).any())
    num_parts = (max_points - 2) // (3 if has_gaps else 2)
    edges = np.linspace(0, count, num_parts + 1).astype(int)
    kept = {0, count - 1}
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        part = values[start:end]
        missing = np.isnan(part)
        if missing.any():
            kept.add(int(start + missing.argmax()))
        if not missing.all():
            kept.add(int(start + np.nanargmin(part)))
            kept.add(int(start + np.nanargmax(part)))
    return np.array(sorted(kept))


def moving_average(values: np.ndarray) -> np.ndarray:
    """Averages each value and its neighbours: 2% of the curve.

    Args:
      values: float [N], NaN where one is missing.

    Returns:
      float [N], NaN where all of them are missing.
    """
    reach = max(1, round(len(values) * _AVERAGED_SHARE / 2))
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    positions = np.arange(len(values))
    start = np.maximum(positions - reach, 0)
    end = np.minimum(positions + reach + 1, len(values))
    num_known = counts[end] - counts[start]
    averages = np.full(len(values), np.nan)
    np.divide(
        sums[end] - sums[start], num_known, out=averages, where=num_known > 0
    )
    return averages


@dataclasses.dataclass(frozen=True)
class Axis:
    """A range of values along one side of a chart.

    Attributes:
      low: the least value.
      high: the greatest one, above `low`.
      ticks: values with a label.
      is_logarithmic: whether equal distances are equal ratios.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    is_logarithmic: bool = False

    def place(self, value: float) -> float:
        """Maps `low` to 0 and `high` to 1."""
        if self.is_logarithmic:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def value_axis(values: np.ndarray, *, is_linear: bool = False) -> Axis:
    """Makes the axis of values, of which at least one is a number.

    Unless it has to be linear, it is logarithmic where all of them are positive
    and of different magnitudes.
    """
    known = values[~np.isnan(values)]
    low, high = float(known.min()), float(known.max())
    if not is_linear and low > 0 and high / low >= _LOGARITHMIC_FROM_RATIO:
        return _logarithmic_axis(low, high)
    if low == high:
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    step = _nice_step((high - low) / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def step_axis(first: int, last: int) -> Axis:
    """Makes the axis of steps."""
    last = max(last, first + 1)
    step = max(1, int(_nice_step((last - first) / 4)))
    ticks = range(math.ceil(first / step) * step, last + 1, step)
    return Axis(first, last, tuple(float(tick) for tick in ticks))


def _logarithmic_axis(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / 5)
    last += -(last - first) % every
    # Subnormal numbers have no power of ten below them.
    first, last = max(first, -307), min(last, 308)
    ticks = tuple(10.0**power for power in range(first, last + 1, every))
    return Axis(10.0**first, 10.0**last, ticks, is_logarithmic=True)


def _nice_step(at_least: float) -> float:
    """Returns 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(at_least))
    nice: Sequence[float] = (1, 2, 5, 10)
    return next(n * power for n in nice if n * power >= at_least * 0.999)
