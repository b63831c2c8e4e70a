"""R3GAN's networks, by layer and by number."""

import keras
import numpy as np
import pytest

from tests import networks
from trainer import errors, models
from trainer.models import r3gan
from trainer.models.grouped_convolution import GroupedConv2D


def expected_sizes(widths, num_classes):
    """Counts from the paper and the authors' presets, without our code."""

    def block(width):
        inner = 2 * width
        return 2 * width * inner + inner * 16 * 9 + 2 * inner

    blocks = sum(2 * block(width) for width in widths)
    blocks += sum(
        one * other
        for one, other in zip(widths, widths[1:], strict=False)
        if one != other
    )
    first, last = widths[0], widths[-1]
    inputs = 64 if num_classes is None else 128
    generator = blocks + 16 * first + inputs * first + 3 * last
    discriminator = blocks + 16 * first + 3 * last
    if num_classes is None:
        return generator, discriminator + first
    return (
        generator + num_classes * 64,
        discriminator + first * first + num_classes * first,
    )


@pytest.mark.parametrize(
    ("side", "num_classes", "generator_size", "discriminator_size"),
    [
        (32, 10, 20_781_952, 21_280_512),
        (64, None, 22_429_824, 22_381_440),
    ],
)
def test_parameter_counts_at_the_papers_width(
    side, num_classes, generator_size, discriminator_size
):
    widths = {32: [768] * 4, 64: [768] * 4 + [384]}[side]
    assert (generator_size, discriminator_size) == expected_sizes(
        widths, num_classes
    )
    for network, size in zip(
        networks.build("r3gan", side, None, num_classes, latent_dim=64),
        (generator_size, discriminator_size),
        strict=True,
    ):
        assert networks.num_parameters(network) == size


@pytest.mark.parametrize(
    ("side", "num_classes"), [(32, None), (32, 3), (64, 3), (128, None)]
)
def test_narrow_ones_have_the_same_form(side, num_classes):
    factor = side // 32
    widths = [8 * factor] * 4 + [8 * factor // 2**i for i in (1, 2, 3)]
    widths = widths[: 4 + int(np.log2(factor))]
    assert tuple(
        networks.num_parameters(network)
        for network in networks.build(
            "r3gan", side, 8, num_classes, latent_dim=64
        )
    ) == expected_sizes(widths, num_classes)


@pytest.mark.parametrize(
    ("side", "num_classes", "channels"),
    [(32, None, 3), (32, 3, 1), (64, None, 3)],
)
def test_shapes(side, num_classes, channels):
    networks.check_shapes("r3gan", side, 8, num_classes, channels)


def test_blocks_begin_as_the_identity():
    """A block's last kernel is zero, and no other is."""
    for network in networks.build("r3gan", 32, 16, 3):
        kernels = [
            (v, np.std(v))
            for v in network.trainable_variables
            if v.name in ("kernel", "basis")
        ]
        zeros = [v for v, deviation in kernels if deviation == 0]
        assert [v.shape for v in zeros] == [(1, 1, 32, 16)] * 8


def test_initial_weights():
    generator, discriminator = networks.build(
        "r3gan", 32, 64, 10, latent_dim=64
    )
    leaky_gain = np.sqrt(2 / (1 + 0.2**2))
    for network in (generator, discriminator):
        for layer in network.layers:
            if isinstance(layer, GroupedConv2D):
                expected = leaky_gain * 8**-0.25 / np.sqrt(9 * 16)
            elif isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
                expected = leaky_gain * 8**-0.25 / np.sqrt(64)
            else:
                continue
            assert np.std(layer.kernel) == pytest.approx(expected, rel=0.05)
            np.testing.assert_array_equal(layer.bias, 0.0)

    def deviations(network, kind):
        return [
            float(np.std(layer.weights[0]))
            for layer in network.layers
            if isinstance(layer, kind)
        ]

    dense = keras.layers.Dense
    # The embedding of ten classes, and the linear map of 128 numbers.
    assert deviations(generator, dense) == pytest.approx(
        [10**-0.5, 128**-0.5], rel=0.1
    )
    assert deviations(generator, r3gan.ToImages) == pytest.approx(
        [1.0], rel=0.1
    )
    assert sorted(deviations(discriminator, dense)) == pytest.approx(
        sorted([64**-0.5, 10**-0.5 * 64**-0.5]), rel=0.1
    )
    assert deviations(discriminator, r3gan.ToVectors) == pytest.approx(
        [0.25], rel=0.1
    )


def test_no_normalization_and_groups_of_16():
    for network in networks.build("r3gan", 64, 16):
        assert not network.non_trainable_variables
        groups = [
            (layer.group_size, layer.kernel.shape[-1])
            for layer in network.layers
            if isinstance(layer, GroupedConv2D)
        ]
        assert sorted(groups) == [(16, 32)] * 2 + [(16, 64)] * 8


def test_samples_are_clipped_in_use_only():
    layer = r3gan.ClipInUse()
    inputs = np.array([[-2.0, 0.5, 3.0]], np.float32)
    np.testing.assert_array_equal(layer(inputs), [[-1.0, 0.5, 1.0]])
    np.testing.assert_array_equal(layer(inputs, training=True), inputs)


def test_the_widest_stages_of_mixed_precision_are_float32():
    generator, discriminator = networks.build_in("mixed_bfloat16", "r3gan")
    for network in (generator, discriminator):
        kinds = {
            layer.output.shape[1]: layer.compute_dtype
            for layer in network.layers
            if isinstance(layer, GroupedConv2D)
        }
        assert kinds == {
            4: "float32",
            **dict.fromkeys((8, 16, 32), "bfloat16"),
        }
    networks.check_precision("r3gan")


def test_logits_and_samples_depend_on_the_class():
    networks.check_classes("r3gan")


def test_a_generator_comes_back_from_its_file(tmp_path):
    networks.check_saving("r3gan", tmp_path)


@pytest.mark.parametrize(
    ("sample_shape", "can"),
    [
        ((32, 32, 3), True),
        ((256, 256, 1), True),
        ((32, 64, 3), False),
        ((28, 28, 1), False),
        ((32, 32, 4), False),
        ((16384, 1), False),
    ],
)
def test_what_it_can_make(sample_shape, can):
    assert r3gan.can_make(sample_shape) == can


def test_widths_that_have_no_groups_are_refused():
    models.check("r3gan", (64, 64, 3), width=24)
    with pytest.raises(errors.UsageError, match="--model_width=20.*of 8"):
        models.check("r3gan", (64, 64, 3), width=20)
    with pytest.raises(errors.UsageError, match="48x64x3.*it makes 32x32"):
        models.check("r3gan", (48, 64, 3), width=None)
