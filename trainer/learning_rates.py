"""Learning-rate schedules: what both rates are multiplied by at a step.

Pure functions of the global step, so that nothing has to be saved for them. To
add a schedule, add a function of the progress and a line in `SCHEDULES`.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from trainer import errors


def constant(progress: tf.Tensor) -> tf.Tensor:
    """1 throughout."""
    return tf.ones_like(progress)


def linear(progress: tf.Tensor) -> tf.Tensor:
    """From 1 down to 0 in a straight line."""
    return 1.0 - progress


def cosine(progress: tf.Tensor) -> tf.Tensor:
    """From 1 down to 0 along half a cosine.

    Loshchilov and Hutter (arXiv:1608.03983), equation 5, without restarts.
    """
    return 0.5 * (1.0 + tf.cos(math.pi * progress))


# Of the progress through the decay, float32 in [0, 1].
SCHEDULES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}


class LearningRateFactor:
    """Warms up in a straight line, stays, or decays by a schedule."""

    def __init__(
        self,
        *,
        schedule: str = "constant",
        warmup_steps: int = 0,
        decay_steps: int = 1,
        final_factor: float = 0.0,
    ) -> None:
        """Fixes the shape.

        Args:
          schedule: one of `SCHEDULES`.
          warmup_steps: so many steps lead up to 1, the first of them with
            1 / warmup_steps.
          decay_steps: so many steps after the warm-up the schedule has come to
            its end, where it stays.
          final_factor: what is left there, in [0, 1].

        Raises:
          UsageError: there is no such schedule.
        """
        if schedule not in SCHEDULES:
            raise errors.UsageError(
                f"--learning_rate_schedule={schedule} is unknown; known are"
                f" {', '.join(SCHEDULES)}."
            )
        self._decay = SCHEDULES[schedule]
        self._warmup_steps = warmup_steps
        self._decay_steps = decay_steps
        self._final_factor = final_factor
        self.is_constant = schedule == "constant" and warmup_steps == 0

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """Returns the factor, float32, at the step that begins with `step`."""
        # In float64, which counts steps exactly.
        step = tf.cast(step, tf.float64)
        warmup = tf.minimum((step + 1.0) / max(self._warmup_steps, 1), 1.0)
        progress = tf.clip_by_value(
            (step - self._warmup_steps) / self._decay_steps, 0.0, 1.0
        )
        decay = self._final_factor + (1.0 - self._final_factor) * self._decay(
            progress
        )
        return tf.cast(warmup * decay, tf.float32)
