"""The pictures: right pixels at the right place, from latents that stay."""

import io

import keras
import numpy as np
import PIL.Image
import pytest
from absl import logging

from tests import tiny
from trainer import randomness, samples

_LATENT_DIM = 10
_PADDING = 2


def _images(num_images, height=28, width=28, channels=1):
    """Returns images of which no two share a pixel value, none white."""
    shape = [num_images, height, width, channels]
    generator = np.random.default_rng(0)
    return generator.integers(0, 255, shape, dtype=np.uint8)


def _shrink(grid, factor):
    """Undoes the enlargement, and checks that it was an exact one."""
    small = grid[::factor, ::factor]
    np.testing.assert_array_equal(
        grid, small.repeat(factor, axis=0).repeat(factor, axis=1)
    )
    return small


def _write_grids(directory, epochs, num_images=4):
    grids = {}
    for epoch in epochs:
        images = np.full([num_images, 8, 8, 1], 5 * epoch, np.uint8)
        grids[epoch] = samples.make_grid(images)
        samples.epoch_path(directory, epoch).write_bytes(
            samples.to_png(grids[epoch])
        )
    return grids


def test_to_uint8_is_exact_at_the_bounds_and_rounds_to_the_nearest():
    values = [-1.0, 0.0, 1.0, -1.0 + 0.9 / 255, -1.0 + 1.1 / 255, 0.5]
    result = samples.to_uint8(np.array(values, np.float32))
    assert result.dtype == np.uint8
    # 0.0 lies in the middle of 127 and 128, 0.5 at 191.25.
    np.testing.assert_array_equal(result, [0, 128, 255, 0, 1, 191])


def test_to_uint8_gives_every_byte_back():
    values = np.arange(256)
    scaled = (values / 127.5 - 1.0).astype(np.float32)
    np.testing.assert_array_equal(samples.to_uint8(scaled), values)


def test_to_uint8_clips_what_is_beyond():
    values = np.array([-1.01, -50.0, -np.inf, 1.01, 50.0, np.inf], np.float32)
    np.testing.assert_array_equal(
        samples.to_uint8(values), [0, 0, 0, 255, 255, 255]
    )


@pytest.mark.parametrize(
    ("num_images", "rows", "columns", "factor"),
    [
        (16, 4, 4, 4),
        (1, 1, 1, 15),
        (5, 2, 3, 5),
        (7, 3, 3, 5),
        (100, 10, 10, 2),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_holds_every_image_in_order(
    num_images, rows, columns, factor, channels
):
    images = _images(num_images, channels=channels)
    grid = _shrink(samples.make_grid(images), factor)
    cell = 28 + _PADDING
    assert grid.dtype == np.uint8
    assert grid.shape == (
        rows * cell + _PADDING,
        columns * cell + _PADDING,
        channels,
    )
    rest = grid.copy()
    for index, image in enumerate(images):
        top = index // columns * cell + _PADDING
        left = index % columns * cell + _PADDING
        window = np.s_[top : top + 28, left : left + 28]
        np.testing.assert_array_equal(grid[window], image)
        rest[window] = 255
    assert np.all(rest == 255)


def test_images_need_not_be_square():
    images = _images(4, height=3, width=700)
    grid = samples.make_grid(images)
    # Wide enough as it is.
    assert grid.shape == (2 * 5 + 2, 2 * 702 + 2, 1)
    np.testing.assert_array_equal(grid[7:10, 704:1404], images[3])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_same_pixels(channels):
    image = _images(1, height=9, width=7, channels=channels)[0]
    with PIL.Image.open(io.BytesIO(samples.to_png(image))) as decoded:
        assert decoded.format == "PNG"
        assert decoded.mode == {1: "L", 3: "RGB"}[channels]
        pixels = np.asarray(decoded).reshape(image.shape)
    np.testing.assert_array_equal(pixels, image)


def test_the_film_shows_every_grid_in_order_and_skips_missing_ones(tmp_path):
    # Only up to the epoch asked for; 10 after 9, not after 1.
    grids = _write_grids(tmp_path, [1, 2, 5, 9, 10, 11])
    samples.write_film(tmp_path, epochs=10)
    shown = [grids[epoch] for epoch in (1, 2, 5, 9, 10)]
    with PIL.Image.open(tmp_path / "training.gif") as film:
        assert film.n_frames == len(shown)
        assert film.info["loop"] == 0  # For ever.
        durations = []
        for index, grid in enumerate(shown):
            film.seek(index)
            durations.append(film.info["duration"])
            np.testing.assert_array_equal(
                np.asarray(film.convert("L")), grid[..., 0]
            )
    assert durations == [500] * 4 + [2000]


def test_a_film_of_one_grid_is_a_film(tmp_path):
    grids = _write_grids(tmp_path, [1])
    samples.write_film(tmp_path, epochs=1)
    with PIL.Image.open(tmp_path / "training.gif") as film:
        assert film.size == grids[1].shape[1::-1]


def test_a_long_film_takes_no_longer_than_a_few_seconds(tmp_path):
    _write_grids(tmp_path, range(1, 41), num_images=1)
    samples.write_film(tmp_path, epochs=40)
    with PIL.Image.open(tmp_path / "training.gif") as film:
        assert film.n_frames == 40
        assert film.info["duration"] == 120  # Of 5 s; GIF counts in 10 ms.


def test_the_frames_of_a_film_are_of_one_size(tmp_path):
    _write_grids(tmp_path, [1], num_images=4)
    last = _write_grids(tmp_path, [2], num_images=25)[2]
    assert last.shape != samples.make_grid(_images(4, 8, 8)).shape
    samples.write_film(tmp_path, epochs=2)
    with PIL.Image.open(tmp_path / "training.gif") as film:
        assert film.size == last.shape[1::-1]
        film.seek(1)
        np.testing.assert_array_equal(
            np.asarray(film.convert("L")), last[..., 0]
        )


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: lines.append(text % args)
    )
    return lines


def test_a_damaged_grid_is_left_out_and_named(tmp_path, warnings):
    grids = _write_grids(tmp_path, [1, 2, 3])
    samples.epoch_path(tmp_path, 3).write_bytes(b"no picture")
    samples.write_film(tmp_path, epochs=3)
    with PIL.Image.open(tmp_path / "training.gif") as film:
        assert film.n_frames == 2
        assert film.size == grids[2].shape[1::-1]
    (line,) = warnings
    assert str(samples.epoch_path(tmp_path, 3)) in line


def test_no_damage_of_a_grid_ends_the_run(tmp_path, warnings):
    _write_grids(tmp_path, [1])
    path = samples.epoch_path(tmp_path, 1)
    good = path.read_bytes()
    kinds = set()
    for index in range(len(good)):
        for bit in (0x01, 0x80):
            flipped = bytes([good[index] ^ bit])
            path.write_bytes(good[:index] + flipped + good[index + 1 :])
            samples.write_film(tmp_path, epochs=1)
        path.write_bytes(good[:index])
        (tmp_path / "training.gif").unlink(missing_ok=True)
        samples.write_film(tmp_path, epochs=1)
        kinds.add((tmp_path / "training.gif").exists())
    assert False in kinds
    assert warnings


def test_without_any_grid_there_is_no_film(tmp_path):
    samples.write_film(tmp_path, epochs=3)
    assert list(tmp_path.iterdir()) == []


def test_a_film_of_many_grids_shows_some_evenly_and_the_last(
    tmp_path, monkeypatch
):
    _write_grids(tmp_path, range(1, 12), num_images=1)
    monkeypatch.setattr(samples, "_MAX_FRAMES", 6)
    read = []
    original = samples._read_frame
    monkeypatch.setattr(
        samples,
        "_read_frame",
        lambda path: read.append(path) or original(path),
    )
    samples.write_film(tmp_path, epochs=11)
    expected = [1, 3, 5, 7, 9, 11]
    assert read == [samples.epoch_path(tmp_path, epoch) for epoch in expected]
    with PIL.Image.open(tmp_path / "training.gif") as film:
        assert film.n_frames == 6


def _echo():
    """A generator that returns its latents."""
    return keras.Sequential(
        [keras.Input([_LATENT_DIM]), keras.layers.Identity()]
    )


def _sampler(generator, *, seed=0, num_samples=16):
    return samples.Sampler(
        generator, latent_dim=_LATENT_DIM, num_samples=num_samples, seed=seed
    )


def test_the_latents_depend_on_the_seed_only():
    first = _sampler(_echo()).sample()
    assert first.shape == (16, _LATENT_DIM)
    keras.utils.set_random_seed(77)
    np.testing.assert_array_equal(_sampler(_echo()).sample(), first)
    assert np.all(_sampler(_echo(), seed=1).sample() != first)
    assert len(np.unique(first, axis=0)) == 16


def test_more_samples_begin_with_the_same_ones():
    few = _sampler(_echo(), num_samples=5).sample()
    many = _sampler(_echo(), num_samples=16).sample()
    np.testing.assert_array_equal(many[:5], few)


def test_sampling_follows_the_weights_and_changes_nothing():
    generator = tiny.build_generator(latent_dim=_LATENT_DIM)
    sampler = _sampler(generator)
    before = [v.numpy() for v in generator.variables]
    first = sampler.sample()
    assert first.shape == (16, 28, 28, 1)
    assert np.abs(first).max() <= 1.0
    np.testing.assert_array_equal(sampler.sample(), first)
    for variable, value in zip(generator.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    kernel = generator.trainable_variables[-2]
    kernel.assign(-kernel)
    assert np.abs(sampler.sample() - first).max() > 0.0


@pytest.mark.parametrize(
    ("num_samples", "size"), [(1, 1), (16, 16), (64, 64), (150, 64)]
)
def test_sampling_is_traced_once_and_for_few_at_a_time(num_samples, size):
    calls = []

    class Counter(keras.layers.Layer):
        def call(self, inputs):
            calls.append(inputs.shape)
            return inputs

    generator = keras.Sequential([keras.Input([_LATENT_DIM]), Counter()])
    calls.clear()
    sampler = _sampler(generator, num_samples=num_samples)
    for _ in range(3):
        made = sampler.sample()
    assert calls == [(size, _LATENT_DIM)]
    expected = randomness.Draws(
        seed=0, purpose="sample latents", step=0
    ).normal((num_samples, _LATENT_DIM))
    np.testing.assert_array_equal(made, expected)
