"""Grouped convolutions equal Keras', and have gradients of two orders."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.models import grouped_convolution
from trainer.models.grouped_convolution import (
    GroupedConv2D,
    group_by_group,
    has_gradients,
    one_op,
)


def normal(*shape, seed=0):
    numbers = np.random.default_rng(seed).normal(size=shape)
    return numbers.astype(np.float32)


def derivatives(convolve, inputs, kernel):
    """First ones of a sum of cubes, and those of their squared norm."""
    inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
    with tf.GradientTape() as outer:
        outer.watch([inputs, kernel])
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            total = tf.reduce_sum(convolve(inputs, kernel) ** 3)
        slope = inner.gradient(total, inputs)
        squared = tf.reduce_sum(slope**2)
    return [slope, *outer.gradient(squared, [inputs, kernel])]


def test_it_is_keras_layer():
    ours = GroupedConv2D(3, group_size=4)
    theirs = keras.layers.Conv2D(12, 3, padding="same", groups=3)
    inputs = normal(2, 5, 6, 12)
    for layer in (ours, theirs):
        layer.build(inputs.shape)
    for index, (own, other) in enumerate(
        zip(ours.weights, theirs.weights, strict=True)
    ):
        assert own.shape == other.shape
        own.assign(normal(*own.shape, seed=index))
        other.assign(own)
    np.testing.assert_allclose(ours(inputs), theirs(inputs), atol=1e-4)


def test_a_group_sees_its_own_channels_only():
    layer = GroupedConv2D(3, group_size=2)
    inputs = normal(1, 4, 4, 6)
    before = layer(inputs).numpy()
    inputs[..., 2:4] += 1.0
    changed = np.abs(layer(inputs).numpy() - before).max((0, 1, 2)) > 0
    assert changed.tolist() == [False, False, True, True, False, False]


def test_group_by_group_has_the_same_derivatives():
    inputs, kernel = normal(2, 5, 5, 12), normal(3, 3, 4, 12, seed=1)
    np.testing.assert_allclose(
        group_by_group(inputs, kernel), one_op(inputs, kernel), atol=1e-4
    )
    if not has_gradients("float32"):
        pytest.skip("The one op has no gradients here.")
    for own, other in zip(
        derivatives(group_by_group, inputs, kernel),
        derivatives(one_op, inputs, kernel),
        strict=True,
    ):
        scale = np.abs(other).max()
        assert scale > 1.0
        np.testing.assert_allclose(own / scale, other / scale, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_derivatives_exist_in_every_type(dtype):
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    layer = GroupedConv2D(3, group_size=4, dtype=policy)
    inputs, kernel = normal(1, 4, 4, 8), normal(3, 3, 4, 8, seed=1) / 10
    network = keras.Sequential([keras.Input(inputs.shape[1:]), layer])

    def convolve(inputs, kernel):
        weights = [kernel, tf.zeros([8])]
        outputs, _ = network.stateless_call(weights, [], inputs)
        assert outputs.dtype == dtype
        return tf.cast(outputs, tf.float32)

    exact = derivatives(one_op, inputs, kernel)
    tolerance = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}[dtype]
    for own, other in zip(
        derivatives(convolve, inputs, kernel), exact, strict=True
    ):
        scale = np.abs(other).max()
        np.testing.assert_allclose(own / scale, other / scale, atol=tolerance)


def test_where_one_op_has_no_gradients_it_goes_group_by_group(monkeypatch):
    inputs = normal(1, 4, 4, 8)
    calls = []
    monkeypatch.setattr(grouped_convolution, "has_gradients", lambda _: False)
    monkeypatch.setattr(
        grouped_convolution,
        "group_by_group",
        lambda *args: calls.append(args) or group_by_group(*args),
    )
    layer = GroupedConv2D(3, group_size=4)
    outputs = layer(inputs)
    assert calls
    np.testing.assert_allclose(
        outputs, one_op(inputs, layer.kernel.value), atol=1e-5
    )


def test_it_comes_back_from_its_config():
    layer = GroupedConv2D(3, group_size=4, kernel_initializer="zeros")
    text = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(text)
    assert type(copy) is GroupedConv2D
    assert copy.get_config() == layer.get_config()


@pytest.mark.slow
def test_without_onednn_there_are_gradients_too():
    code = """
import numpy as np, tensorflow as tf
from tests.test_grouped_convolution import derivatives, normal
from trainer.models.grouped_convolution import GroupedConv2D
layer = GroupedConv2D(3, group_size=4)
inputs, kernel = normal(1, 4, 4, 8), normal(3, 3, 4, 8, seed=1)
layer.build(inputs.shape)
call = lambda x, k: layer.stateless_call([k, tf.zeros([8])], [], x)[0]
assert all(np.abs(d).max() > 1 for d in derivatives(call, inputs, kernel))
print("one op" if layer._has_gradients else "group by group")
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "group by group"
