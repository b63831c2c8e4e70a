"""Contestants that take turns, and the table of what they took.

Each contestant is a process of its own (`tests.benchmarks.child`), because
TensorFlow's devices and options are settings of a process. One is at work at a
time: A, B, C, A, B, C, so that a noisy machine disturbs all alike. What counts
is the median of the ratios of neighbouring turns.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from tests.benchmarks import machine

_BUSY_TURN_SECS = 2.0
_CLOSE_SECS = 30.0


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of a table.

    Attributes:
      name: what the row is called.
      builder: "module:function", see `tests.benchmarks.child`.
      arguments: of that function; JSON types only.
      num_steps: in a turn.
    """

    name: str
    builder: str
    arguments: dict[str, Any]
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Group:
    """A table.

    Attributes:
      title: of the table.
      note: what one must know to read it.
      contestants: the rows; the first is the baseline of the ratios.
      images_per_step: rows are in images a second, more being better; None:
        rows are in milliseconds a step, less being better.
    """

    title: str
    note: str
    contestants: Sequence[Contestant]
    images_per_step: int | None = None


def print_group(group: Group, num_rounds: int) -> None:
    """Lets the contestants take turns, and prints their table."""
    print(f"\n## {group.title}\n\n{group.note}\n", flush=True)
    with contextlib.ExitStack() as stack:
        # One after the other, lest they warm up against each other.
        children = [
            stack.enter_context(Child(contestant))
            for contestant in group.contestants
        ]
        for _ in range(num_rounds):
            for child in children:
                child.take_turn()
        busy = None
        if machine.gpu_names():
            busy = [child.gpu_busy() for child in children]
    print("\n".join(_table(group, children, busy)), flush=True)


class Child:
    """The process of a contestant, ready to take turns while entered.

    Attributes:
      contestant: whose it is.
      secs: what each turn took.
      failure: why it takes no more turns, or ""; its stderr is then shown.
    """

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.secs: list[float] = []
        self.failure = ""

    def __enter__(self) -> "Child":
        with contextlib.ExitStack() as stack:
            # Whatever it writes, which it does not stay to remove.
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            self._log = stack.enter_context(
                tempfile.TemporaryFile("w+", errors="replace")
            )
            self._process = stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "tests.benchmarks.child",
                        self.contestant.builder,
                        json.dumps(self.contestant.arguments),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    env={**os.environ, "TMPDIR": directory},
                    text=True,
                )
            )
            stack.callback(self._end)
            self._answer()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take_turn(self) -> None:
        """Takes a turn that counts, unless it has failed."""
        secs = self._secs(self.contestant.num_steps)
        if secs is not None:
            self.secs.append(secs)

    def gpu_busy(self) -> str:
        """Takes a longer turn that does not count, and watches the GPU."""
        if self.failure or not self.secs:
            return ""
        secs_per_step = statistics.median(self.secs) / self.contestant.num_steps
        num_steps = max(
            self.contestant.num_steps, int(_BUSY_TURN_SECS / secs_per_step)
        )
        with machine.busy_percentages() as percentages:
            self._secs(num_steps)
        if not percentages:
            return "unknown"
        return f"{statistics.mean(percentages):.0f}%"

    def _secs(self, num_steps: int) -> float | None:
        if self.failure:
            return None
        # It may be gone, which the missing answer tells.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{num_steps}\n")
            self._process.stdin.flush()
        return self._answer().get("secs")

    def _answer(self) -> dict[str, Any]:
        if line := self._process.stdout.readline():
            answer = json.loads(line)
        else:
            answer = {"failed": f"ended with code {self._process.wait()}"}
        self.failure = answer.get("failed", "")
        if self.failure:
            self._log.seek(0)
            sys.stderr.write(self._log.read())
        return answer

    def _end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # Asks it to end.
        try:
            self._process.wait(_CLOSE_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()


def ratios(
    secs: Sequence[float],
    baseline_secs: Sequence[float],
    *,
    more_is_better: bool,
) -> list[float]:
    """Compares the seconds of neighbouring turns, of a step each.

    Args:
      secs: a contestant's.
      baseline_secs: the baseline's.
      more_is_better: whether to compare rates instead of durations.
    """
    pairs = zip(secs, baseline_secs, strict=False)  # One may have failed.
    if more_is_better:
        return [baseline / own for own, baseline in pairs]
    return [own / baseline for own, baseline in pairs]


def _table(
    group: Group, children: Sequence[Child], busy: list[str] | None
) -> list[str]:
    is_rate = group.images_per_step is not None
    header = ["", "images/s" if is_rate else "ms", "min to max"]
    header += ["rate / baseline" if is_rate else "time / baseline"]
    header += ["min to max"]
    if busy:
        header += ["GPU busy"]
    baseline_secs = _secs_per_step(children[0])
    lines = [_line(header), _line(["---"] * len(header))]
    for index, child in enumerate(children):
        cells = [child.contestant.name]
        if child.failure:
            cells += [f"failed: {child.failure}", *[""] * (len(header) - 2)]
            lines.append(_line(cells))
            continue
        secs = _secs_per_step(child)
        cells += _median_and_spread(
            [group.images_per_step / s for s in secs]
            if is_rate
            else [s * 1e3 for s in secs]
        )
        cells += _median_and_spread(
            ratios(secs, baseline_secs, more_is_better=is_rate)
        )
        if busy:
            cells += [busy[index]]
        lines.append(_line(cells))
    return lines


def _secs_per_step(child: Child) -> list[float]:
    return [secs / child.contestant.num_steps for secs in child.secs]


def _median_and_spread(values: Sequence[float]) -> list[str]:
    if not values:
        return ["", ""]
    low, high = _number(min(values)), _number(max(values))
    return [_number(statistics.median(values)), f"{low} to {high}"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    # A bar would end the cell.
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
