"""Films as MP4, decoded again."""

import sys

import numpy as np
import pytest

from trainer import errors, video


@pytest.fixture(name="ffmpeg")
def _ffmpeg():
    return pytest.importorskip("imageio_ffmpeg")


def decode(ffmpeg, path):
    reader = ffmpeg.read_frames(str(path))
    facts = next(reader)
    width, height = facts["size"]
    frames = [
        np.frombuffer(frame, np.uint8).reshape(height, width, 3)
        for frame in reader
    ]
    return facts, frames


@pytest.mark.parametrize("channels", [1, 3])
def test_every_frame_comes_back(ffmpeg, tmp_path, channels):
    path = tmp_path / "film.mp4"
    frames = [np.full([50, 64, channels], 20 * i, np.uint8) for i in range(9)]
    frames[4][:25] = 200
    video.write_mp4(path, iter(frames), frame_msecs=50)
    facts, decoded = decode(ffmpeg, path)
    assert facts["fps"] == 20
    assert [f.shape for f in decoded] == [(50, 64, 3)] * 9
    for frame, original in zip(decoded, frames, strict=True):
        assert np.abs(frame - original.astype(float)).mean() < 3
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_odd_sides_get_one_more_pixel(ffmpeg, tmp_path):
    path = tmp_path / "film.mp4"
    video.write_mp4(path, [np.zeros([51, 63, 1], np.uint8)] * 2, frame_msecs=50)
    facts, decoded = decode(ffmpeg, path)
    assert facts["size"] == (64, 52)
    assert len(decoded) == 2


def test_a_film_that_fails_leaves_the_old_one(ffmpeg, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")

    def frames():
        yield np.zeros([50, 64, 1], np.uint8)
        raise RuntimeError("The generator is lost.")

    with pytest.raises(RuntimeError, match="lost"):
        video.write_mp4(path, frames(), frame_msecs=50)
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]
    assert path.read_bytes() == b"old"


def test_a_missing_ffmpeg_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(errors.UsageError, match=r"gan-trainer\[video\]"):
        video.check_available()
