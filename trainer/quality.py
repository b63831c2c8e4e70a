"""Measures the generator while it trains, and remembers when it was best."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from absl import logging

from trainer import errors
from trainer.evaluation import collapse
from trainer.evaluation.evaluator import Evaluation, Evaluator


class Quality:
    """The evaluations of one run; the best one has the least distance.

    What is remembered travels with each checkpoint, in its host state, so that
    whoever goes on from it knows what was best up to there.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        generator: keras.Model,
        *,
        host_state: Mapping[str, Any],
        is_saved: Callable[[int], bool],
    ) -> None:
        """Measures nothing yet.

        Args:
          evaluator: what measures.
          generator: what is measured.
          host_state: of the checkpoint that the run goes on from.
          is_saved: whether the state of a step that was measured here has
            become a checkpoint.
        """
        self._is_saved = is_saved
        # The best before, while the save of the best one may still fail.
        self._replaced: list[dict[str, Any] | None] = []
        self._evaluator = evaluator
        self._generator = generator
        self._best: dict[str, Any] | None = host_state.get("best_evaluation")
        if self._best and self._best["protocol"] != evaluator.protocol:
            logging.warning(
                "Samples are measured otherwise than before; which checkpoint "
                "is the best is found out anew."
            )
            self._best = None

    def host_state(self, step: int) -> dict[str, Any]:
        """Returns what the checkpoint of a step holds of this.

        What it names as the best is a checkpoint, if it is one itself. Ask
        when no save is under way.
        """
        while self._best and self._replaced and self._best["step"] != step:
            if self._is_saved(self._best["step"]):
                self._replaced.clear()
                break
            logging.warning(
                "Step %d, the best so far, was not saved and counts no more.",
                self._best["step"],
            )
            self._best = self._replaced.pop()
        return {"best_evaluation": self._best} if self._best else {}

    def evaluate(
        self, step: int, *, on_progress: Callable[[], object]
    ) -> tuple[Evaluation, str | None] | None:
        """Measures the generator after a step.

        Args:
          step: the global step.
          on_progress: is called again and again; a StoppedError that it raises
            leaves this evaluation out.

        Returns:
          the evaluation, and how the samples have collapsed or None; None if it
          was left out.
        """
        try:
            evaluation = self._evaluator.evaluate(
                self._generator, on_progress=on_progress
            )
        except errors.StoppedError:
            logging.info("Step %d is not evaluated, to stop in time.", step)
            return None
        values, best = evaluation.values, self._best
        problem = best and collapse.describe(
            values, best=best["values"], floor=evaluation.floor
        )
        distance = values[collapse.DISTANCE]
        if not best or distance < best["values"][collapse.DISTANCE]:
            self._replaced.append(self._best)
            self._best = {
                "step": step,
                "values": {
                    name: values[name]
                    for name in (collapse.DISTANCE, collapse.DIVERSITY)
                },
                "protocol": evaluation.protocol,
            }
        logging.info(
            "Step %d: Frechet distance %.4g (real samples %.4g)%s.",
            step,
            distance,
            evaluation.floor[collapse.DISTANCE],
            _standing(best, self._best),
        )
        return evaluation, problem or None


def _standing(before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    if before is None or before is not now:
        return ", the best so far"
    distance = before["values"][collapse.DISTANCE]
    return f"; the best is {distance:.4g}, of step {before['step']}"
