"""What a run shows while it trains: progress, metrics and pictures.

A disk that takes none of it is no reason to stop: the weights are what counts,
and whether those are saved is watched elsewhere.
"""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from absl import logging

from trainer import atomic_file, errors, run_directory, samples
from trainer.evaluation.evaluator import Evaluation
from trainer.metric_writer import MetricWriter
from trainer.progress import Progress
from trainer.run_directory import RunDirectory
from trainer.schedule import Schedule


class Outputs:
    """Feeds the progress bar, the metric files and the sample pictures.

    Once it is open, what cannot be written is logged and counted. A picture is
    left out then; records wait for the next write that goes well.
    """

    def __init__(
        self,
        *,
        directory: RunDirectory,
        schedule: Schedule,
        sampler: samples.Sampler,
        images_per_step: int,
        first_step: int,
    ) -> None:
        """Opens the files for a run that goes on after `first_step`.

        Raises:
          StorageError: they cannot be written.
        """
        self._directory = directory
        self._schedule = schedule
        self._sampler = sampler
        self._images_per_step = images_per_step
        self._first_step = first_step
        self._metrics = MetricWriter(
            metrics=directory.metrics,
            events=directory.events,
            first_step=first_step,
        )
        self._progress = Progress(
            first_step=first_step,
            last_step=schedule.last_step,
            epochs=schedule.epochs,
        )
        # Of the steps since the last logged one.
        self._num_steps = 0
        self._secs = 0.0
        self._data_wait_secs = 0.0
        self._save_secs = 0.0
        self._count_failures: Callable[[], dict[str, int]] = dict
        self._num_failed_writes = 0
        self._last_problem = ""

    def note_start(self, *, attempt: str, num_rollbacks: int) -> None:
        """Notes in `starts.jsonl` that training goes on from here."""
        with self._going_on_without_it():
            run_directory.append_start(
                self._directory,
                step=self._first_step,
                attempt=attempt,
                num_rollbacks=num_rollbacks,
            )

    def show_real(self, images: np.ndarray) -> None:
        """Writes `real.png` from training samples, uint8 [B, H, W, C]."""
        png = self._grid(images)
        with self._going_on_without_it():
            atomic_file.make_directory(self._directory.samples)
            atomic_file.write_bytes(self._directory.samples / "real.png", png)
        if self._first_step == 0:
            with self._going_on_without_it():
                self._metrics.write_image(0, "samples/real", png)

    def record(
        self,
        *,
        step: int,
        num_steps: int,
        secs: float,
        metrics: dict[str, float],
    ) -> None:
        """Takes what `num_steps` steps up to `step` gave and took.

        Args:
          step: the last of them.
          num_steps: how many they were.
          secs: how long they took.
          metrics: from `TrainStep.run`.
        """
        self._num_steps += num_steps
        self._secs += secs
        self._data_wait_secs += metrics["data_wait_secs"]
        images_per_sec = self._num_steps * self._images_per_step / self._secs
        epoch = self._schedule.epoch(step)
        self._progress.update(
            step=step,
            epoch=epoch,
            g_loss=metrics["g_loss"],
            d_loss=metrics["d_loss"],
            loss_scales=_loss_scales(metrics),
            images_per_sec=images_per_sec,
        )
        if self._schedule.logs_at(step):
            scalars = {
                "epoch": epoch,
                **metrics,
                "images_per_sec": images_per_sec,
                "data_wait_secs": self._data_wait_secs,
                "save_secs": self._save_secs,
                # Now, since a save may fail long after it has begun.
                **self._count_failures(),
                "failed_writes": self._num_failed_writes,
            }
            with self._going_on_without_it():
                self._metrics.write_scalars(step, scalars)
            self._num_steps, self._secs = 0, 0.0
            self._data_wait_secs, self._save_secs = 0.0, 0.0

    def record_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Takes what the generator of a step was worth."""
        record = {
            "epoch": self._schedule.epoch(step),
            **evaluation.to_json(),
        }
        with self._going_on_without_it():
            self._metrics.write_evaluation(step, record, evaluation.values)

    def count_failures_with(
        self, count_failures: Callable[[], dict[str, int]]
    ) -> None:
        """Takes what is asked for each record how often what has failed."""
        self._count_failures = count_failures

    def note_save(self, *, secs: float) -> None:
        """Takes how long training stood still for a save."""
        self._save_secs += secs

    def draw_samples(self, step: int) -> None:
        """Writes the grid of the epoch that ends with `step`."""
        epoch = self._schedule.epoch(step)
        png = self._grid(samples.to_uint8(self._sampler.sample()))
        path = samples.epoch_path(self._directory.samples, epoch)
        with self._going_on_without_it():
            atomic_file.make_directory(self._directory.samples)
            atomic_file.write_bytes(path, png)
        with self._going_on_without_it():
            self._metrics.write_image(step, "samples/generated", png)

    def _grid(self, images: np.ndarray) -> bytes:
        columns = self._sampler.num_columns
        return samples.to_png(samples.make_grid(images, columns=columns))

    def flush(self) -> None:
        """Puts on the disk what the next checkpoint stands for."""
        with self._going_on_without_it():
            self._metrics.flush()

    def make_film(self) -> None:
        """Writes `training.gif` from the grids so far."""
        with self._going_on_without_it():
            samples.write_film(
                self._directory.samples, epochs=self._schedule.epochs
            )

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the progress bar and closes the files."""
        self._progress.close()
        with self._going_on_without_it():
            self._metrics.close()

    @contextlib.contextmanager
    def _going_on_without_it(self) -> Iterator[None]:
        try:
            yield
        except errors.StorageError as error:
            self._num_failed_writes += 1
            # Each step would say the same, for as long as the disk is full.
            if str(error) != self._last_problem:
                self._last_problem = str(error)
                logging.warning("The training goes on without it: %s", error)


def _loss_scales(metrics: dict[str, float]) -> dict[str, float] | None:
    names = ("_loss_scale", "_skipped_steps")
    found = {k: v for k, v in metrics.items() if k.endswith(names)}
    return found or None


class NoOutputs:
    """Takes the place of `Outputs` in workers that write nothing."""

    def show_real(self, images: np.ndarray) -> None:
        """Does nothing."""

    def record(self, **kwargs: object) -> None:
        """Does nothing."""

    def record_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Does nothing."""

    def draw_samples(self, step: int) -> None:
        """Does nothing."""

    def make_film(self) -> None:
        """Does nothing."""
