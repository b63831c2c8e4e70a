"""How far training is, for a person: a bar, or plain lines in a log file."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

import tqdm

_SECS_BETWEEN_LINES = 10.0


class Progress:
    """Shows epoch, step, both losses, images a second and the time left."""

    def __init__(
        self,
        *,
        first_step: int,
        last_step: int,
        epochs: int,
        stream: TextIO = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts at `first_step`; shows a bar if `stream` is a terminal."""
        self._last_step = last_step
        self._epochs = epochs
        self._stream = stream
        self._clock = clock
        self._start: tuple[float, int] | None = None
        self._last_line_time = clock()
        self._bar = None
        if stream.isatty():
            self._bar = tqdm.tqdm(
                total=last_step,
                initial=first_step,
                file=stream,
                bar_format="{desc} |{bar}| {postfix}",
                dynamic_ncols=True,
            )

    def update(
        self,
        *,
        step: int,
        epoch: int,
        g_loss: float,
        d_loss: float,
        images_per_sec: float,
    ) -> None:
        """Shows a finished step; lines are at least ten seconds apart."""
        now = self._clock()
        if self._start is None:
            # The first steps include compilation, which tells nothing about
            # the others.
            self._start = (now, step)
        done = step == self._last_step
        if not self._bar and now - self._last_line_time < _SECS_BETWEEN_LINES:
            if not done:
                return
        self._last_line_time = now
        where = f"epoch {epoch}/{self._epochs} step {step}/{self._last_step}"
        how = (
            f"g_loss {g_loss:.3f}, d_loss {d_loss:.3f}, "
            f"{images_per_sec:,.0f} images/s, {self._time_left(now, step)} left"
        )
        if self._bar:
            self._bar.n = step
            self._bar.set_description_str(where, refresh=False)
            self._bar.set_postfix_str(how)
        else:
            print(f"{where}: {how}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is and goes to the next line."""
        if self._bar:
            self._bar.close()

    def _time_left(self, now: float, step: int) -> str:
        start_time, start_step = self._start or (now, step)
        if step == self._last_step:
            return "0:00"
        if step == start_step:
            return "?"
        # By the clock, so that samples and checkpoints count as well.
        secs_per_step = (now - start_time) / (step - start_step)
        minutes, secs = divmod(
            round(secs_per_step * (self._last_step - step)), 60
        )
        hours, minutes = divmod(minutes, 60)
        return (
            f"{hours}:{minutes:02}:{secs:02}"
            if hours
            else f"{minutes}:{secs:02}"
        )
