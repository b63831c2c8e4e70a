"""Spectral norm by the paper's algorithm, and the same on all replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from trainer.models.spectral_norm import SpectralConv2D, SpectralDense
from trainer.train_state import TrainState

CASES = [
    (lambda **kwargs: SpectralConv2D(6, 3, **kwargs), (2, 8, 8, 4)),
    (lambda **kwargs: SpectralDense(6, **kwargs), (2, 5)),
    (lambda **kwargs: SpectralDense(1, **kwargs), (2, 5)),
]


def normal(*shape, seed=0):
    numbers = np.random.default_rng(seed).normal(size=shape)
    return numbers.astype(np.float32)


def made(case, **kwargs):
    build, shape = case
    layer = build(**kwargs)
    layer.build(shape)
    layer.kernel.assign(3.0 * normal(*layer.kernel.shape, seed=1))
    return layer, normal(*shape)


def as_matrix(kernel):
    kernel = np.asarray(kernel)
    return kernel.reshape(-1, kernel.shape[-1])


def converge(layer):
    for _ in range(300):
        layer._normalized_kernel(training=True)


def micro_discriminator():
    # Smooth, so that finite differences mean something.
    return keras.Sequential(
        [
            keras.Input(tiny.MICRO_SHAPE),
            SpectralConv2D(4, 3),
            keras.layers.Activation("softplus"),
            keras.layers.AveragePooling2D(2),
            SpectralConv2D(3, 1),
            keras.layers.Flatten(),
            SpectralDense(1, dtype="float32"),
        ],
        name="discriminator",
    )


def make(num_replicas=1, *, sync_batch_norm=True, **kwargs):
    return tiny.make_micro(
        num_replicas,
        state_settings={
            "generator": lambda: tiny.build_micro_generator(
                sync_batch_norm=sync_batch_norm
            ),
            "discriminator": micro_discriminator,
        },
        **kwargs,
    )


def vectors(state: TrainState):
    found = [
        v.numpy()
        for v in state.discriminator.non_trainable_variables
        if v.name == "u"
    ]
    assert len(found) == 3
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_largest_singular_value_becomes_1(case):
    layer, _ = made(case)
    largest = np.linalg.svd(as_matrix(layer.kernel), compute_uv=False)[0]
    assert largest > 2.0
    converge(layer)
    kernel = layer._normalized_kernel(training=False).numpy()
    singular = np.linalg.svd(as_matrix(kernel), compute_uv=False)
    assert singular[0] == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(kernel, layer.kernel / largest, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_divided_kernel(case):
    layer, inputs = made(case)
    converge(layer)
    largest = np.linalg.svd(as_matrix(layer.kernel), compute_uv=False)[0]
    layer.bias.assign(normal(layer.units, seed=2))
    kernel = layer.kernel.numpy() / largest
    if kernel.ndim == 4:
        expected = tf.nn.conv2d(inputs, kernel, 1, "SAME").numpy()
    else:
        expected = inputs @ kernel
    np.testing.assert_allclose(
        layer(inputs, training=True), expected + layer.bias, atol=1e-5
    )


@pytest.mark.parametrize("case", CASES)
def test_a_call_in_training_is_one_power_iteration(case):
    layer, inputs = made(case)
    matrix = as_matrix(layer.kernel).astype(np.float64)
    u = layer.u.numpy().astype(np.float64)
    for _ in range(3):
        v = matrix @ u
        v /= np.linalg.norm(v)
        u = matrix.T @ v
        sigma = np.linalg.norm(u)
        u /= sigma
        # In use the same is computed, but not kept.
        before = layer.u.numpy()
        in_use = layer(inputs, training=False).numpy()
        kernel = layer._normalized_kernel(training=False).numpy()
        np.testing.assert_allclose(as_matrix(kernel), matrix / sigma, atol=1e-5)
        np.testing.assert_array_equal(layer.u, before)
        np.testing.assert_array_equal(layer(inputs, training=True), in_use)
        np.testing.assert_allclose(layer.u, u, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_length_of_u_is_of_no_effect(case):
    layer, inputs = made(case)
    expected = layer(inputs, training=False).numpy()
    layer.u.assign(100.0 * layer.u)
    np.testing.assert_allclose(
        layer(inputs, training=False), expected, atol=1e-5
    )


def test_a_kernel_of_zeros_stays_finite():
    layer, inputs = made(CASES[0])
    layer.kernel.assign(tf.zeros_like(layer.kernel))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(inputs, training=True))
    assert np.isfinite(tape.gradient(total, layer.kernel.value)).all()
    assert np.isfinite(layer.u.numpy()).all()
    assert float(total) == 0.0


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_equation_10_of_the_paper(case):
    layer, _ = made(case)
    converge(layer)
    matrix = as_matrix(layer.kernel)
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    with tf.GradientTape() as tape:
        kernel = layer._normalized_kernel(training=True)
        weights = normal(*kernel.shape, seed=3)
        loss = tf.reduce_sum(kernel * weights)
    actual = tape.gradient(loss, layer.kernel.value)
    outer = left[:, :1] @ right[:1]
    inner = np.sum(as_matrix(weights) * matrix / singular[0])
    expected = (as_matrix(weights) - inner * outer) / singular[0]
    np.testing.assert_allclose(as_matrix(actual), expected, atol=1e-4)


def test_second_derivatives_through_several_layers():
    """The slope of a squared input gradient against finite differences."""
    network = micro_discriminator()
    samples = tf.constant(normal(3, *tiny.MICRO_SHAPE))
    for layer in network.layers:
        if hasattr(layer, "u"):
            converge(layer)
    weights = [tf.convert_to_tensor(v) for v in network.trainable_variables]
    buffers = [tf.convert_to_tensor(v) for v in network.non_trainable_variables]

    @tf.function
    def penalty(weights):
        with tf.GradientTape() as tape:
            tape.watch(samples)
            logits, _ = network.stateless_call(
                weights, buffers, samples, training=True
            )
        return tf.reduce_sum(tape.gradient(logits, samples) ** 2)

    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = penalty(weights)
    gradients = tape.gradient(
        value, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    kernels = [i for i, w in enumerate(weights) if len(w.shape) > 1]
    for index in kernels:
        direction = normal(*weights[index].shape, seed=index)
        direction /= np.linalg.norm(direction)

        def moved(by, index=index, direction=direction):
            return [
                w + by * direction if i == index else w
                for i, w in enumerate(weights)
            ]

        width = 1e-2
        slope = (penalty(moved(width)) - penalty(moved(-width))) / (2 * width)
        expected = np.sum(gradients[index] * direction)
        assert float(slope) == pytest.approx(expected, rel=0.05, abs=2e-3)
    assert max(np.abs(gradients[i]).max() for i in kernels) > 1e-2


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_normalizes_in_float32(precision):
    policy = keras.DTypePolicy(precision)
    for case in CASES[:2]:
        layer, inputs = made(case, dtype=policy)
        exact, _ = made(case)
        exact.u.assign(layer.u)
        outputs = layer(inputs, training=True)
        exact(inputs, training=True)
        assert outputs.dtype == policy.compute_dtype
        assert layer.u.dtype == layer.kernel.dtype == "float32"
        np.testing.assert_array_equal(layer.u, exact.u)
        np.testing.assert_array_equal(
            layer._normalized_kernel(training=False),
            tf.cast(
                exact._normalized_kernel(training=False), policy.compute_dtype
            ),
        )


@pytest.mark.parametrize("num_parts", [1, 2])
def test_replicas_and_parts_of_a_batch_equal_one(num_parts):
    sync_batch_norm = num_parts == 1
    one = make(
        num_accumulation_steps=num_parts, sync_batch_norm=sync_batch_norm
    )
    before = vectors(one[0])
    two = make(2, sync_batch_norm=sync_batch_norm)
    tiny.assert_alike(one, two)
    for own, other, old in zip(
        vectors(one[0]), vectors(two[0]), before, strict=True
    ):
        np.testing.assert_allclose(own, other, atol=1e-6)
        assert np.linalg.norm(own) == pytest.approx(1.0, abs=1e-5)
        if own.size > 1:
            assert np.linalg.norm(own - old) > 1e-3
    replicas = [
        [copy.numpy() for copy in v.value.values]
        for v in two[0].discriminator.non_trainable_variables
    ]
    for first, second in replicas:
        np.testing.assert_array_equal(first, second)


def test_three_parts_leave_u_a_unit_vector():
    state, step = make(3, global_batch_size=12)
    step.run(5)
    for u in vectors(state):
        assert np.linalg.norm(u) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("penalty", ["none", "r1_r2"])
def test_a_resumed_run_is_bit_identical(tmp_path, penalty):
    state, step = make(penalty=penalty)
    step.run(2)
    path = state.as_checkpoint().write(str(tmp_path / "saved"))
    middle = vectors(state)
    step.run(2)
    resumed, other_step = make(penalty=penalty, checkpoint=path)
    for u, value in zip(vectors(resumed), middle, strict=True):
        np.testing.assert_array_equal(u, value)
    other_step.run(2)
    for value, other in zip(
        tiny.values(state), tiny.values(resumed), strict=True
    ):
        np.testing.assert_array_equal(value, other)
    assert all(
        np.any(u != old)
        for u, old in zip(vectors(state), middle, strict=True)
        if u.size > 1
    )


def test_xla_compiles_it():
    one = make(sync_batch_norm=False)
    two = make(sync_batch_norm=False, jit_compile=True)
    tiny.assert_alike(one, two, num_steps=2)
