"""What a person sees of a running training, in a log and in a terminal."""

import errno
import fcntl
import io
import logging
import os
import re
import struct
import sys
import termios
import threading

import pytest

from trainer.progress import Progress


class _Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class _Terminal(io.StringIO):
    """Takes text as a terminal does; `rows` is what it would show."""

    def __init__(self, file):
        super().__init__()
        self._file = file

    def fileno(self):
        return self._file

    def isatty(self):
        return True

    @property
    def rows(self):
        return _rows(self.getvalue())


def _rows(text):
    """Returns the rows that a wide terminal shows after `text`."""
    rows = [[]]
    column = 0
    for character in re.sub(r"\x1b\[A", "", text):
        if character == "\r":
            column = 0
        elif character == "\n":
            rows.append([])
            column = 0
        else:
            row = rows[-1]
            row.extend(" " * (column + 1 - len(row)))
            row[column] = character
            column += 1
    return ["".join(row).rstrip() for row in rows]


def _resize(terminal, *, lines, columns):
    size = struct.pack("HHHH", lines, columns, 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


@pytest.fixture
def terminal():
    reader, writer = os.openpty()
    _resize(writer, lines=24, columns=120)
    yield _Terminal(writer)
    os.close(writer)
    os.close(reader)


def _update(progress, step, *, epoch=1, rate=800.0, loss_scales=None):
    progress.update(
        step=step,
        epoch=epoch,
        g_loss=0.8125,
        d_loss=1.2344,
        images_per_sec=rate,
        loss_scales=loss_scales,
    )


def _scales(g, d, *, g_skipped=0, d_skipped=0):
    return {
        "g_loss_scale": float(g),
        "d_loss_scale": float(d),
        "g_skipped_steps": float(g_skipped),
        "d_skipped_steps": float(d_skipped),
    }


def _make(stream, *, first_step=0, last_step=1400, clock=None):
    return Progress(
        first_step=first_step,
        last_step=last_step,
        epochs=50,
        stream=stream,
        clock=clock or _Clock(),
    )


def test_a_line_says_everything():
    stream, clock = io.StringIO(), _Clock()
    progress = _make(stream, clock=clock)
    clock.now += 30.0  # The first steps are slow: they are compiled.
    _update(progress, 10)
    clock.now += 20.0
    _update(progress, 50, epoch=2, rate=1234.4)
    assert stream.getvalue() == (
        "epoch 1/50 step 10/1400: g_loss 0.812, d_loss 1.234, 800 images/s, "
        "? left\n"
        # 40 steps took 20 s, so that 1,350 will take 675 s.
        "epoch 2/50 step 50/1400: g_loss 0.812, d_loss 1.234, 1,234 images/s, "
        "11:15 left\n"
    )


@pytest.mark.parametrize(
    ("secs_per_step", "text"),
    [
        (0.004, "0:04"),
        (0.0596, "1:00"),
        (3.59, "59:50"),
        (3.6, "1:00:00"),
        (100.0, "27:46:40"),
    ],
)
def test_the_time_left_is_what_the_steps_so_far_tell(
    terminal, secs_per_step, text
):
    clock = _Clock()
    # A resumed run counts its own steps only.
    progress = _make(terminal, first_step=8000, last_step=10_000, clock=clock)
    clock.now += 500.0
    _update(progress, 8010)
    clock.now += 990 * secs_per_step
    _update(progress, 9000)
    progress.close()
    assert terminal.rows[0].endswith(f" {text} left")


def test_lines_are_ten_seconds_apart_but_the_last_always_comes():
    stream, clock = io.StringIO(), _Clock()
    progress = _make(stream, last_step=1000, clock=clock)
    for step in range(1, 1001):
        clock.now += 0.251
        _update(progress, step)
    progress.close()
    lines = stream.getvalue().splitlines()
    steps = [int(re.search(r"step (\d+)/", line)[1]) for line in lines]
    # 40 steps take 10.04 s.
    assert steps == [*range(40, 1001, 40)]
    clock.now += 0.1
    stream.truncate(0)
    progress = _make(stream, first_step=990, last_step=1000, clock=clock)
    _update(progress, 999)
    assert stream.getvalue().strip("\0") == ""
    _update(progress, 1000)
    assert stream.getvalue().endswith(", 0:00 left\n")


def test_plain_lines_hold_no_control_characters():
    stream, clock = io.StringIO(), _Clock()
    progress = _make(stream, clock=clock)
    clock.now += 11.0
    _update(progress, 10)
    progress.close()
    assert re.fullmatch(r"[ -~]+\n", stream.getvalue())


class _BrokenPipe(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_training_goes_on_when_nobody_reads_the_lines():
    progress = _make(_BrokenPipe(), last_step=10)
    _update(progress, 10)
    progress.close()


def test_a_terminal_shows_one_bar_that_says_everything(terminal):
    clock = _Clock()
    progress = _make(terminal, clock=clock)
    _update(progress, 10)
    clock.now += 20.0
    _update(progress, 50, epoch=2, rate=1234.4)
    (row,) = terminal.rows
    match = re.fullmatch(r"epoch 2/50 step 50/1400 \|(.*)\| (.*)", row)
    assert match[2] == "g 0.812 d 1.234 1,234 img/s 11:15 left"
    _update(progress, 1400, epoch=50)
    progress.close()
    row, after = terminal.rows
    full = re.fullmatch(r"epoch 50/50 step 1400/1400 \|(.*)\| (.*)", row)
    assert " " not in full[1] and match[1].count(" ") >= 9
    assert full[2].endswith("0:00 left")
    assert after == ""


def test_a_resumed_bar_starts_where_the_run_stands(terminal):
    progress = _make(terminal, first_step=700)
    (row,) = terminal.rows
    bar = re.search(r"\|(.*)\|", row)[1]
    assert bar.count(" ") == len(bar) // 2
    progress.close()


def test_the_bar_fits_a_terminal_of_80_columns():
    reader, writer = os.openpty()
    _resize(writer, lines=24, columns=80)
    chunks = []

    def read():
        try:
            while chunk := os.read(reader, 4096):
                chunks.append(chunk)
        except OSError:  # How Linux says that the other end is closed.
            pass

    thread = threading.Thread(target=read)
    thread.start()
    with open(writer, "w", encoding="utf-8") as stream:
        clock = _Clock()
        progress = _make(stream, last_step=11_700, clock=clock)
        _update(progress, 10)
        clock.now += 25.0
        _update(progress, 60, epoch=50, rate=2345.0)
        progress.close()
    thread.join()
    os.close(reader)
    rows = _rows(b"".join(chunks).decode())
    assert rows[0].startswith("epoch 50/50 step 60/11700 |")
    assert rows[0].endswith("2,345 img/s 1:37:00 left")
    assert len(rows[0]) <= 80
    assert len(re.search(r"\|(.*)\|", rows[0])[1]) >= 5
    assert all(len(row) <= 80 for row in rows)


@pytest.mark.parametrize(("lines", "columns"), [(0, 0), (0, 80), (24, 0)])
def test_a_terminal_without_a_size_gets_lines(terminal, lines, columns):
    _resize(terminal.fileno(), lines=lines, columns=columns)
    progress = _make(terminal, last_step=10)
    _update(progress, 10)
    progress.close()
    assert terminal.rows[0].startswith("epoch 1/50 step 10/10: g_loss 0.812")


def test_log_lines_do_not_tear_the_bar(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    monkeypatch.setattr(logging.root, "handlers", [handler])
    progress = _make(terminal)
    _update(progress, 10)
    logging.getLogger("somewhere").warning("low on disk")
    _update(progress, 20)
    *above, bar = terminal.rows
    assert above == ["WARNING: low on disk"]
    assert bar.startswith("epoch 1/50 step 20/1400 |")
    progress.close()
    # And afterwards everything is as it was.
    logging.warning("done")
    assert logging.root.handlers == [handler]
    assert terminal.rows[1:] == [bar, "WARNING: done", ""]


def test_without_a_bar_logging_is_left_alone(monkeypatch):
    handler = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging.root, "handlers", [handler])
    progress = _make(io.StringIO())
    assert logging.root.handlers == [handler]
    progress.close()


def test_loss_scales_that_stay_give_no_line(terminal):
    for stream in (io.StringIO(), terminal):
        clock = _Clock()
        progress = _make(stream, clock=clock)
        for step in range(10, 101, 10):
            clock.now += 0.1 if stream is not terminal else 2.0
            _update(progress, step, loss_scales=_scales(32768, 32768))
        progress.close()
        assert "loss scale" not in stream.getvalue()


def test_a_line_tells_when_a_loss_scale_moves():
    stream, clock = io.StringIO(), _Clock()
    progress = _make(stream, clock=clock)
    for step, scales in [
        (340, _scales(32768, 32768)),
        (350, _scales(16384, 32768, g_skipped=1)),
        (360, _scales(16384, 32768, g_skipped=1)),
        (370, _scales(16384, 65536, g_skipped=1)),
        # Skipped twice and grown once.
        (380, _scales(16384, 32768, g_skipped=1, d_skipped=2)),
        # As low as it gets.
        (390, _scales(1, 2.0**24, g_skipped=15, d_skipped=2)),
        (400, _scales(1, 2.0**24, g_skipped=16, d_skipped=2)),
    ]:
        clock.now += 1.25
        _update(progress, step, loss_scales=scales)
    # The line that comes every ten seconds is not put off.
    clock.now += 1.25
    _update(progress, 410, loss_scales=scales)
    assert stream.getvalue().splitlines() == [
        "step 350: loss scale g 16384 (1 skipped), d 32768 (0 skipped)",
        "step 370: loss scale g 16384 (1 skipped), d 65536 (0 skipped)",
        "step 380: loss scale g 16384 (1 skipped), d 32768 (2 skipped)",
        "step 390: loss scale g 1 (15 skipped), d 16777216 (2 skipped)",
        "step 400: loss scale g 1 (16 skipped), d 16777216 (2 skipped)",
        "epoch 1/50 step 410/1400: g_loss 0.812, d_loss 1.234, 800 images/s, "
        "2:04 left",
    ]


def test_loss_scales_that_move_are_told_above_the_bar(terminal):
    clock = _Clock()
    progress = _make(terminal, clock=clock)
    for step, g_scale in [(10, 8), (20, 4), (30, 4), (40, 8)]:
        clock.now += 2.0
        scales = _scales(g_scale, 4, g_skipped=int(step > 10))
        _update(progress, step, loss_scales=scales)
    *above, bar = terminal.rows
    assert above == [
        "step 20: loss scale g 4 (1 skipped), d 4 (0 skipped)",
        "step 40: loss scale g 8 (1 skipped), d 4 (0 skipped)",
    ]
    assert bar.startswith("epoch 1/50 step 40/1400 |")
    progress.close()


def test_the_first_loss_scales_of_a_new_run_are_told_if_steps_were_skipped():
    stream = io.StringIO()
    progress = _make(stream)
    scales = _scales(32768, 8192, d_skipped=2)
    _update(progress, 10, loss_scales=scales)
    _update(progress, 20, loss_scales=scales)
    assert stream.getvalue() == (
        "step 10: loss scale g 32768 (0 skipped), d 8192 (2 skipped)\n"
    )


def test_the_first_loss_scales_of_a_resumed_run_are_not_told():
    stream, clock = io.StringIO(), _Clock()
    progress = _make(stream, first_step=700, clock=clock)
    scales = _scales(16384, 8192, g_skipped=3, d_skipped=4)
    _update(progress, 710, loss_scales=scales)
    assert stream.getvalue() == ""
    scales["g_loss_scale"], scales["g_skipped_steps"] = 8192.0, 4.0
    _update(progress, 720, loss_scales=scales)
    assert stream.getvalue() == (
        "step 720: loss scale g 8192 (4 skipped), d 8192 (4 skipped)\n"
    )


def test_loss_scale_lines_are_a_second_apart_and_the_latest_state_wins():
    stream, clock = io.StringIO(), _Clock()
    progress = _make(stream, last_step=1000, clock=clock)
    for step in range(10, 101, 10):
        clock.now += 0.251
        # At step 80 it moves for the last time.
        num_skipped = min(step, 80) // 10 - 1
        scales = _scales(2 ** (15 - num_skipped), 1, g_skipped=num_skipped)
        _update(progress, step, loss_scales=scales)
    assert stream.getvalue().splitlines() == [
        "step 20: loss scale g 16384 (1 skipped), d 1 (0 skipped)",
        "step 60: loss scale g 1024 (5 skipped), d 1 (0 skipped)",
        "step 100: loss scale g 256 (7 skipped), d 1 (0 skipped)",
    ]
    # Nothing is left untold at the end.
    clock.now += 0.251
    _update(progress, 1000, loss_scales=_scales(128, 1, g_skipped=8))
    told, last = stream.getvalue().splitlines()[3:]
    assert told == "step 1000: loss scale g 128 (8 skipped), d 1 (0 skipped)"
    assert last.startswith("epoch 1/50 step 1000/1000: ")
