"""What people look at: `metrics.jsonl` and TensorBoard's event files."""

import io
import itertools
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from trainer import atomic_file, errors

# More than hours of records and pictures; what comes on top is lost.
_MAX_WAITING_BYTES = 1 << 26
_MAX_EVENT_FILE_BYTES = 1 << 23
_file_numbers = itertools.count()


class MetricWriter:
    """Writes scalars and images for the global steps of one run.

    Every method raises `StorageError` if a file cannot be written. What was to
    be written waits in memory then, and the next call tries again.
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
        try:
            _drop_records_after(metrics, first_step)
            self._metrics = _GrowingFile(metrics)
        except OSError as error:
            raise atomic_file.storage_error("write", metrics, error) from error
        atomic_file.make_directory(events)
        self._events_directory = events
        self._open_events()
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
        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in finite.items()
        ]
        try:
            self._metrics.append(json.dumps(record).encode() + b"\n")
        finally:
            self._add_event(step, summary=summary_pb2.Summary(value=values))

    def write_evaluation(
        self, step: int, record: Mapping[str, Any], scalars: Mapping[str, float]
    ) -> None:
        """Writes a record of an evaluation, a line of a kind of its own.

        Args:
          step: what was evaluated.
          record: JSON types.
          scalars: for TensorBoard, below "evaluation/".
        """
        values = [
            summary_pb2.Summary.Value(
                tag=f"evaluation/{name}", simple_value=value
            )
            for name, value in scalars.items()
            if math.isfinite(value)
        ]
        line = {"step": step, "kind": "evaluation", **record}
        try:
            self._metrics.append(json.dumps(line).encode() + b"\n")
        finally:
            self._add_event(step, summary=summary_pb2.Summary(value=values))

    def write_image(self, step: int, name: str, png: bytes) -> None:
        """Writes an encoded picture for TensorBoard."""
        image = summary_pb2.Summary.Image(encoded_image_string=png)
        value = summary_pb2.Summary.Value(tag=name, image=image)
        self._add_event(step, summary=summary_pb2.Summary(value=[value]))

    def flush(self) -> None:
        """Puts the records on the disk; the events stay with the system."""
        self._metrics.sync()

    def close(self) -> None:
        """Closes both, after a last try."""
        try:
            self._metrics.close()
        finally:
            self._events.close()

    def _open_events(self) -> None:
        self._events = _GrowingFile(self._events_directory / _event_file_name())
        self._add_event(0, file_version="brain.Event:2")

    def _add_event(self, step: int, **what: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **what)
        buffer = io.BytesIO()
        RecordWriter(buffer).write(event.SerializeToString())
        self._events.append(buffer.getvalue())
        # A file that no longer grows is uploaded for the last time.
        if self._events.num_bytes >= _MAX_EVENT_FILE_BYTES:
            self._events.close()
            self._open_events()


class _GrowingFile:
    """Appends to a file; after a full disk, it goes on where that began.

    Python's own buffers would do this too, but for what a failed `close` loses.

    Attributes:
      num_bytes: what it was given so far.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self.num_bytes = 0
        self._waiting = b""
        try:
            self._descriptor = os.open(
                path,
                os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC,
                mode=0o666,
            )
        except OSError as error:
            raise self._error(error) from error

    def append(self, data: bytes) -> None:
        if len(self._waiting) + len(data) > _MAX_WAITING_BYTES:
            self._write()  # Or this data is lost, and the error says so.
        self._waiting += data
        self.num_bytes += len(data)
        self._write()

    def sync(self) -> None:
        self._write()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        try:
            self._write()
        finally:
            os.close(self._descriptor)

    def _write(self) -> None:
        try:
            while self._waiting:
                # A disk that gets full takes the first part of it.
                size = os.write(self._descriptor, self._waiting)
                self._waiting = self._waiting[size:]
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> errors.StorageError:
        return atomic_file.storage_error("write", self._path, error)


def _event_file_name() -> str:
    """Returns a new name that TensorBoard takes for an event file.

    It reads files in the order of their names, which begin with the time.
    """
    return (
        f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}."
        f"{os.getpid()}.{next(_file_numbers):06d}"
    )


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
