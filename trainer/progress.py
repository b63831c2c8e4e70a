"""How far training is, for a person: a bar, or plain lines in a log file."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

import tqdm
from tqdm.contrib import logging as tqdm_logging

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
        """Starts at `first_step`; shows a bar if `stream` is a screen."""
        self._last_step = last_step
        self._epochs = epochs
        self._stream = stream
        self._clock = clock
        self._start: tuple[float, int] | None = None
        self._last_line_time = clock()
        self._bar = None
        self._open = contextlib.ExitStack()
        if _is_screen(stream):
            self._bar = tqdm.tqdm(
                total=last_step,
                initial=first_step,
                file=stream,
                bar_format="starting |{bar}|",
                dynamic_ncols=True,
            )
            self._open.enter_context(self._bar)
            # Puts log lines above the bar instead of into it.
            self._open.enter_context(tqdm_logging.logging_redirect_tqdm())

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
        time_left = self._time_left(now, step)
        if self._bar:
            # Short, since a terminal may have no more than 80 columns.
            self._bar.bar_format = (
                f"{where} |{{bar}}| g {g_loss:.3f} d {d_loss:.3f} "
                f"{images_per_sec:,.0f} img/s {time_left} left"
            )
            self._bar.n = step
            self._bar.refresh()
            return
        # Ctrl-C ends the whole pipeline, so nobody may be reading any more;
        # that must not keep the state from being saved.
        with contextlib.suppress(OSError):
            print(
                f"{where}: g_loss {g_loss:.3f}, d_loss {d_loss:.3f}, "
                f"{images_per_sec:,.0f} images/s, {time_left} left",
                file=self._stream,
                flush=True,
            )

    def close(self) -> None:
        """Leaves the bar as it is and goes to the next line."""
        self._open.close()

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


def _is_screen(stream: TextIO) -> bool:
    # Terminals that nobody looks at, such as a container's, have no size; a bar
    # would stay invisible there.
    return stream.isatty() and all(os.get_terminal_size(stream.fileno()))
