"""The networks of spectral normalization, by layer and by number."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import networks
from trainer import errors, models
from trainer.models import sngan


def per_block(inputs, hidden, outputs, *, shortcut=True):
    """Weights of two 3x3 convolutions and a 1x1 one, all with biases."""
    count = 9 * inputs * hidden + hidden + 9 * hidden * outputs + outputs
    return count + (inputs * outputs + outputs if shortcut else 0)


def expected_sizes(channels, d_channels, num_classes):
    """Counts from the tables of the paper, without any of our code."""
    rows = num_classes or 1
    generator = 128 * 16 * channels[0] + 16 * channels[0]
    for inputs, outputs in zip(channels, channels[1:], strict=False):
        generator += per_block(inputs, outputs, outputs)
        generator += rows * 2 * (inputs + outputs)
    generator += 2 * channels[-1] + 27 * channels[-1] + 3
    first = d_channels[0]
    discriminator = per_block(3, first, first)
    for inputs, outputs in zip(d_channels, d_channels[1:], strict=False):
        # At 32x32 the last two blocks have none.
        has_shortcut = inputs != outputs
        discriminator += per_block(
            inputs, inputs, outputs, shortcut=has_shortcut
        )
    if len(set(d_channels)) == 1:
        discriminator += first * first + first  # That of the second block.
    last = d_channels[-1]
    return generator, discriminator + last + 1 + (num_classes or 0) * last


@pytest.mark.parametrize(
    ("side", "num_classes", "generator_size", "discriminator_size"),
    [
        # What research on the published code has counted.
        (32, None, 4_276_739, 1_053_825),
        (32, 10, 4_304_387, 1_055_105),
        (64, None, 12_220_675, 10_141_441),
    ],
)
def test_parameter_counts_at_the_papers_width(
    side, num_classes, generator_size, discriminator_size
):
    channels = {32: [256] * 4, 64: [1024, 512, 256, 128, 64]}[side]
    d_channels = {32: [128] * 4, 64: [64, 128, 256, 512, 1024]}[side]
    assert (generator_size, discriminator_size) == expected_sizes(
        channels, d_channels, num_classes
    )
    for network, size in zip(
        networks.build("sngan", side, None, num_classes, latent_dim=128),
        (generator_size, discriminator_size),
        strict=True,
    ):
        assert networks.num_parameters(network) == size


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(side, num_classes, channels):
    networks.check_shapes("sngan", side, 2, num_classes, channels)


def test_sizes_of_the_paper():
    _, discriminator = networks.build("sngan", 64, 4)
    sizes = [
        layer.output.shape[1:]
        for layer in discriminator.layers
        if isinstance(layer, keras.layers.Add)
    ]
    assert sizes == [
        (32, 32, 4),
        (16, 16, 8),
        (8, 8, 16),
        (4, 4, 32),
        (2, 2, 64),
    ]
    generator, discriminator = networks.build("sngan", 32, 4)
    sizes = [
        [
            layer.output.shape[1:]
            for layer in network.layers
            if isinstance(layer, keras.layers.Add)
        ]
        for network in (generator, discriminator)
    ]
    assert sizes == [
        [(8, 8, 4), (16, 16, 4), (32, 32, 4)],
        [(16, 16, 2), (8, 8, 2), (8, 8, 2), (8, 8, 2)],
    ]


@pytest.mark.parametrize("num_classes", [None, 3])
def test_all_kernels_of_the_discriminator_have_spectral_norm(num_classes):
    _, discriminator = networks.build("sngan", 32, 4, num_classes)
    trained = [v.path for v in discriminator.trainable_variables]
    estimates = [v.path for v in discriminator.non_trainable_variables]
    kernels = [path for path in trained if path.endswith("/kernel")]
    assert len(kernels) == 11 if num_classes is None else 12
    assert sorted(estimates) == sorted(
        path.replace("/kernel", "/u") for path in kernels
    )


def test_a_constant_offset_of_the_sum():
    """All maps are summed, not averaged: twice the logits for two copies."""
    layer = sngan.GlobalSumPooling2D()
    inputs = tf.cast(np.full([1, 4, 4, 2], 3000.0), tf.float16)
    # Beyond what float16 can hold.
    np.testing.assert_array_equal(layer(inputs * 10), [[480000.0, 480000.0]])


def test_initial_weights():
    generator, discriminator = networks.build("sngan", 32, 64, latent_dim=64)
    for network in (generator, discriminator):
        for variable in network.trainable_variables:
            if variable.name != "kernel":
                continue
            *_, fan_in, fan_out = variable.shape
            area = int(np.prod(variable.shape[:-2]))
            gain = 1.0
            if area == 9 and fan_out != 3:  # Not that of the image.
                gain = np.sqrt(2.0)
            expected = gain * np.sqrt(2.0 / (area * (fan_in + fan_out)))
            tolerance = 3.0 / np.sqrt(np.prod(variable.shape))
            assert np.std(variable) == pytest.approx(expected, rel=tolerance), (
                variable.path
            )


def test_the_statistics_follow_as_in_the_authors_framework():
    generator, _ = networks.build("sngan", 32, 2, sync_batch_norm=True)
    norms = [x for x in generator.layers if hasattr(x, "synchronized")]
    assert len(norms) == 7
    assert {(x.synchronized, x.momentum, x.epsilon) for x in norms} == {
        (True, 0.9, 2e-5)
    }


def test_mixed_precision_ends_in_float32():
    networks.check_precision("sngan")


def test_logits_and_samples_depend_on_the_class():
    networks.check_classes("sngan")


def test_a_generator_comes_back_from_its_file(tmp_path):
    networks.check_saving("sngan", tmp_path)


@pytest.mark.parametrize(
    ("sample_shape", "can"),
    [
        ((32, 32, 3), True),
        ((64, 64, 1), True),
        ((32, 64, 3), False),
        ((128, 128, 3), False),
        ((32, 32, 4), False),
        ((32, 32), False),
    ],
)
def test_what_it_can_make(sample_shape, can):
    assert sngan.can_make(sample_shape) == can


def test_what_it_cannot_make_is_refused_with_what_it_can():
    models.check("sngan", (32, 32, 3), width=4)
    with pytest.raises(
        errors.UsageError,
        match="48x64x3.*it makes 32x32 and 64x64.*--model=dcgan",
    ):
        models.check("sngan", (48, 64, 3), width=None)
    with pytest.raises(errors.UsageError, match="--model_width=5.*of 2"):
        models.check("sngan", (32, 32, 3), width=5)
