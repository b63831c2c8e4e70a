"""What people look at: `metrics.jsonl` and TensorBoard's event files."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from trainer import atomic_file


class MetricWriter:
    """Writes scalars and images for the global steps of one run.

    Every method raises `StorageError` if a file cannot be written.
    """

    def __init__(
        self, *, metrics: pathlib.Path, events: pathlib.Path, first_step: int
    ) -> None:
        """Opens both, forgetting what lies past `first_step`.

        A killed run may have logged steps that no checkpoint holds; the resumed
        one will log them again.

        Args:
          metrics: the file of one JSON object a line.
          events: TensorBoard's directory.
          first_step: the step that the run continues after.
        """
        self._metrics_path = metrics
        self._events_path = events
        with _storage_errors(metrics):
            _drop_records_after(metrics, first_step)
            self._metrics = open(metrics, "a", encoding="utf-8")
        with _storage_errors(events):
            self._events = EventFileWriter(str(events))
        # Tells TensorBoard to drop what older files hold from here on.
        self._add_event(
            first_step + 1,
            session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
        )

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one record; TensorBoard gets every number in it.

        A number that is not finite (an overflow whose update was skipped) is
        null in the record, for JSON knows no other, and left out of the events.
        """
        finite = {k: v for k, v in scalars.items() if math.isfinite(v)}
        record = {"step": step, **dict.fromkeys(scalars), **finite}
        with _storage_errors(self._metrics_path):
            self._metrics.write(json.dumps(record) + "\n")
            self._metrics.flush()
        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in finite.items()
        ]
        self._add_event(step, summary=summary_pb2.Summary(value=values))

    def write_image(self, step: int, name: str, png: bytes) -> None:
        """Writes an encoded picture for TensorBoard."""
        image = summary_pb2.Summary.Image(encoded_image_string=png)
        value = summary_pb2.Summary.Value(tag=name, image=image)
        self._add_event(step, summary=summary_pb2.Summary(value=[value]))

    def flush(self) -> None:
        """Puts the records on the disk, and hands the events to the system."""
        with _storage_errors(self._metrics_path):
            os.fsync(self._metrics.fileno())
        with _storage_errors(self._events_path):
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        with _storage_errors(self._metrics_path):
            self._metrics.close()
        with _storage_errors(self._events_path):
            self._events.close()

    def _add_event(self, step: int, **what: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **what)
        with _storage_errors(self._events_path):
            self._events.add_event(event)


@contextlib.contextmanager
def _storage_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    # TensorBoard writes with TensorFlow, which has errors of its own.
    except (OSError, tf.errors.OpError) as error:
        raise atomic_file.storage_error("write", path, error) from error


def _drop_records_after(path: pathlib.Path, step: int) -> None:
    """Keeps the whole records up to `step`; a torn last line is no record."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_record_until(line, step)]
    if len(kept) < len(lines):
        atomic_file.write_bytes(path, b"".join(kept))


def _is_record_until(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
