"""The networks are those of the tutorial, by number and by value."""

import keras
import numpy as np
import pytest

from trainer import config, data, errors, models, randomness
from trainer.data import geometry

_LATENT_DIM = 100


@pytest.fixture(scope="module")
def networks():
    model = models.get("dcgan28")
    return (
        model.build_generator(latent_dim=_LATENT_DIM),
        model.build_discriminator(),
    )


def _num_parameters(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


def _layers(network):
    """Returns [(class name, output shape without the batch), ...]."""
    return [
        (type(layer).__name__, tuple(layer.output.shape[1:]))
        for layer in network.layers
    ]


def _normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _tutorial_generator():
    """As the tutorial writes it, for Keras 3."""
    model = keras.Sequential([keras.Input([100])])
    model.add(keras.layers.Dense(7 * 7 * 256, use_bias=False))
    model.add(keras.layers.BatchNormalization())
    model.add(keras.layers.LeakyReLU())
    model.add(keras.layers.Reshape((7, 7, 256)))
    for filters, strides in ((128, 1), (64, 2)):
        model.add(
            keras.layers.Conv2DTranspose(
                filters,
                (5, 5),
                strides=(strides, strides),
                padding="same",
                use_bias=False,
            )
        )
        model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.LeakyReLU())
    model.add(
        keras.layers.Conv2DTranspose(
            1,
            (5, 5),
            strides=(2, 2),
            padding="same",
            use_bias=False,
            activation="tanh",
        )
    )
    return model


def _tutorial_discriminator():
    model = keras.Sequential([keras.Input([28, 28, 1])])
    for filters in (64, 128):
        model.add(
            keras.layers.Conv2D(filters, (5, 5), strides=(2, 2), padding="same")
        )
        model.add(keras.layers.LeakyReLU())
        model.add(keras.layers.Dropout(0.3))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(1))
    return model


def test_dcgan28_has_the_tutorial_s_parameter_counts(networks):
    generator, discriminator = networks
    assert _num_parameters(generator.trainable_variables) == 2_305_472
    assert _num_parameters(generator.variables) == 2_330_944
    assert _num_parameters(discriminator.trainable_variables) == 212_865
    assert _num_parameters(discriminator.variables) == 212_865


def test_dcgan28_has_the_tutorial_s_layers(networks):
    generator, discriminator = networks
    assert _layers(generator) == [
        ("Dense", (12544,)),
        ("BatchNormalization", (12544,)),
        ("LeakyReLU", (12544,)),
        ("Reshape", (7, 7, 256)),
        ("Conv2DTranspose", (7, 7, 128)),
        ("BatchNormalization", (7, 7, 128)),
        ("LeakyReLU", (7, 7, 128)),
        ("Conv2DTranspose", (14, 14, 64)),
        ("BatchNormalization", (14, 14, 64)),
        ("LeakyReLU", (14, 14, 64)),
        ("Conv2DTranspose", (28, 28, 1)),
        ("Activation", (28, 28, 1)),
    ]
    assert _layers(discriminator) == [
        ("Conv2D", (14, 14, 64)),
        ("LeakyReLU", (14, 14, 64)),
        ("Dropout", (14, 14, 64)),
        ("Conv2D", (7, 7, 128)),
        ("LeakyReLU", (7, 7, 128)),
        ("Dropout", (7, 7, 128)),
        ("Flatten", (6272,)),
        ("Dense", (1,)),
    ]


def test_dcgan28_has_the_tutorial_s_settings(networks):
    generator, discriminator = networks
    for layer in generator.layers + discriminator.layers:
        match type(layer).__name__:
            case "LeakyReLU":
                assert layer.negative_slope == pytest.approx(0.3)
            case "Dropout":
                assert layer.rate == pytest.approx(0.3)
            case "BatchNormalization":
                assert (layer.momentum, layer.epsilon) == (0.99, 1e-3)
            case "Conv2D" | "Conv2DTranspose":
                assert layer.kernel_size == (5, 5)
                assert layer.padding == "same"
    strides = [
        layer.strides
        for layer in generator.layers + discriminator.layers
        if "Conv2D" in type(layer).__name__
    ]
    assert strides == [(1, 1), (2, 2), (2, 2), (2, 2), (2, 2)]


def test_only_the_discriminator_has_biases(networks):
    generator, discriminator = networks
    assert not any(v.name == "bias" for v in generator.variables)
    biases = [v for v in discriminator.variables if v.name == "bias"]
    assert [tuple(v.shape) for v in biases] == [(64,), (128,), (1,)]


def test_the_networks_share_no_variable(networks):
    generator, discriminator = networks
    ids = {id(v) for network in networks for v in network.variables}
    assert len(ids) == len(generator.variables) + len(discriminator.variables)


def test_images_are_float32_in_range_and_logits_are_one_number(networks):
    generator, discriminator = networks
    images = generator(1000.0 * _normal(5, _LATENT_DIM), training=False)
    assert images.shape == (5, 28, 28, 1)
    assert images.dtype == "float32"
    assert np.abs(images).max() <= 1.0
    assert images.numpy().min() < -0.5 and images.numpy().max() > 0.5
    logits = discriminator(images, training=False)
    assert logits.shape == (5, 1)
    assert logits.dtype == "float32"
    # Logits, not probabilities: no activation bounds them.
    far = discriminator(1e4 * images, training=False)
    assert np.abs(far).max() > 10.0


@pytest.mark.parametrize(
    ("index", "build_theirs", "input_shape"),
    [
        (0, _tutorial_generator, (6, _LATENT_DIM)),
        (1, _tutorial_discriminator, (6, 28, 28, 1)),
    ],
)
def test_the_tutorial_s_network_gives_the_same_outputs(
    networks, index, build_theirs, input_shape
):
    ours, theirs = networks[index], build_theirs()
    generator = np.random.default_rng(3)
    # Other values than the initial ones, statistics included.
    weights = [
        (w + 0.1 * generator.random(w.shape)).astype(np.float32)
        for w in theirs.get_weights()
    ]
    originals = ours.get_weights()
    theirs.set_weights(weights)
    ours.set_weights(weights)
    inputs = _normal(*input_shape)
    expected = theirs(inputs, training=False).numpy()
    actual = ours(inputs, training=False).numpy()
    ours.set_weights(originals)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-6)
    assert expected.std() > 1e-3


def test_initial_weights_have_the_tutorial_s_distribution(networks):
    for ours, theirs in zip(
        networks,
        (_tutorial_generator(), _tutorial_discriminator()),
        strict=True,
    ):
        for one, two in zip(ours.weights, theirs.weights, strict=True):
            one, two = one.numpy(), two.numpy()
            assert abs(one.mean() - two.mean()) < 0.01
            assert one.std() == pytest.approx(two.std(), rel=0.05, abs=1e-6)


def test_both_kinds_of_statistics_have_the_same_variables():
    model = models.get("dcgan28")
    synchronized = model.build_generator(latent_dim=7, sync_batch_norm=True)
    own = model.build_generator(latent_dim=7)
    assert [(v.name, v.shape) for v in synchronized.variables] == [
        (v.name, v.shape) for v in own.variables
    ]
    kinds = [
        [
            layer.synchronized
            for layer in network.layers
            if hasattr(layer, "synchronized")
        ]
        for network in (synchronized, own)
    ]
    assert kinds == [[True] * 3, [False] * 3]


def test_the_discriminator_drops_units_only_while_it_trains(networks):
    _, discriminator = networks
    images = _normal(4, 28, 28, 1)
    draws = randomness.Draws(seed=0, purpose="test", step=0)
    with randomness.draw_from(draws):
        first = discriminator(images, training=True).numpy()
        second = discriminator(images, training=True).numpy()
    assert np.all(first != second)
    np.testing.assert_array_equal(
        discriminator(images, training=False),
        discriminator(images, training=False),
    )


def test_an_unknown_model_names_the_known_ones():
    with pytest.raises(errors.UsageError, match="dcgan29.*dcgan28"):
        models.get("dcgan29")
    for name in models.MODELS:
        assert models.get(name) is models.MODELS[name]


def test_the_config_knows_the_same_names_as_the_tables():
    assert config.MODELS == tuple(models.MODELS)
    assert config.ARRAYS == tuple(data.ARRAYS)
    assert tuple(config.SOURCES) == tuple(data.SOURCES)
    assert config.RESIZERS == tuple(geometry.RESIZERS)
