"""The networks against their papers, written out in plain ops.

The kernels are taken from our layers, in the order in which these are made, and
what is done with them is not. Where the authors' code has another order of
linear operations, theirs is written here.
"""

import re

import keras
import numpy as np
import tensorflow as tf

from tests import networks
from trainer.models import resampling
from trainer.models.grouped_convolution import GroupedConv2D
from trainer.models.layers import BatchNormalization
from trainer.models.r3gan import ToImages, ToVectors
from trainer.models.spectral_norm import SpectralConv2D, SpectralDense

_LATENTS = networks.latents(3)
_IMAGES = np.random.default_rng(1).uniform(-1, 1, [3, 32, 32, 3]).astype("f4")


def randomized(network):
    """Gives all weights other values, for some begin as zeros or as ones."""
    numbers = np.random.default_rng(2)
    for variable in network.variables:
        # Variances stay above 0.
        noise = 0.2 * np.abs(numbers.normal(size=variable.shape))
        signs = np.where(numbers.random(variable.shape) < 0.5, -1.0, 1.0)
        if "moving_variance" in variable.path:
            signs = 1.0
        variable.assign(variable + noise * signs)
    return network


def made(network, kind):
    """Iterates over the layers of a kind, in the order of their numbers."""

    def number(layer):
        found = re.search(r"_(\d+)$", layer.name)
        return int(found[1]) if found else 0

    # Of this class itself: others derive from some of Keras'.
    return iter(
        sorted((x for x in network.layers if type(x) is kind), key=number)
    )


def convolve(x, kernel, bias=0.0, stride=1):
    return tf.nn.conv2d(x, kernel, stride, "SAME") + tf.convert_to_tensor(bias)


def transpose(x, layer):
    kernel = tf.convert_to_tensor(layer.kernel)
    _, height, width, _ = x.shape
    shape = [len(x), 2 * height, 2 * width, kernel.shape[2]]
    outputs = tf.nn.conv2d_transpose(x, kernel, shape, 2, "SAME")
    return outputs if layer.bias is None else outputs + layer.bias.value


def apply(layer, x, stride=1):
    """Convolves with what an ordinary or a spectral layer has."""
    if isinstance(layer, SpectralConv2D):
        kernel = layer._normalized_kernel(training=False)
    else:
        kernel = tf.convert_to_tensor(layer.kernel)
    return convolve(
        x, kernel, 0.0 if layer.bias is None else layer.bias, stride
    )


def batch_norm(layer, x):
    mean, variance = layer.moving_mean.value, layer.moving_variance.value
    return tf.nn.batch_normalization(
        x, mean, variance, layer.beta.value, layer.gamma.value, layer.epsilon
    )


def leaky(x):
    return tf.maximum(x, 0.2 * x)


def halve(x):
    """The mean of each 2x2."""
    batch, height, width, channels = x.shape
    shape = [batch, height // 2, 2, width // 2, 2, channels]
    return tf.reduce_mean(tf.reshape(x, shape), axis=[2, 4])


def double(x):
    """Each pixel four times."""
    return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)


def check(actual, expected):
    assert np.std(expected) > 1e-2
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_sngans_discriminator():
    network = randomized(networks.build("sngan", width=8)[1])
    conv = made(network, SpectralConv2D)
    x = _IMAGES
    y = apply(next(conv), x)
    y = halve(apply(next(conv), tf.nn.relu(y)))
    x = y + apply(next(conv), halve(x))
    for halves in (True, False, False):
        y = apply(next(conv), tf.nn.relu(x))
        y = apply(next(conv), tf.nn.relu(y))
        x = halve(y) + halve(apply(next(conv), x)) if halves else y + x
    [last] = made(network, SpectralDense)
    logits = tf.reduce_sum(tf.nn.relu(x), axis=[1, 2]) @ (
        last._normalized_kernel(training=False)
    )
    check(network(_IMAGES, training=False), logits + last.bias.value)


def test_sngans_generator():
    network = randomized(networks.build("sngan", width=8)[0])
    conv, norm = (
        made(network, keras.layers.Conv2D),
        made(network, BatchNormalization),
    )
    [first] = made(network, keras.layers.Dense)
    x = tf.reshape(_LATENTS @ first.kernel + first.bias, [3, 4, 4, 8])
    for _ in range(3):
        y = tf.nn.relu(batch_norm(next(norm), x))
        y = apply(next(conv), double(y))
        y = tf.nn.relu(batch_norm(next(norm), y))
        x = apply(next(conv), y) + apply(next(conv), double(x))
    x = tf.nn.relu(batch_norm(next(norm), x))
    check(network(_LATENTS, training=False), tf.tanh(apply(next(conv), x)))


def block_of_r3gan(x, conv, grouped):
    y = leaky(apply(next(conv), x))
    layer = next(grouped)
    kernel = tf.convert_to_tensor(layer.kernel)
    # Channels in groups of 16.
    parts = [
        convolve(y[..., i : i + 16], kernel[..., i : i + 16])
        for i in range(0, y.shape[-1], 16)
    ]
    y = leaky(tf.concat(parts, axis=-1) + layer.bias.value)
    return x + apply(next(conv), y)


def test_r3gans_discriminator():
    network = randomized(networks.build("r3gan", width=16)[1])
    conv, grouped = (
        made(network, keras.layers.Conv2D),
        made(network, GroupedConv2D),
    )
    x = apply(next(conv), _IMAGES)
    for stage in range(4):
        if stage > 0:
            x = resampling.Downsampling2D()(x)
        for _ in range(2):
            x = block_of_r3gan(x, conv, grouped)
    [basis], [last] = (
        made(network, ToVectors),
        made(network, keras.layers.Dense),
    )
    features = tf.reduce_sum(x * basis.basis.value, axis=[1, 2])
    check(network(_IMAGES, training=False), features @ last.kernel)


def test_r3gans_generator():
    network = randomized(networks.build("r3gan", width=16)[0])
    conv, grouped = (
        made(network, keras.layers.Conv2D),
        made(network, GroupedConv2D),
    )
    [first], [basis] = (
        made(network, keras.layers.Dense),
        made(network, ToImages),
    )
    x = (_LATENTS @ first.kernel)[:, None, None] * basis.basis.value
    for stage in range(4):
        if stage > 0:
            x = resampling.Upsampling2D()(x)
        for _ in range(2):
            x = block_of_r3gan(x, conv, grouped)
    check(network(_LATENTS, training=True), apply(next(conv), x))


def test_gangoghs_discriminator():
    network = randomized(networks.build("gangogh", width=4)[1])
    norm = made(network, keras.layers.GroupNormalization)
    x = _IMAGES
    for stage, conv in enumerate(made(network, keras.layers.Conv2D)):
        x = apply(conv, x, stride=2)
        if stage > 0:
            # Of all numbers of an example.
            mean, variance = tf.nn.moments(x, [1, 2, 3], keepdims=True)
            layer = next(norm)
            x = tf.nn.batch_normalization(
                x, mean, variance, layer.beta.value, layer.gamma.value, 1e-5
            )
        x = leaky(x)
    [last] = made(network, keras.layers.Dense)
    logits = tf.reshape(x, [3, -1]) @ last.kernel + last.bias
    check(network(_IMAGES, training=False), logits)


def test_gangoghs_generator():
    network = randomized(networks.build("gangogh", width=4, num_classes=3)[0])
    labels = np.array([2, 0, 2], np.int32)
    rows = np.eye(3, dtype=np.float32)[labels]
    dense = made(network, keras.layers.Dense)
    norm = made(network, BatchNormalization)
    conv = made(network, keras.layers.Conv2DTranspose)

    def gated(x):
        layer = next(dense)
        shifts = rows @ layer.kernel
        if layer.bias is not None:
            shifts += layer.bias
        normed = batch_norm(next(norm), x)
        one, other = tf.split(normed + tf.reshape(shifts, x.shape), 2, axis=-1)
        return tf.sigmoid(one) * tf.tanh(other)

    x = np.concatenate([_LATENTS, rows], axis=1) @ next(dense).kernel
    x = gated(tf.reshape(x, [3, 2, 2, 64]))
    for _ in range(3):
        x = gated(transpose(x, next(conv)))
    x = tf.tanh(transpose(x, next(conv)))
    check(network([_LATENTS, labels], training=False), x)
