"""Resampling equals zero insertion or thinning around a [1, 3, 3, 1] filter."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.models.resampling import Downsampling2D, Upsampling2D

KERNEL = np.array([1.0, 3.0, 3.0, 1.0])


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def along(images, axis, function):
    return np.apply_along_axis(function, axis, images.astype(np.float64))


def double(line):
    zeros = np.zeros(2 * len(line))
    zeros[::2] = line
    # What is convolved is longer by 3: by one before and two behind.
    return np.convolve(zeros, KERNEL / 4)[1:-2]


def halve(line):
    return np.convolve(line, KERNEL / 8)[2:-1:2]


@pytest.mark.parametrize(
    ("layer", "function"), [(Upsampling2D(), double), (Downsampling2D(), halve)]
)
def test_against_the_filter(layer, function):
    images = normal(2, 6, 4, 3)
    expected = along(along(images, 1, function), 2, function)
    outputs = layer(images)
    assert outputs.shape == expected.shape
    assert outputs.shape == layer.compute_output_shape(images.shape)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


@pytest.mark.parametrize("layer", [Upsampling2D(), Downsampling2D()])
def test_a_flat_picture_stays_flat_inside(layer):
    outputs = layer(np.ones([1, 8, 8, 1], np.float32)).numpy()
    np.testing.assert_allclose(outputs[:, 1:-1, 1:-1], 1.0)
    # Beyond the border are zeros.
    assert np.all(outputs[:, 0] < 1.0)
    assert np.all(outputs[:, :, -1] < 1.0)


@pytest.mark.parametrize("layer", [Upsampling2D(), Downsampling2D()])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_second_derivatives(layer, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def derivative(images):
        with tf.GradientTape() as outer:
            outer.watch(images)
            with tf.GradientTape() as inner:
                inner.watch(images)
                total = tf.reduce_sum(layer(images) ** 2)
            squared = tf.reduce_sum(inner.gradient(total, images) ** 2)
        return outer.gradient(squared, images)

    images = normal(1, 4, 4, 2)
    size = images.size
    columns = [layer(row.reshape(images.shape)) for row in np.eye(size)]
    matrix = np.stack([np.ravel(c) for c in columns], axis=1)
    # |2 A'A x|^2, and its gradient.
    square = matrix.T @ matrix
    expected = 8.0 * square @ square @ images.ravel()
    np.testing.assert_allclose(
        np.ravel(derivative(images)), expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("layer", [Upsampling2D(), Downsampling2D()])
def test_it_comes_back_from_its_config(layer):
    text = keras.saving.serialize_keras_object(layer)
    assert type(keras.saving.deserialize_keras_object(text)) is type(layer)
