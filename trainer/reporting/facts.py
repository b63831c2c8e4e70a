"""All that the page says of a run, in values that need no config."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.reporting.charts import Mark
from trainer.reporting.history import History


@dataclasses.dataclass(frozen=True)
class Setting:
    """A flag of the run.

    Attributes:
      topic: the heading under which `--help` lists it.
      default: what it would have been in this run, had it not been given.
      help: what it does.
    """

    topic: str
    name: str
    value: Any
    default: Any
    help: str

    @property
    def is_changed(self) -> bool:
        """Whether it is not the default."""
        return bool(self.value != self.default)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """A run as its files have it.

    Attributes:
      title: the run's name.
      subtitle: what it trains, in words.
      epochs: that it is to train.
      max_steps: at which it ends even so; None: nowhere.
      images_per_step: real ones that a step takes.
      settings: all of them.
      environment: `environment.json`.
      history: `metrics.jsonl`.
      measured: the lines of `evaluations.jsonl`.
      starts: the lines of `starts.jsonl`.
      checkpoint_step: of the newest good checkpoint; None without any.
      host_state: of that checkpoint.
      problem: why there is no good checkpoint; "" if there is no reason.
      samples: the directory of the pictures.
    """

    title: str
    subtitle: str
    epochs: int
    max_steps: int | None
    images_per_step: int
    settings: Sequence[Setting]
    environment: Mapping[str, Any]
    history: History
    measured: Sequence[Mapping[str, Any]]
    starts: Sequence[Mapping[str, Any]]
    checkpoint_step: int | None
    host_state: Mapping[str, Any]
    problem: str
    samples: Path

    @property
    def final_step(self) -> int | None:
        """At which the run is finished; None if nothing tells."""
        steps_per_epoch = self.host_state.get("steps_per_epoch")
        return steps_per_epoch and steps_per_epoch * self.epochs

    @property
    def step(self) -> int:
        """How far the run has come, saved or not."""
        return max(self.history.last_step, self.checkpoint_step or 0)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The best evaluation during training, if there were any."""
        return self.host_state.get("best_evaluation")

    @property
    def standing(self) -> str:
        """Whether the run is finished, in words."""
        if self.final_step and (self.checkpoint_step or 0) >= self.final_step:
            return "Finished"
        if self.step == 0:
            return "Not yet begun"
        if self.final_step is None:
            return "Not known to be finished"
        if self.max_steps is not None and self.step >= self.max_steps:
            return f"Ended by --max_steps={self.max_steps}"
        return "Not finished"

    def marks(self) -> list[Mark]:
        """Returns what charts point at: restarts, rollbacks, the best step."""
        found, before = [], None
        for line in self.starts:
            rollbacks = line.get("num_rollbacks", 0)
            if before is not None:
                kind = "rollback" if rollbacks > before else "restart"
                found.append(Mark(line["step"], kind, _of_start(kind, line)))
            before = rollbacks
        if self.best:
            step = self.best["step"]
            found.append(Mark(step, "best", f"Best evaluation: step {step:,}"))
        return [mark for mark in found if mark.step <= self.step]


def _of_start(kind: str, line: Mapping[str, Any]) -> str:
    word = {"rollback": "Went back to", "restart": "Restarted after"}[kind]
    return f"{word} step {line['step']:,} ({line.get('time', 'time unknown')})"
