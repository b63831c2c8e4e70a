"""How far training is, for a person: a bar, or plain lines in a log file."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import tqdm
from tqdm.contrib import logging as tqdm_logging

_SECS_BETWEEN_LINES = 10.0
_SECS_BETWEEN_SCALE_LINES = 1.0


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
        self._first_step = first_step
        self._last_step = last_step
        self._epochs = epochs
        self._stream = stream
        self._clock = clock
        self._start: tuple[float, int] | None = None
        self._last_line_time = clock()
        self._last_scale_line_time = -math.inf
        self._known_loss_scales: dict[str, float] | None = None
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
        loss_scales: Mapping[str, float] | None = None,
    ) -> None:
        """Shows a finished step; lines are at least ten seconds apart.

        Args:
          step: the finished one.
          epoch: its epoch.
          g_loss: the generator's loss.
          d_loss: the discriminator's.
          images_per_sec: over all replicas.
          loss_scales: g_loss_scale, d_loss_scale, g_skipped_steps and
            d_skipped_steps, which get a line of their own when they move, at
            most one a second; None without loss scaling.
        """
        now = self._clock()
        if self._start is None:
            # The first steps include compilation, which tells nothing about
            # the others.
            self._start = (now, step)
        if loss_scales:
            self._show_loss_scales(now, step, loss_scales)
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
        self._write_line(
            f"{where}: g_loss {g_loss:.3f}, d_loss {d_loss:.3f}, "
            f"{images_per_sec:,.0f} images/s, {time_left} left"
        )

    def close(self) -> None:
        """Leaves the bar as it is and goes to the next line."""
        self._open.close()

    def _show_loss_scales(
        self, now: float, step: int, loss_scales: Mapping[str, float]
    ) -> None:
        known = self._known_loss_scales
        if known is None:
            # A resumed run's skipped steps may be those of runs before it.
            skips = ("g_skipped_steps", "d_skipped_steps")
            moved = self._first_step == 0 and any(
                loss_scales[name] for name in skips
            )
        else:
            moved = loss_scales != known
        is_early = now - self._last_scale_line_time < _SECS_BETWEEN_SCALE_LINES
        if moved and is_early and step != self._last_step:
            return  # Still news at the next update.
        self._known_loss_scales = dict(loss_scales)
        if moved:
            self._last_scale_line_time = now
            scales = [
                f"{network} {loss_scales[f'{network}_loss_scale']:.0f} "
                f"({loss_scales[f'{network}_skipped_steps']:.0f} skipped)"
                for network in ("g", "d")
            ]
            self._write_line(f"step {step}: loss scale {', '.join(scales)}")

    def _write_line(self, line: str) -> None:
        # Ctrl-C ends the whole pipeline, so nobody may be reading any more;
        # that must not keep the state from being saved.
        with contextlib.suppress(OSError):
            if self._bar:
                self._bar.write(line, file=self._stream)
            else:
                print(line, file=self._stream, flush=True)

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
