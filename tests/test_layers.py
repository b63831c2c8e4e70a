"""The layers equal Keras' on one replica, and one replica's on several."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import randomness
from trainer.models import layers

_SHAPES = ((16, 4, 4, 3), (16, 5))


def _normal(shape, *, mean=0.0, seed=0):
    numbers = np.random.default_rng(seed).normal(mean, 1.0, shape)
    return numbers.astype(np.float32)


def _train(build, inputs, *, num_replicas=1, moving_mean=0.0):
    """Calls a batch norm once in training, sharing `inputs` out.

    Returns:
      By name: outputs, the gradients of a weighted sum of the outputs' squares
      over the whole batch, and the moving statistics of the first replica.
    """
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(num_replicas)]
    )
    share = len(inputs) // num_replicas
    weights = _normal(inputs.shape, seed=1)
    channels = inputs.shape[-1]
    with strategy.scope():
        layer = build()
        layer.build((None, *inputs.shape[1:]))
        layer.gamma.assign(np.linspace(0.5, 1.5, channels))
        layer.beta.assign(np.linspace(-1.0, 1.0, channels))
        layer.moving_mean.assign(np.full([channels], moving_mean))

    def replica_fn():
        replica = tf.distribute.get_replica_context()
        first = replica.replica_id_in_sync_group * share
        x = tf.reshape(
            tf.constant(inputs)[first : first + share],
            [share, *inputs.shape[1:]],
        )
        w = tf.constant(weights)[first : first + share]
        trained = [tf.convert_to_tensor(v) for v in (layer.gamma, layer.beta)]
        with tf.GradientTape() as tape:
            tape.watch([x, *trained])
            # As the train step calls it.
            (outputs, buffers) = layer.stateless_call(
                trained,
                [
                    tf.convert_to_tensor(v)
                    for v in (layer.moving_mean, layer.moving_variance)
                ],
                x,
                training=True,
            )
            loss = tf.reduce_sum(w * outputs + outputs**2 / 2)
        gradients = tape.gradient(loss, [x, *trained])
        summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients[1:])
        return outputs, gradients[0], *summed, *buffers

    def run():
        return [
            strategy.experimental_local_results(value)
            for value in strategy.run(replica_fn)
        ]

    outputs, dx, dgamma, dbeta, mean, variance = tf.function(run)()
    return {
        "outputs": np.concatenate(outputs),
        "d_inputs": np.concatenate(dx),
        "d_gamma": dgamma[0].numpy(),
        "d_beta": dbeta[0].numpy(),
        "moving_mean": mean[0].numpy(),
        "moving_variance": variance[0].numpy(),
    }


def _assert_equal(actual, expected, *, atol):
    for name, value in expected.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(
            actual[name] / scale, value / scale, rtol=0, atol=atol, err_msg=name
        )


def _own():
    return layers.BatchNormalization()


def _synchronized():
    return layers.BatchNormalization(synchronized=True)


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("build", [_own, _synchronized])
def test_batch_norm_on_one_replica_is_keras(build, shape):
    inputs = 2.0 * _normal(shape, mean=0.7)
    actual = _train(build, inputs)
    expected = _train(keras.layers.BatchNormalization, inputs)
    _assert_equal(actual, expected, atol=1e-5)
    # The comparison would notice: nothing in it is trivial.
    for name, value in expected.items():
        assert np.abs(value).max() > 1e-2, name


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("build", [_own, _synchronized])
def test_batch_norm_called_as_a_layer_moves_its_statistics_as_keras(
    build, shape
):
    ours = build()
    theirs = keras.layers.BatchNormalization()
    for step in range(3):
        inputs = 2.0 * _normal(shape, mean=0.7, seed=step)
        ours(inputs, training=True)
        theirs(inputs, training=True)
    for one, two in zip(ours.variables, theirs.variables, strict=True):
        assert one.name == two.name
        assert one.trainable == two.trainable
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
    assert np.all(ours.moving_mean.numpy() > 0.01)
    inputs = _normal(shape, seed=9)
    np.testing.assert_allclose(
        ours(inputs, training=False),
        theirs(inputs, training=False),
        rtol=0,
        atol=1e-5,
    )
    np.testing.assert_array_equal(ours(inputs), ours(inputs, training=False))


def test_batch_norm_in_inference_changes_nothing():
    layer = layers.BatchNormalization()
    layer.build((None, 3))
    before = [v.numpy() for v in layer.variables]
    layer(_normal((8, 3)), training=False)
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("num_replicas", [2, 4])
def test_synchronized_replicas_equal_one_on_the_whole_batch(
    num_replicas, shape
):
    # Each replica's share has another mean.
    inputs = _normal(shape) + np.linspace(-2, 2, shape[0]).reshape(
        [-1] + [1] * (len(shape) - 1)
    ).astype(np.float32)
    actual = _train(_synchronized, inputs, num_replicas=num_replicas)
    _assert_equal(actual, _train(_own, inputs), atol=1e-5)


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("moving_mean", [0.0, 1000.0])
def test_synchronized_statistics_stand_a_mean_far_from_zero(
    num_replicas, moving_mean
):
    inputs = _normal((16, 4, 4, 3), mean=1000.0)
    actual = _train(
        _synchronized,
        inputs,
        num_replicas=num_replicas,
        moving_mean=moving_mean,
    )
    exact = inputs.astype(np.float64)
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(
        actual["moving_mean"], 0.99 * moving_mean + 0.01 * mean, rtol=1e-6
    )
    np.testing.assert_allclose(
        actual["moving_variance"], 0.99 + 0.01 * variance, rtol=1e-6
    )
    # A float32 near 1000 is rounded to 6e-5, and so are the outputs.
    outputs = (exact - mean) / np.sqrt(variance + 1e-3)
    outputs = outputs * np.linspace(0.5, 1.5, 3) + np.linspace(-1.0, 1.0, 3)
    np.testing.assert_allclose(actual["outputs"], outputs, rtol=0, atol=3e-4)
    centred = (exact - mean).astype(np.float32)
    expected = _train(_own, centred)
    for name in ("d_inputs", "d_gamma", "d_beta"):
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(
            actual[name] / scale, expected[name] / scale, rtol=0, atol=3e-4
        )


def test_replicas_that_are_not_synchronized_use_their_own_statistics():
    inputs = np.concatenate([_normal((8, 3)), 2.0 + _normal((8, 3), seed=1)])
    actual = _train(_own, inputs, num_replicas=2)
    for first in (0, 8):
        share = _train(_own, inputs[first : first + 8])
        np.testing.assert_allclose(
            actual["outputs"][first : first + 8], share["outputs"], atol=1e-5
        )
    whole = _train(_own, inputs)["outputs"]
    assert np.abs(actual["outputs"] - whole).max() > 0.5


@pytest.mark.parametrize(
    "layer",
    [
        layers.BatchNormalization(
            synchronized=True, momentum=0.9, epsilon=1e-5, name="norm"
        ),
        layers.Dropout(0.25, name="drop"),
    ],
)
def test_a_layer_comes_back_from_its_config(layer):
    text = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(text)
    assert type(copy) is type(layer)
    assert copy is not layer
    assert copy.get_config() == layer.get_config()
    for name in ("synchronized", "momentum", "epsilon", "rate", "name"):
        assert getattr(copy, name, None) == getattr(layer, name, None)


def _drop(inputs, *, rate=0.3, first_position=0, step=0):
    draws = randomness.Draws(
        seed=0, purpose="test", step=step, first_position=first_position
    )
    with randomness.draw_from(draws):
        return layers.Dropout(rate)(inputs, training=True).numpy()


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    outputs = _drop(tf.ones([100, 20, 30]), rate=rate)
    kept = outputs != 0.0
    deviation = np.sqrt(rate * (1 - rate) / outputs.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation + 2**-17
    # All that is kept is scaled alike, by the inverse of the true share.
    np.testing.assert_allclose(outputs[kept], 1 / (1 - rate), rtol=2e-4)
    assert abs(outputs.mean() - 1.0) < 5 * deviation / (1 - rate)


def test_dropout_is_the_identity_unless_it_trains():
    inputs = _normal((4, 5))
    layer = layers.Dropout(0.3)
    # Outside of any `draw_from`: nothing is drawn.
    for outputs in (
        layer(inputs),
        layer(inputs, training=False),
        layers.Dropout(0.0)(inputs, training=True),
    ):
        np.testing.assert_array_equal(outputs, inputs)
    with pytest.raises(RuntimeError, match="draw_from"):
        layer(inputs, training=True)


def test_replicas_drop_other_units_of_one_whole_mask():
    inputs = tf.ones([8, 7, 3])
    whole = _drop(inputs)
    for share in (4, 2):
        parts = [
            _drop(inputs[:share], first_position=first)
            for first in range(0, 8, share)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert not np.array_equal(parts[0], parts[1])
    assert not np.array_equal(_drop(inputs, step=1), whole)


def test_each_call_of_dropout_has_a_mask_of_its_own():
    layer = layers.Dropout(0.5)
    inputs = tf.ones([20, 30])
    draws = randomness.Draws(seed=0, purpose="test", step=0)
    with randomness.draw_from(draws):
        first = layer(inputs, training=True).numpy()
        second = layer(inputs, training=True).numpy()
    agreement = np.mean((first != 0) == (second != 0))
    assert abs(agreement - 0.5) < 5 * 0.5 / np.sqrt(600)


def test_gradients_pass_through_what_dropout_kept():
    inputs = tf.ones([10, 10])
    draws = randomness.Draws(seed=0, purpose="test", step=0)
    with tf.GradientTape() as tape, randomness.draw_from(draws):
        tape.watch(inputs)
        outputs = layers.Dropout(0.3)(inputs, training=True)
    np.testing.assert_array_equal(tape.gradient(outputs, inputs), outputs)
