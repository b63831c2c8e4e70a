"""The paper's networks, at its size by number, and at all others."""

import keras
import numpy as np
import pytest

from trainer import errors, models
from trainer.models import dcgan

SHAPES = [
    (64, 64, 3),
    (32, 32, 3),
    (28, 28, 1),
    (16, 16, 1),
    (150, 150, 3),
    (48, 64, 3),
    (37, 129, 1),
    (256, 256, 3),
]


def build(sample_shape, width=4, **kwargs):
    model = models.get("dcgan")
    return (
        model.build_generator(
            latent_dim=100, sample_shape=sample_shape, width=width, **kwargs
        ),
        model.build_discriminator(
            sample_shape=sample_shape, width=width, **kwargs
        ),
    )


def num_parameters(network):
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


@pytest.mark.parametrize(
    ("width", "generator_size", "discriminator_size"),
    [(128, 18_885_760, 17_232_768), (64, 5_142_080, 4_315_584)],
)
def test_parameter_counts_of_the_authors_code(
    width, generator_size, discriminator_size
):
    generator, discriminator = build((64, 64, 3), width)
    assert num_parameters(generator) == generator_size
    assert num_parameters(discriminator) == discriminator_size


def test_layers_of_the_paper():
    generator, discriminator = build((64, 64, 3), 128)
    shapes = [tuple(layer.output.shape[1:]) for layer in generator.layers]
    assert list(dict.fromkeys(shapes)) == [
        (16384,),
        (4, 4, 1024),
        (8, 8, 512),
        (16, 16, 256),
        (32, 32, 128),
        (64, 64, 3),
    ]
    shapes = [tuple(layer.output.shape[1:]) for layer in discriminator.layers]
    assert list(dict.fromkeys(shapes)) == [
        (32, 32, 128),
        (16, 16, 256),
        (8, 8, 512),
        (4, 4, 1024),
        (16384,),
        (1,),
    ]

    def kinds(network):
        return [type(layer).__name__ for layer in network.layers]

    stage = ["Conv2DTranspose", "BatchNormalization", "ReLU"]
    assert kinds(generator) == [
        *("Dense", "BatchNormalization", "ReLU", "Reshape"),
        *(stage * 3),
        *("Conv2DTranspose", "Activation"),
    ]
    assert kinds(discriminator) == [
        # No batch norm at the images.
        *("Conv2D", "LeakyReLU"),
        *(["Conv2D", "BatchNormalization", "LeakyReLU"] * 3),
        *("Flatten", "Dense"),
    ]
    for layer in generator.layers + discriminator.layers:
        if "Conv" in type(layer).__name__:
            assert layer.kernel_size == (5, 5)
            assert layer.strides == (2, 2)
            assert not layer.use_bias
        if type(layer).__name__ == "LeakyReLU":
            assert layer.negative_slope == pytest.approx(0.2)


@pytest.mark.parametrize("sample_shape", SHAPES)
def test_any_size_goes_through_both(sample_shape):
    generator, discriminator = build(sample_shape)
    latents = np.random.default_rng(0).normal(size=[3, 100]).astype(np.float32)
    images = generator(latents, training=False)
    assert images.shape == (3, *sample_shape)
    assert images.dtype == "float32"
    assert np.abs(images).max() <= 1.0
    logits = discriminator(images, training=False)
    assert logits.shape == (3, 1)
    assert logits.dtype == "float32"
    # The generator goes through the discriminator's sizes, backwards.
    up = [
        layer.output.shape[1:3]
        for layer in generator.layers
        if "Conv" in type(layer).__name__
    ]
    down = [
        layer.output.shape[1:3]
        for layer in discriminator.layers
        if "Conv" in type(layer).__name__
    ]
    assert up[:-1] == down[-2::-1]
    smallest = min(down[-1])
    assert 4 <= smallest <= 8


def test_the_width_is_that_of_the_full_size_and_is_capped():
    _, discriminator = build((256, 256, 3), 4)
    filters = [
        layer.filters
        for layer in discriminator.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]
    assert filters == [4, 8, 16, 32, 32, 32]


def test_initial_weights():
    generator, discriminator = build((64, 64, 3), 32)
    for network in (generator, discriminator):
        for variable in network.trainable_variables:
            values = variable.numpy()
            mean = {"gamma": 1.0}.get(variable.name, 0.0)
            stddev = {"beta": 0.0}.get(variable.name, 0.02)
            tolerance = 5 * 0.02 / values.size**0.5
            assert abs(values.mean() - mean) < tolerance, variable.path
            assert values.std() == pytest.approx(stddev, rel=0.4)


def test_mixed_precision_ends_in_float32():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        generator, discriminator = build((32, 32, 3))
    finally:
        keras.config.set_dtype_policy(before)
    images = generator(np.zeros([2, 100], np.float32), training=False)
    assert images.dtype == "float32"
    assert discriminator(images, training=False).dtype == "float32"
    assert generator.layers[0].compute_dtype == "bfloat16"


def test_batch_norm_can_be_synchronized():
    for network in build((32, 32, 3), sync_batch_norm=True):
        kinds = {
            layer.synchronized
            for layer in network.layers
            if hasattr(layer, "synchronized")
        }
        assert kinds == {True}


@pytest.mark.parametrize(
    ("sample_shape", "can"),
    [
        ((16, 256, 3), True),
        ((15, 32, 3), False),
        ((32, 257, 3), False),
        ((32, 32, 4), False),
        ((16384, 1), False),
        ((16, 64, 64, 3), False),
    ],
)
def test_what_it_can_make(sample_shape, can):
    assert dcgan.can_make(sample_shape) == can


def test_a_model_that_cannot_make_the_data_names_those_that_can():
    models.check("dcgan28", (28, 28, 1), width=None)
    with pytest.raises(errors.UsageError, match="28x28x3.*--model=dcgan") as e:
        models.check("dcgan28", (28, 28, 3), width=None)
    assert e.value.exit_code == 2
    with pytest.raises(errors.UsageError, match="1000x1000x3.*--image_size"):
        models.check("dcgan", (1000, 1000, 3), width=None)
    with pytest.raises(errors.UsageError, match="--model_width=8 has no use"):
        models.check("dcgan28", (28, 28, 1), width=8)
