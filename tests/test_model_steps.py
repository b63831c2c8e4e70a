"""Training steps of the large models at their smallest.

Rounds are computed eagerly here, where a graph of these networks takes longer
to make than to run; one step of each model goes the whole way.
"""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests import networks, tiny
from trainer import adversarial, distribution, losses, penalties
from trainer.data.array_dataset import ArrayDataset
from trainer.network import Network, names_classes
from trainer.regularizer import Regularizer
from trainer.team import Team
from trainer.train_state import TrainState

SHAPE = (32, 32, 3)
NUM_CLASSES = 3
MODELS = tuple(networks.WIDTHS)
# The others, which are graphs of few layers, with their widths.
SMALL_MODELS = {"dcgan28": None, "dcgan": 4, "gangogh": 4}
WIDTHS = networks.WIDTHS | SMALL_MODELS
# Each loss and each penalty once.
PAIRS = [
    ("non_saturating", "dragan"),
    ("minimax", "r1"),
    ("hinge", "none"),
    ("least_squares", "r2"),
    ("wasserstein", "wgan_gp"),
    ("relativistic", "r1_r2"),
]


def shape_of(name):
    return (28, 28, 1) if name == "dcgan28" else SHAPE


def noise(shape=SHAPE):
    generator = np.random.default_rng(0)
    return ArrayDataset(
        samples=generator.integers(0, 256, [8, *shape], dtype=np.uint8),
        labels=generator.integers(0, NUM_CLASSES, [8]).astype(np.int32),
    )


def make_state(name, strategy, precision="float32", num_classes=NUM_CLASSES):
    side, _, channels = shape_of(name)

    def build(index):
        return networks.build(
            name,
            side,
            WIDTHS[name],
            num_classes,
            channels=channels,
            latent_dim=tiny.LATENT_DIM,
        )[index]

    return tiny.build_state(
        strategy,
        generator=functools.partial(build, 0),
        discriminator=functools.partial(build, 1),
        precision=precision,
        has_penalty=True,
    )


def make_regularizer(name: str, state: TrainState):
    penalty = penalties.get(name)
    return penalty and Regularizer(
        penalty,
        weight=1.0,
        float32_discriminator=state.build_float32_discriminator(),
    )


def compute_round(name, loss, penalty, precision="float32"):
    """Returns both networks, and what a round gives them."""
    state = make_state(name, tf.distribute.get_strategy(), precision)
    dataset = noise(shape_of(name))
    labels = tf.constant(dataset.labels[:3])
    generator = Network.of(state.generator)._replace(labels=labels)
    discriminator = Network.of(state.discriminator)._replace(labels=labels)
    adversarial_round = adversarial.AdversarialRound(
        loss=losses.get(loss),
        latent_dim=tiny.LATENT_DIM,
        global_batch_size=3,
        num_parts=1,
        seed=0,
        regularizer=make_regularizer(penalty, state),
        names_classes=names_classes(state.discriminator),
    )
    real = tf.constant(dataset.samples[:3] / 127.5 - 1.0, tf.float32)
    zero = tf.zeros([], tf.int64)
    return (
        generator,
        discriminator,
        adversarial_round.contribution(
            generator,
            discriminator,
            real=real,
            step=zero,
            d_update=zero,
            first_position=zero,
            g_scale=tf.ones([]),
            d_scale=tf.ones([]),
        ),
    )


def check_round(name, loss, penalty, precision="float32"):
    """All gradients are there, are finite and go back through all layers."""
    generator, discriminator, made = compute_round(
        name, loss, penalty, precision
    )
    assert np.isfinite(made.means).all()
    for network, gradients in (
        (generator, made.g_gradients),
        (discriminator, made.d_gradients),
    ):
        for variable, gradient in zip(
            network.model.trainable_variables, gradients, strict=True
        ):
            assert gradient.shape == variable.shape
            assert np.isfinite(gradient).all(), variable.path
    for new, old in zip(made.d_buffers, discriminator.buffers, strict=True):
        # Of a single unit, the only unit vectors are 1 and -1.
        assert np.any(new != old) or new.shape == (1,)
    if penalty != "none":
        assert made.means[-1] > 0.0


@pytest.mark.parametrize(
    ("name", "loss", "penalty"),
    [
        *((MODELS[i % len(MODELS)], *pair) for i, pair in enumerate(PAIRS)),
        ("dcgan28", "non_saturating", "r1"),
        ("dcgan", "hinge", "dragan"),
        ("gangogh", "wasserstein", "wgan_gp"),
    ],
)
def test_every_loss_and_penalty(name, loss, penalty):
    check_round(name, loss, penalty)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize(
    ("loss", "penalty"), itertools.product(losses.LOSSES, penalties.PENALTIES)
)
def test_every_loss_with_every_penalty(name, loss, penalty):
    check_round(name, loss, penalty)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "precision",
    [
        pytest.param("mixed_bfloat16", marks=pytest.mark.slow),
        "mixed_float16",
    ],
)
def test_mixed_precision_agrees_with_float32(name, precision):
    exact = compute_round(name, "relativistic", "r1_r2")[2]
    rounded = compute_round(name, "relativistic", "r1_r2", precision)[2]
    # Losses and logits; and the penalty, of float32 but at rounded fakes.
    np.testing.assert_allclose(rounded.means, exact.means, rtol=0.1, atol=0.1)
    # As one vector each: of single weights, some round badly.
    for one, other in (
        (exact.d_gradients, rounded.d_gradients),
        (exact.g_gradients, rounded.g_gradients),
    ):
        distance = tf.linalg.global_norm(
            [a - b for a, b in zip(one, other, strict=True)]
        )
        assert distance < 0.3 * tf.linalg.global_norm(one)


def penalty_products(name):
    """Returns R1, and by kernel <its gradient, the kernel> in their order."""
    state = make_state(name, tf.distribute.get_strategy(), num_classes=None)
    network = state.discriminator
    numbers = np.random.default_rng(1)
    for variable in network.trainable_variables:
        if variable.name == "kernel" and not np.any(variable):
            # Or the last kernel of a block would hide the others.
            variable.assign(0.3 * numbers.normal(size=variable.shape))
    samples = tf.constant(numbers.normal(size=[1, *SHAPE]), tf.float32)
    discriminator = Network.of(network)
    with tf.GradientTape() as tape:
        tape.watch(discriminator.weights)
        penalty = tf.reduce_sum(
            penalties.r1(
                lambda inputs: discriminator(inputs)[0],
                real=samples,
                fake=samples,
                draws=None,
            )
        )
    gradients = tape.gradient(
        penalty,
        discriminator.weights,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    products, norms = [], []
    for variable, gradient in zip(
        network.trainable_variables, gradients, strict=True
    ):
        if variable.name != "bias":
            products.append(np.sum(gradient * variable))
            norms.append(np.linalg.norm(gradient) * np.linalg.norm(variable))
    return float(penalty), np.array(products), np.array(norms)


def test_r3gans_penalty_has_the_gradients_of_a_homogeneous_function():
    """All layers are positively homogeneous as long as biases are zero.

    Then the logit is linear in the length of the first kernel and of the two
    last ones, its squared slope quadratic (Euler's theorem); and in a block,
    one kernel can be made longer and another shorter without any effect.
    """
    penalty, products, _ = penalty_products("r3gan")
    first, *blocks, basis, last = products
    assert penalty > 1e-6
    np.testing.assert_allclose([first, basis, last], 2 * penalty, rtol=1e-3)
    for one, grouped, other in np.reshape(blocks, [8, 3]):
        assert abs(one) > 1e-4 * penalty
        assert grouped == pytest.approx(one, rel=1e-3, abs=1e-4 * penalty)
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4 * penalty)


def test_sngans_penalty_does_not_depend_on_the_length_of_kernels():
    penalty, products, norms = penalty_products("sngan")
    assert penalty > 1e-6
    assert np.all(norms > 1e-4 * penalty)
    np.testing.assert_allclose(products / norms, 0.0, atol=1e-3)


def run_steps(
    name, *, num_replicas=1, num_steps=1, penalty="r1_r2", loss, **settings
):
    strategy = distribution.make_strategy(
        "one_device" if num_replicas == 1 else "mirrored",
        num_logical_cpus=0 if num_replicas == 1 else num_replicas,
    )
    precision = settings.pop("precision", "float32")
    state = make_state(name, strategy, precision)
    before = [v.numpy() for v in state.discriminator.variables]
    step = tiny.build_step(
        state,
        Team(strategy),
        dataset=noise(),
        global_batch_size=4,
        loss=losses.get(loss),
        regularizer=make_regularizer(penalty, state),
        **settings,
    )
    for _ in range(num_steps):
        metrics = step.run(1)
    assert all(np.isfinite(list(metrics.values())))
    after = [v.numpy() for v in state.discriminator.variables]
    assert any(np.any(a != b) for a, b in zip(after, before, strict=True))
    return state, metrics


@pytest.mark.parametrize(
    ("name", "loss", "penalty"),
    [("sngan", "hinge", "none"), ("r3gan", "relativistic", "r1_r2")],
)
def test_a_compiled_step_of_its_paper(name, loss, penalty):
    run_steps(name, loss=loss, penalty=penalty)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_step_by_xla_equals_one_without(name, loss, precision):
    plain, compiled = (
        run_steps(
            name, loss=loss, precision=precision, jit_compile=jit_compile
        )[1]
        for jit_compile in (False, True)
    )
    tolerance = 1e-3 if precision == "float32" else 0.1
    for metric in ("g_loss", "d_loss", "penalty"):
        assert compiled[metric] == pytest.approx(
            plain[metric], rel=tolerance, abs=tolerance
        )


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_two_replicas_of_r3gan_equal_one(loss):
    one, two = (
        run_steps("r3gan", loss=loss, num_replicas=n, num_steps=3)[0]
        for n in (1, 2)
    )
    for value, other in zip(tiny.values(one), tiny.values(two), strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_two_replicas_of_sngan_agree_on_the_singular_vectors():
    one, two = (
        run_steps("sngan", loss="hinge", num_replicas=n, num_steps=3)[0]
        for n in (1, 2)
    )
    for variable, other in zip(
        one.discriminator.non_trainable_variables,
        two.discriminator.non_trainable_variables,
        strict=True,
    ):
        first, second = (copy.numpy() for copy in other.value.values)
        np.testing.assert_array_equal(first, second)
        # The batch statistics of the generator's batch norm differ, and so do
        # the kernels, by some learning rates.
        np.testing.assert_allclose(variable.numpy(), first, atol=5e-3)
