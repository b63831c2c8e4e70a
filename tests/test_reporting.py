"""What the page is made of: curves in few points, small pictures, records."""

import base64
import io
import math

import numpy as np
import PIL.Image
import pytest

from trainer.reporting import charts, curves, history, pictures
from trainer.reporting.history import Series


def series(values):
    return Series(np.arange(len(values)), np.array(values, float))


def test_spikes_and_gaps_survive_the_decimation():
    values = np.sin(np.arange(100_000) / 5000)
    values[31_234], values[77_777] = 40.0, -40.0
    values[50_005] = math.nan
    chosen = curves.decimate(values, 1000)
    assert len(chosen) <= 1000
    assert {0, 31_234, 50_005, 77_777, 99_999} <= set(chosen.tolist())
    assert (np.diff(chosen) > 0).all()


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 1002, 3000])
def test_few_points_stay_and_many_are_bounded(count):
    chosen = curves.decimate(np.arange(float(count)), 1000)
    assert len(chosen) == min(count, len(chosen)) <= 1000
    if count <= 1000:
        assert chosen.tolist() == list(range(count))
    nothing = curves.decimate(np.full(count, math.nan), 1000)
    assert len(nothing) <= 1000


def test_averages_are_those_of_the_neighbours_that_are_known():
    values = np.full(200, 3.0)
    values[100:110] = math.nan
    averages = curves.moving_average(values)
    known = averages[~np.isnan(averages)]
    np.testing.assert_allclose(known, 3.0)
    assert np.isnan(averages[102:108]).all() and len(known) >= 192
    line = np.arange(200.0)
    np.testing.assert_allclose(
        curves.moving_average(line)[10:-10], line[10:-10]
    )


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [5.0, 5.0],
        [-3.0, 7.2],
        [1e-9, 2e-9],
        [1e30, 2e30],
        [0.9, 1.1, math.nan],
        [1.0, 1e5],
        [1e-300, 1e300],
    ],
)
def test_axes_hold_their_values_and_have_a_few_ticks(values):
    axis = curves.value_axis(np.array(values))
    for value in values:
        if not math.isnan(value):
            assert -1e-9 <= axis.place(value) <= 1 + 1e-9
    assert 2 <= len(axis.ticks) <= 8
    assert axis.place(axis.ticks[0]) == pytest.approx(0)
    assert axis.place(axis.ticks[-1]) == pytest.approx(1)


def test_values_of_many_magnitudes_get_a_logarithmic_axis():
    axis = curves.value_axis(np.array([0.3, 300.0]))
    assert axis.is_logarithmic
    assert axis.ticks == (0.1, 1.0, 10.0, 100.0, 1000.0)
    assert not curves.value_axis(np.array([0.0, 300.0])).is_logarithmic
    linear = curves.value_axis(np.array([0.3, 300.0]), is_linear=True)
    assert not linear.is_logarithmic


def test_a_gap_interrupts_the_line():
    chart = charts.Chart("One", {"a": series([1, 2, math.nan, 3, 4])})
    drawn = charts.render(chart, first_step=0, last_step=4)
    [path] = [part for part in drawn.split('"') if part.startswith("M0 300h0")]
    assert path.count("M") == 2 and path.count("L") == 2
    assert "1 value not finite" in drawn


def test_a_chart_without_a_number_says_so():
    chart = charts.Chart("One", {"a": series([math.nan, math.nan])})
    drawn = charts.render(chart, first_step=0, last_step=4)
    assert "No finite number" in drawn and "<svg" not in drawn


def test_a_long_chart_is_short():
    noise = np.random.default_rng(0).normal(size=1_000_000)
    chart = charts.Chart("One", {"a": series(noise)})
    drawn = charts.render(chart, first_step=0, last_step=1_000_000)
    assert len(drawn) < 60_000


def test_torn_lines_and_numbers_that_are_none_are_taken_as_they_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "epoch": 1, "a": 1.5, "b": "text"}\n'
        "[1, 2]\n"
        '{"step": 2, "epoch": 1, "a": null}\n'
        '{"step": 3, "epoch": 2, "a": Infinity}\n'
        '{"step": "4", "a": 1}\n'
        '{"step": 4, "kind": "evaluation", "frechet_distance": 3}\n'
        '{"step": 5, "ep'
    )
    found = history.read_history(path)
    assert list(found.series) == ["a"]
    assert found.series["a"].steps.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(
        found.series["a"].values, [1.5, math.nan, math.nan]
    )
    assert (found.last_step, found.last_epoch) == (4, 2)
    assert [e["frechet_distance"] for e in found.evaluations] == [3]


def test_the_time_of_training_follows_from_its_speed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "images_per_sec": 100}\n'
        '{"step": 30, "images_per_sec": 400}\n'
    )
    # 10 steps of 50 images, and then 20.
    found = history.read_history(path)
    assert found.training_secs(50) == pytest.approx(5 + 2.5)


def write_picture(path, shape, factor=1):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, shape, np.uint8)
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    PIL.Image.fromarray(pixels).save(path)
    return pixels


def decoded(picture):
    data = base64.b64decode(picture.uri.partition(",")[2])
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("shape", [[30, 20], [30, 20, 3]])
def test_enlarged_pictures_become_small_without_loss(tmp_path, shape):
    pixels = write_picture(tmp_path / "one.png", shape, factor=4)
    picture = pictures.read_picture(tmp_path / "one.png")
    assert (picture.width, picture.height) == (80, 120)
    assert picture.is_enlarged
    np.testing.assert_array_equal(decoded(picture), pixels[::4, ::4])


def test_what_is_too_long_is_averaged_by_a_whole_factor(tmp_path):
    write_picture(tmp_path / "one.png", [400, 400, 3])
    picture = pictures.read_picture(tmp_path / "one.png", max_bytes=60_000)
    assert decoded(picture).shape == (134, 134, 3)
    assert not picture.is_enlarged


def test_of_many_grids_some_are_taken_within_the_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_MAX_BYTES", 320_000)
    monkeypatch.setattr(pictures, "_MAX_BYTES_OF_NEWEST", 20_000)
    for epoch in range(1, 131):
        write_picture(tmp_path / f"epoch_{epoch:04d}.png", [72, 72, 3])
    grids, num_grids = pictures.read_grids(tmp_path)
    epochs = [epoch for epoch, _ in grids]
    assert num_grids == 130
    assert len(epochs) == 60 and epochs[0] == 1 and epochs[-1] == 130
    assert set(np.diff(epochs)) <= {2, 3}
    assert sum(len(p.uri) for _, p in grids) < 320_000 * 1.4
    assert decoded(grids[0][1]).shape == (36, 36, 3)
    # The newest one as it is.
    assert decoded(grids[-1][1]).shape == (72, 72, 3)


def test_damaged_pictures_are_left_out(tmp_path, caplog):
    write_picture(tmp_path / "epoch_0001.png", [30, 30])
    whole = (tmp_path / "epoch_0001.png").read_bytes()
    (tmp_path / "epoch_0002.png").write_bytes(whole[:200])
    (tmp_path / "epoch_0003.png").write_bytes(b"text")
    grids, _ = pictures.read_grids(tmp_path)
    assert [epoch for epoch, _ in grids] == [1]
    assert "epoch_0002.png" in caplog.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12345.0, "12,345"),
        (0.69314718, "0.6931"),
        (1.25e-7, "1.25e-07"),
        (3e6, "3,000,000"),
        (3e9, "3e+09"),
        (12345.678, "12,346"),
        (math.nan, "–"),
    ],
)
def test_numbers_are_short(value, text):
    assert charts.short(value) == text
