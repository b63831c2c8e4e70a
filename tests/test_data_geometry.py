"""Images of any size become samples of one."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests import image_files
from trainer import data
from trainer.data import geometry


def resize(image, height, width, how):
    return geometry.resize(
        tf.constant(image), height=height, width=width, how=how
    ).numpy()


def halves(height, width):
    """Returns a picture that is black on the left and white on the right."""
    image = np.zeros([height, width, 1], np.uint8)
    image[:, width // 2 :] = 255
    return image


@pytest.mark.parametrize("how", geometry.RESIZERS)
def test_the_same_size_comes_back_to_the_last_bit(how):
    image = image_files.pixels(0, 20, 30)
    np.testing.assert_array_equal(resize(image, 20, 30, how), image)


@pytest.mark.parametrize("how", geometry.RESIZERS)
@pytest.mark.parametrize("size", [(8, 8), (13, 7), (64, 48), (1, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_size_comes_out(how, size, channels):
    image = image_files.pixels(1, 21, 34, channels)
    result = resize(image, *size, how)
    assert result.shape == (*size, channels)
    assert result.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(16, 64), (64, 16)])
def test_crop_takes_the_middle(height, width):
    image = np.zeros([height, width, 1], np.uint8)
    rows, columns = (height - 16) // 2, (width - 16) // 2
    image[rows : rows + 16, columns : columns + 16] = 200
    np.testing.assert_array_equal(
        resize(image, 8, 8, "crop"), np.full([8, 8, 1], 200)
    )


def test_pad_keeps_all_and_fills_with_black():
    result = resize(np.full([10, 40, 3], 200, np.uint8), 20, 20, "pad")
    np.testing.assert_array_equal(result[7:12], 200)
    assert (result[:7] == 0).all() and (result[12:] == 0).all()


def test_fit_stretches():
    result = resize(halves(10, 40), 20, 20, "fit")
    assert (result[:, :8] == 0).all() and (result[:, 12:] == 255).all()


def test_shrinking_looks_at_every_pixel():
    # Of noise, the mean of many pixels is grey; that of four is noise.
    image = np.random.default_rng(0).integers(0, 256, [64, 64, 1], np.uint8)
    assert resize(image, 8, 8, "fit").std() < 15


def test_agrees_with_pillow():
    image = image_files.pixels(3, 75, 50)
    expected = PIL.Image.fromarray(image).resize(
        (20, 30), PIL.Image.Resampling.BICUBIC
    )
    difference = resize(image, 30, 20, "fit").astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 2


def test_overshoot_is_clipped():
    result = resize(halves(32, 32), 100, 100, "fit")
    assert result.min() == 0 and result.max() == 255
    # Had it wrapped around, there would be white in the black.
    assert (result[:, :40] < 128).all()


def test_channels():
    grey = image_files.pixels(0, channels=1)
    colours = geometry.set_channels(tf.constant(grey), 3).numpy()
    np.testing.assert_array_equal(colours, grey.repeat(3, axis=-1))
    again = geometry.set_channels(tf.constant(colours), 1).numpy()
    assert np.abs(again.astype(int) - grey).max() <= 1
    transparent = np.concatenate([colours, grey], axis=-1)
    np.testing.assert_array_equal(
        geometry.set_channels(tf.constant(transparent), 3), colours
    )


def test_arrays_are_brought_to_size_and_keep_their_digest():
    own = data.load("digits", data_dir=None)
    wanted = data.Wanted(image_size=(32, 48), channels=3, resize="pad")
    resized = data.load("digits", data_dir=None, wanted=wanted)
    assert resized.samples.shape == (1797, 32, 48, 3)
    np.testing.assert_array_equal(
        resized.samples[5],
        resize(own.samples[5].repeat(3, axis=-1), 32, 48, "pad"),
    )
    np.testing.assert_array_equal(resized.labels, own.labels)
    # Another machine may round a pixel otherwise; the config has the size.
    assert resized.digest() == own.digest()


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((94, 125), (64, 64)), ((28, 28), (64, 48)), ((200, 9), (16, 33))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_result_is_tensorflows_to_the_last_bit(size, wanted, channels):
    noise = np.random.default_rng(0).integers(0, 256, [3, *size, channels])
    images = tf.constant(noise, tf.uint8)
    expected = tf.image.resize(images, wanted, "bicubic", antialias=True)
    expected = tf.cast(tf.clip_by_value(tf.round(expected), 0, 255), tf.uint8)
    result = geometry.resize(
        images, height=wanted[0], width=wanted[1], how="fit"
    )
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(
        resize(images[1], *wanted, "fit"), expected[1]
    )
