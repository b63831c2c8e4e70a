"""When things are due: a pure function of the global step."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The plan of a run, in global steps.

    Attributes:
      steps_per_epoch: whole global batches in the data set.
      epochs: how many to train.
      max_steps: stop at this step even so; None: never.
      steps_per_loop: most steps in one call into TensorFlow.
      log_every_steps: steps between logged ones.
      sample_every_epochs: epochs between sample grids.
      checkpoint_every_epochs: epochs between checkpoints.
      keep_every_epochs: epochs between checkpoints that stay for ever; None:
        none does.
      evaluate_every_epochs: epochs between evaluations; 0: there are none.
    """

    steps_per_epoch: int
    epochs: int
    max_steps: int | None
    steps_per_loop: int
    log_every_steps: int
    sample_every_epochs: int
    checkpoint_every_epochs: int
    keep_every_epochs: int | None = None
    evaluate_every_epochs: int = 0

    @property
    def final_step(self) -> int:
        """The step at which the run is finished."""
        return self.steps_per_epoch * self.epochs

    @property
    def last_step(self) -> int:
        """The step at which this command stops."""
        if self.max_steps is None:
            return self.final_step
        return min(self.final_step, self.max_steps)

    @property
    def checkpoint_every_steps(self) -> int:
        """`checkpoint_every_epochs`, in steps."""
        return self.checkpoint_every_epochs * self.steps_per_epoch

    @property
    def keep_every_steps(self) -> int | None:
        """`keep_every_epochs`, in steps."""
        if self.keep_every_epochs is None:
            return None
        return self.keep_every_epochs * self.steps_per_epoch

    def num_kept_for_ever(self, step: int) -> int:
        """How many checkpoints that stay for ever come after a step."""
        if self.keep_every_steps is None:
            return 0
        return (
            self.last_step // self.keep_every_steps
            - step // self.keep_every_steps
        )

    def epoch(self, step: int) -> int:
        """The epoch, counted from 1, that the step ends in; 0 at step 0."""
        return -(-step // self.steps_per_epoch)

    def next_stop(self, step: int) -> int:
        """Where to come back to Python: no due step lies before it."""
        return min(
            step + self.steps_per_loop,
            _next_multiple(step, self.log_every_steps),
            _next_multiple(step, self.steps_per_epoch),
            self.last_step,
        )

    def logs_at(self, step: int) -> bool:
        """Whether the step is logged; the ends of epochs always are."""
        return step % self.log_every_steps == 0 or self._ends_epoch(step, 1)

    def samples_at(self, step: int) -> bool:
        """Whether a sample grid is drawn; always at the end."""
        return step == self.final_step or self._ends_epoch(
            step, self.sample_every_epochs
        )

    def checkpoints_at(self, step: int) -> bool:
        """Whether the state is saved; always where the command stops.

        What was evaluated is saved, for it may turn out to be the best.
        """
        return (
            step == self.last_step
            or self._ends_epoch(step, self.checkpoint_every_epochs)
            or self.evaluates_at(step)
        )

    def evaluates_at(self, step: int) -> bool:
        """Whether the samples are measured; if at all, also at the end."""
        return self.evaluate_every_epochs > 0 and (
            step == self.final_step
            or self._ends_epoch(step, self.evaluate_every_epochs)
        )

    def _ends_epoch(self, step: int, every_epochs: int) -> bool:
        return step % (self.steps_per_epoch * every_epochs) == 0


def _next_multiple(step: int, of: int) -> int:
    return (step // of + 1) * of
