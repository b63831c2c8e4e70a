"""Our optimizers are Keras' own, on one replica and on several."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import config, errors, optimizers

_SHAPES = ((), (3,), (4, 5), (2, 3, 2, 2))


def _variables(seed=0):
    generator = np.random.default_rng(seed)
    return [
        tf.Variable(generator.uniform(-0.1, 0.1, shape), dtype=tf.float32)
        for shape in _SHAPES
    ]


def _gradients(num_steps, scale=1.0):
    generator = np.random.default_rng(1)
    return [
        [
            tf.constant(scale * generator.normal(size=shape), tf.float32)
            for shape in _SHAPES
        ]
        for _ in range(num_steps)
    ]


@pytest.mark.parametrize(
    ("make", "make_keras", "settings"),
    [
        (optimizers.Adam, keras.optimizers.Adam, {}),
        (
            optimizers.Adam,
            keras.optimizers.Adam,
            {"beta_1": 0.5, "beta_2": 0.9},
        ),
        # Beside gradients of this size epsilon counts.
        (optimizers.Adam, keras.optimizers.Adam, {"epsilon": 0.5}),
        (optimizers.RMSprop, keras.optimizers.RMSprop, {}),
        (optimizers.RMSprop, keras.optimizers.RMSprop, {"rho": 0.5}),
        (optimizers.RMSprop, keras.optimizers.RMSprop, {"epsilon": 0.5}),
    ],
)
def test_ten_steps_equal_keras(make, make_keras, settings):
    ours, theirs = _variables(), _variables()
    optimizer = make(ours, learning_rate=1e-3, **settings)
    keras_optimizer = make_keras(learning_rate=1e-3, **settings)
    for gradients in _gradients(10):
        optimizer.apply(gradients)
        keras_optimizer.apply(gradients, theirs)
    for one, two, start in zip(ours, theirs, _variables(), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-7)
        assert np.abs(one - start).max() > 1e-4


def test_the_flag_knows_all_optimizers():
    assert config.OPTIMIZERS == tuple(optimizers.OPTIMIZERS)


def test_an_unknown_optimizer_names_the_known_ones():
    with pytest.raises(errors.UsageError, match="lion.*adam, rmsprop"):
        optimizers.get("lion")


def test_the_default_epsilon_is_that_of_keras():
    ours, theirs = _variables(), _variables()
    adam = optimizers.Adam(ours, learning_rate=1e-2)
    keras_adam = keras.optimizers.Adam(1e-2)
    # As small as epsilon, so that it halves the steps.
    for gradients in _gradients(10, scale=1e-7):
        adam.apply(gradients)
        keras_adam.apply(gradients, theirs)
    for one, two, start in zip(ours, theirs, _variables(), strict=True):
        np.testing.assert_allclose(one - start, two - start, rtol=0, atol=1e-6)
        assert np.abs(one - start).max() > 1e-3


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_all_replicas_make_the_step_of_one(name):
    make = optimizers.get(name)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        mirrored = make(_variables(), learning_rate=1e-2)

    @tf.function
    def run(gradients):
        strategy.run(mirrored.apply, [gradients])

    single = make(_variables(), learning_rate=1e-2)
    for gradients in _gradients(5):
        run(gradients)
        single.apply(gradients)
    # The weights are among them.
    for variable, expected in zip(
        mirrored.variables, single.variables, strict=True
    ):
        copies = strategy.experimental_local_results(variable)
        assert len(copies) == 2
        np.testing.assert_array_equal(copies[0], copies[1])
        np.testing.assert_allclose(copies[0], expected, atol=1e-7)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_the_rate_of_an_update_may_be_scaled(name):
    ours, theirs = _variables(), _variables()
    scaled = optimizers.get(name)(ours, learning_rate=4e-2)
    plain = optimizers.get(name)(theirs, learning_rate=1e-2)
    for gradients in _gradients(3):
        scaled.apply(gradients, tf.constant(0.25))
        plain.apply(gradients)
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(name, tmp_path):
    make = optimizers.get(name)
    gradients = _gradients(8)
    variables = _variables()
    optimizer = make(variables, learning_rate=1e-2)
    for step in range(4):
        optimizer.apply(gradients[step])
    path = tf.train.Checkpoint(optimizer=optimizer, variables=variables).write(
        str(tmp_path / "state")
    )
    for step in range(4, 8):
        optimizer.apply(gradients[step])

    restored = _variables(seed=7)
    restored_optimizer = make(restored, learning_rate=1e-2)
    tf.train.Checkpoint(optimizer=restored_optimizer, variables=restored).read(
        path
    ).assert_consumed()
    for step in range(4, 8):
        restored_optimizer.apply(gradients[step])
    for one, two in zip(
        optimizer.variables, restored_optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(one, two)
