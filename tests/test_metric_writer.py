"""Metrics as files hold them, and as TensorBoard reads them."""

import contextlib
import json
import math
import resource

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from trainer import errors, metric_writer, samples
from trainer.metric_writer import MetricWriter


@pytest.fixture
def open_writer(tmp_path):
    def open_writer(first_step=0):
        return MetricWriter(
            metrics=tmp_path / "metrics.jsonl",
            events=tmp_path / "events",
            first_step=first_step,
        )

    return open_writer


def _records(directory):
    text = (directory / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def _read_events(directory):
    accumulator = event_accumulator.EventAccumulator(
        str(directory / "events"),
        size_guidance={
            event_accumulator.SCALARS: 0,
            event_accumulator.IMAGES: 0,
        },
    )
    return accumulator.Reload()


def _write(writer, steps, attempt=0):
    for step in steps:
        writer.write_scalars(step, {"g_loss": step + attempt / 10})


def test_records_come_back_bit_for_bit(tmp_path, open_writer):
    values = {
        "g_loss": 0.1 + 0.2,
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
        "third": 1 / 3,
        "negative_zero": -0.0,
        "count": 2**40 + 1,
    }
    writer = open_writer()
    writer.write_scalars(7, values)
    # Before `close`: a reader may follow the run, and a kill may end it.
    (record,) = _records(tmp_path)
    assert record == {"step": 7, **values}
    assert list(record)[0] == "step"
    assert math.copysign(1, record["negative_zero"]) == -1
    assert isinstance(record["count"], int)
    writer.close()


def test_a_new_run_starts_with_empty_files(tmp_path, open_writer):
    open_writer().close()
    assert _records(tmp_path) == []


def test_a_resumed_run_forgets_what_it_will_log_again(tmp_path, open_writer):
    writer = open_writer()
    _write(writer, [10, 20, 28, 30, 40])
    writer.close()
    writer = open_writer(first_step=28)
    assert [r["step"] for r in _records(tmp_path)] == [10, 20, 28]
    _write(writer, [30, 40, 50], attempt=1)
    writer.close()
    assert _records(tmp_path) == [
        {"step": step, "g_loss": loss}
        for step, loss in (
            (10, 10.0),
            (20, 20.0),
            (28, 28.0),
            (30, 30.1),
            (40, 40.1),
            (50, 50.1),
        )
    ]


def test_nothing_is_rewritten_when_nothing_is_stale(tmp_path, open_writer):
    writer = open_writer()
    _write(writer, [10, 20])
    writer.close()
    before = (tmp_path / "metrics.jsonl").stat()
    open_writer(first_step=20).close()
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
    )


@pytest.mark.parametrize(
    "garbage",
    [
        b'{"step": 20, "g_lo',  # Torn, without an end.
        b'{"step": 20, "g_loss": 1.0}',  # Whole by chance, but not its end.
        b'{"step": 20, "g_lo\n',
        b"\x00\x00\x00\x00\n",
        b"\xff\xfe garbage\n",
        b"\n",
        b"20\n",
        b'["step"]\n',
        b'{"epoch": 1}\n',
        b'{"step": "20"}\n',
        b'{"step": null}\n',
    ],
)
def test_what_is_no_whole_record_is_dropped(tmp_path, open_writer, garbage):
    good = b'{"step": 10, "g_loss": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + garbage)
    writer = open_writer(first_step=20)
    assert (tmp_path / "metrics.jsonl").read_bytes() == good
    _write(writer, [30])
    writer.close()
    assert [r["step"] for r in _records(tmp_path)] == [10, 30]


def test_tensorboard_reads_scalars_and_images(tmp_path, open_writer):
    png = samples.to_png(np.zeros([8, 8, 1], np.uint8))
    writer = open_writer()
    writer.write_scalars(10, {"g_loss": 0.5, "epoch": 1})
    writer.write_scalars(20, {"g_loss": 0.25, "epoch": 2})
    writer.write_image(20, "samples/generated", png)
    writer.flush()
    events = _read_events(tmp_path)
    writer.close()
    assert events.Tags()["scalars"] == ["g_loss", "epoch"]
    scalars = events.Scalars("g_loss")
    assert [(e.step, e.value) for e in scalars] == [(10, 0.5), (20, 0.25)]
    assert [e.value for e in events.Scalars("epoch")] == [1.0, 2.0]
    (image,) = events.Images("samples/generated")
    assert image.step == 20
    assert image.encoded_image_string == png


def test_tensorboard_shows_no_step_of_a_resumed_run_twice(
    tmp_path, open_writer
):
    png = samples.to_png(np.zeros([8, 8, 1], np.uint8))
    # Two attempts end early; the second gets less far than the first.
    for attempt, (first_step, steps) in enumerate(
        [(0, [10, 20, 28, 30, 40]), (28, [30]), (28, [30, 40, 50])]
    ):
        writer = open_writer(first_step=first_step)
        _write(writer, steps, attempt)
        writer.write_image(steps[-1], "samples/generated", png)
        writer.close()
    events = _read_events(tmp_path)
    scalars = events.Scalars("g_loss")
    assert [e.step for e in scalars] == [10, 20, 28, 30, 40, 50]
    assert [e.value for e in scalars] == pytest.approx(
        [10.0, 20.0, 28.0, 30.2, 40.2, 50.2]
    )
    assert [e.step for e in events.Images("samples/generated")] == [50]


@pytest.mark.parametrize("which", ["metrics", "events"])
def test_a_path_that_cannot_be_written_is_a_storage_error(tmp_path, which):
    (tmp_path / "file").touch()
    paths = {"metrics": tmp_path / "m", "events": tmp_path / "e"}
    paths[which] = tmp_path / "file" / "below"
    with pytest.raises(errors.StorageError, match=str(paths[which])) as caught:
        MetricWriter(**paths, first_step=0)
    assert caught.value.exit_code == 6


@pytest.fixture
def small_disk():
    """Lets no file grow beyond 64 KiB; call it to have room again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))

    def make_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    yield make_room
    make_room()


def test_records_wait_for_a_full_disk(tmp_path, open_writer, small_disk):
    writer = open_writer()
    refused = 0
    # JSON needs 6 bytes for the letter, an event 2: the events still fit.
    for step in range(100):
        try:
            writer.write_scalars(step, {"\u00e9" * 300: 1.0})
        except errors.StorageError as error:
            assert "metrics.jsonl" in str(error)
            refused += 1
    assert refused > 50
    with pytest.raises(errors.StorageError, match="metrics.jsonl"):
        writer.flush()
    assert len((tmp_path / "metrics.jsonl").read_bytes()) == 2**16
    small_disk()
    writer.write_scalars(100, {"g_loss": 1.0})
    writer.close()
    assert [r["step"] for r in _records(tmp_path)] == list(range(101))
    events = _read_events(tmp_path)
    assert len(events.Scalars("\u00e9" * 300)) == 100


def test_events_wait_for_a_full_disk(tmp_path, open_writer, small_disk):
    writer = open_writer()
    refused = 0
    for step in range(10):
        try:
            writer.write_image(step, "samples/generated", b"x" * 2**15)
        except errors.StorageError as error:
            assert "events" in str(error)
            refused += 1
    assert refused == 9
    small_disk()
    writer.close()
    images = _read_events(tmp_path).Images("samples/generated")
    assert [image.step for image in images] == list(range(10))


def test_what_waits_is_bounded_and_stays_whole(
    tmp_path, open_writer, small_disk, monkeypatch
):
    monkeypatch.setattr(metric_writer, "_MAX_WAITING_BYTES", 2**16)
    writer = open_writer()
    for step in range(10):
        with contextlib.suppress(errors.StorageError):
            writer.write_image(step, "samples/generated", b"x" * 2**15)
    small_disk()
    writer.write_image(10, "samples/generated", b"y")
    writer.close()
    images = _read_events(tmp_path).Images("samples/generated")
    # The first fitted; the rest of the second and one more could wait.
    assert [image.step for image in images] == [0, 1, 2, 10]


def test_a_long_event_file_is_closed_and_another_begun(
    tmp_path, open_writer, monkeypatch
):
    monkeypatch.setattr(metric_writer, "_MAX_EVENT_FILE_BYTES", 1000)
    writer = open_writer()
    for step in range(10):
        writer.write_image(step, "samples/generated", b"x" * 400)
    sizes = [p.stat().st_size for p in sorted((tmp_path / "events").iterdir())]
    writer.close()
    assert len(sizes) == 4
    assert all(1000 <= size < 2000 for size in sizes[:-1])
    images = _read_events(tmp_path).Images("samples/generated")
    assert [image.step for image in images] == list(range(10))


def test_the_files_are_nobodys_programs(tmp_path, open_writer):
    open_writer().close()
    [events] = (tmp_path / "events").iterdir()
    for path in (tmp_path / "metrics.jsonl", events):
        assert path.stat().st_mode & 0o111 == 0


def test_what_is_not_finite_is_null_and_not_drawn(tmp_path, open_writer):
    writer = open_writer()
    writer.write_scalars(1, {"g_loss": 1.0, "g_norm": math.inf})
    writer.write_scalars(2, {"g_loss": math.nan, "g_norm": 2.0})
    writer.close()
    assert _records(tmp_path) == [
        {"step": 1, "g_loss": 1.0, "g_norm": None},
        {"step": 2, "g_loss": None, "g_norm": 2.0},
    ]
    events = _read_events(tmp_path)
    assert [e.step for e in events.Scalars("g_loss")] == [1]
    assert [e.step for e in events.Scalars("g_norm")] == [2]
