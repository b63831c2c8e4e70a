"""Networks that know the classes: layers, training, and what is made of it."""

import functools
import json

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests import stored_runs, tiny
from trainer import (
    data,
    errors,
    evaluate,
    export,
    generate,
    models,
    penalties,
    randomness,
    samples,
)
from trainer.adversarial import AdversarialRound
from trainer.assembly import datasets
from trainer.config import Config
from trainer.data.array_dataset import ArrayDataset
from trainer.data.dataset import examples_of
from trainer.models import conditional, layers
from trainer.network import Network
from trainer.regularizer import Regularizer

_LABELS = np.array([2, 0, 2, 1, 0, 2], np.int32)


def _normal(*shape, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(1.0, 2.0, shape).astype(np.float32)


@pytest.mark.parametrize("synchronized", [False, True])
def test_conditional_batch_norm_is_its_formula(synchronized):
    layer = conditional.ConditionalBatchNormalization(
        3, synchronized=synchronized, momentum=0.5
    )
    inputs = _normal(6, 4, 4, 2)
    layer.build(inputs.shape)
    np.testing.assert_array_equal(layer.gamma, np.ones([3, 2]))
    np.testing.assert_array_equal(layer.beta, np.zeros([3, 2]))
    gamma, beta = _normal(3, 2, seed=1), _normal(3, 2, seed=2)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    mean, variance = inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))

    def expected(mean, variance):
        normalized = (inputs - mean) / np.sqrt(variance + 1e-3)
        rows = gamma[_LABELS][:, None, None], beta[_LABELS][:, None, None]
        return normalized * rows[0] + rows[1]

    outputs = layer(inputs, labels=_LABELS, training=True)
    np.testing.assert_allclose(outputs, expected(mean, variance), atol=1e-5)
    # Half of the old ones, 0 and 1.
    outputs = layer(inputs, labels=_LABELS, training=False)
    np.testing.assert_allclose(
        outputs, expected(mean / 2, (1 + variance) / 2), atol=1e-5
    )


def test_a_projection_is_its_formula():
    layer = conditional.Projection(3)
    features = _normal(6, 5)
    layer.build(features.shape)
    kernel, bias, embedding = (
        _normal(*v.shape, seed=i) for i, v in enumerate(layer.variables)
    )
    for variable, value in zip(
        layer.variables, (kernel, bias, embedding), strict=True
    ):
        variable.assign(value)
    assert embedding.shape == (3, 5)
    products = np.sum(embedding[_LABELS] * features, axis=1, keepdims=True)
    expected = features @ kernel + bias + products
    np.testing.assert_allclose(
        layer(features, labels=_LABELS), expected, rtol=1e-5
    )


def test_a_classifier_beside_the_logit_is_its_formula():
    layer = conditional.AuxiliaryClassifier(3)
    features = _normal(6, 5)
    layer(features, labels=_LABELS)
    kernel, bias, kernels, biases = (
        w.value.numpy() for w in layer.trainable_variables
    )
    scores = np.exp(features @ kernels + biases)
    shares = scores / scores.sum(axis=1, keepdims=True)
    expected = np.stack(
        [
            (features @ kernel + bias)[:, 0],
            np.log(shares[np.arange(6), _LABELS]),
        ],
        axis=1,
    )
    np.testing.assert_allclose(
        layer(features, labels=_LABELS), expected, rtol=1e-5, atol=1e-6
    )


_SHAPES = {"dcgan28": (28, 28, 1), "dcgan": (32, 32, 3), "gangogh": (32, 32, 3)}


def _build(name, *, num_classes, sample_shape=None, width=4):
    model = models.get(name)
    settings = {
        "sample_shape": sample_shape or _SHAPES[name],
        "width": width if model.has_width else None,
        "num_classes": num_classes,
    }
    return (
        model.build_generator(latent_dim=8, **settings),
        model.build_discriminator(**settings),
    )


def _num_parameters(network):
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


@pytest.mark.parametrize("name", _SHAPES)
def test_the_class_matters_to_both_networks(name):
    generator, discriminator = _build(name, num_classes=3)
    latents = np.repeat(_normal(1, 8), 3, axis=0)
    labels = np.arange(3, dtype=np.int32)
    for network in (generator, discriminator):
        for variable in network.trainable_variables:
            if variable.path.endswith(("gamma", "beta")):
                variable.assign(_normal(*variable.shape))
    images = generator([latents, labels], training=False).numpy()
    assert images.shape == (3, *_SHAPES[name])
    assert np.abs(images[0] - images[1]).max() > 1e-4
    same = np.repeat(images[:1], 3, axis=0)
    said = discriminator([same, labels], training=False).numpy()
    # Of an ACGAN, the logit may not depend on the label.
    assert said.shape == (3, 2 if name == "gangogh" else 1)
    assert len(np.unique(said[:, -1])) == 3


@pytest.mark.parametrize("name", _SHAPES)
def test_without_classes_they_take_one_input(name):
    for network in _build(name, num_classes=None):
        assert len(network.inputs) == 1


def test_classes_add_their_tables_and_nothing_else():
    # dcgan28: an embedding of the latents' and of the image's size, and one
    # more input and channel for them.
    added = [
        _num_parameters(one) - _num_parameters(other)
        for one, other in zip(
            _build("dcgan28", num_classes=10),
            _build("dcgan28", num_classes=None),
            strict=True,
        )
    ]
    assert added == [10 * 8 + 8 * 12544, 10 * 784 + 25 * 64]
    # dcgan: nine more rows of gamma and beta, and ten embeddings of features.
    added = [
        _num_parameters(one) - _num_parameters(other)
        for one, other in zip(
            _build("dcgan", num_classes=10),
            _build("dcgan", num_classes=None),
            strict=True,
        )
    ]
    assert added == [9 * 2 * (4 * 4 * 16 + 8 + 4), 10 * 4 * 4 * 16]


def test_gangogh_has_the_sizes_of_its_authors():
    model = models.get("gangogh")
    settings = {"sample_shape": (64, 64, 3), "num_classes": 14}
    generator = model.build_generator(latent_dim=128, **settings)
    discriminator = model.build_discriminator(**settings)
    dense = (128 + 14) * 4 * 4 * 1024
    kernels = 25 * (512 * 512 + 256 * 256 + 128 * 128 + 64 * 3) + 3
    norms = 2 * (1024 + 512 + 256 + 128)
    # Of all but the first, a bias.
    labels = 14 * 16 * 1024 + 15 * (64 * 512 + 256 * 256 + 1024 * 128)
    assert _num_parameters(generator) == dense + kernels + norms + labels
    kernels = 25 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512)
    biases, norms = 64 + 128 + 256 + 512, 2 * (128 + 256 + 512)
    last = 15 * (8192 + 1)
    assert _num_parameters(discriminator) == kernels + biases + norms + last


def test_gangogh_begins_uniform_like_that_of_its_authors():
    for network in _build("gangogh", num_classes=3, width=8):
        kernels = [
            variable.numpy()
            for variable in network.trainable_variables
            if variable.name == "kernel"
        ]
        assert len(kernels) > 5
        for kernel in kernels:
            assert np.abs(kernel).max() <= 0.02 * np.sqrt(3)
        values = np.concatenate([kernel.ravel() for kernel in kernels])
        assert values.std() == pytest.approx(0.02, rel=0.02)


def test_the_gate_is_that_of_pixelcnn():
    inputs = _normal(2, 3, 6)
    expected = np.tanh(inputs[..., 3:]) / (1 + np.exp(-inputs[..., :3]))
    np.testing.assert_allclose(layers.Gate()(inputs), expected, atol=1e-6)


def _networks(*, synchronized):
    """Settings of a state, whose batch statistics are the global batch's."""
    return {
        "generator": lambda: tiny.build_micro_generator(
            sync_batch_norm=synchronized, num_classes=10
        ),
        "discriminator": lambda: tiny.build_micro_discriminator(num_classes=10),
    }


_OBJECTIVES = [
    {"penalty": "wgan_gp", "num_discriminator_steps": 2},
    {"penalty": "r1", "penalty_every_steps": 2},
]


@pytest.mark.parametrize("settings", _OBJECTIVES)
def test_two_replicas_equal_one(settings):
    tiny.assert_alike(
        tiny.make_micro(1, num_classes=10, **settings),
        tiny.make_micro(2, num_classes=10, **settings),
        num_steps=3,
    )


def test_two_parts_equal_two_replicas():
    # Each part and each replica has batch statistics of its own.
    one, two = (
        tiny.make_micro(
            num_replicas,
            num_classes=10,
            state_settings=_networks(synchronized=False),
            penalty="r1",
            num_discriminator_steps=2,
            num_accumulation_steps=num_parts,
        )
        for num_replicas, num_parts in ((1, 2), (2, 1))
    )
    tiny.assert_alike(one, two, num_steps=3)


def test_a_penalty_is_that_of_the_logit_of_the_class():
    images, labels = keras.Input([5]), conditional.labels_input()
    logits = conditional.Projection(3)(images, labels=labels)
    discriminator = Network.of(keras.Model([images, labels], logits))
    kernel, _, embedding = (w.numpy() for w in discriminator.weights)
    regularizer = Regularizer(penalties.PENALTIES["r1"], weight=2.0)
    total, _ = regularizer.sum_and_gradients(
        discriminator._replace(labels=tf.constant(_LABELS)),
        real=tf.constant(_normal(6, 5)),
        fake=tf.zeros([6, 5]),
        d_update=tf.constant(0),
        draws=functools.partial(randomness.Draws, seed=0, step=0),
        scale=tf.constant(1.0),
    )
    slopes = kernel[:, 0] + embedding[_LABELS]
    np.testing.assert_allclose(total, np.sum(slopes**2), rtol=1e-5)


def _discriminator_with_classifier():
    images, labels = keras.Input(tiny.MICRO_SHAPE), conditional.labels_input()
    features = keras.layers.Dense(6, activation="softplus")(
        keras.layers.Flatten()(images)
    )
    said = conditional.AuxiliaryClassifier(10)(features, labels=labels)
    return keras.Model([images, labels], said)


@pytest.mark.parametrize("settings", _OBJECTIVES)
def test_with_a_classifier_two_replicas_equal_one(settings):
    settings = {
        "num_classes": 10,
        "state_settings": {"discriminator": _discriminator_with_classifier},
        **settings,
    }
    tiny.assert_alike(
        tiny.make_micro(1, **settings),
        tiny.make_micro(2, **settings),
        num_steps=3,
    )


def test_each_network_is_trained_for_the_classes_of_its_samples():
    generator, discriminator = (
        Network.of(build())._replace(labels=tf.constant(_LABELS))
        for build in (
            functools.partial(tiny.build_micro_generator, num_classes=10),
            _discriminator_with_classifier,
        )
    )
    real = tf.constant(_normal(6, *tiny.MICRO_SHAPE))
    adversarial_round = AdversarialRound(
        # Nothing but the classes.
        loss=lambda *, real_logits, fake_logits: (
            0.0 * fake_logits,
            0.0 * real_logits,
        ),
        latent_dim=tiny.LATENT_DIM,
        global_batch_size=6,
        num_parts=1,
        seed=0,
        names_classes=True,
    )
    made = adversarial_round.contribution(
        generator,
        discriminator,
        real=real,
        step=tf.constant(0, tf.int64),
        d_update=tf.constant(0, tf.int64),
        first_position=tf.constant(0, tf.int64),
        g_scale=tf.constant(2.0),
        d_scale=tf.constant(3.0),
    )
    latents = randomness.Draws(
        seed=0, purpose="latents", step=tf.constant(0, tf.int64)
    ).normal((6, tiny.LATENT_DIM))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([generator.weights, discriminator.weights])
        fake = generator(latents)[0]
        g_loss, d_loss = (
            -tf.reduce_mean(discriminator(samples)[0][:, 1])
            for samples in (fake, real)
        )
    for gradients, loss, weights, scale in (
        (made.g_gradients, g_loss, generator.weights, 2.0),
        (made.d_gradients, d_loss, discriminator.weights, 3.0),
    ):
        expected = tape.gradient(loss, weights, unconnected_gradients="zero")
        for one, other in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(one, scale * other, atol=1e-5)
    means = dict(zip(adversarial_round.mean_names, made.means, strict=True))
    np.testing.assert_allclose(means["g_class_loss"], g_loss, rtol=1e-5)
    np.testing.assert_allclose(means["d_class_loss"], d_loss, rtol=1e-5)
    assert means["g_loss"] == means["d_loss"] == 0.0


def test_a_penalty_leaves_the_classes_alone():
    discriminator = Network.of(_discriminator_with_classifier())
    regularizer = Regularizer(penalties.PENALTIES["r1"], weight=2.0)
    _, gradients = regularizer.sum_and_gradients(
        discriminator._replace(labels=tf.constant(_LABELS)),
        real=tf.constant(_normal(6, *tiny.MICRO_SHAPE)),
        fake=tf.zeros([6, *tiny.MICRO_SHAPE]),
        d_update=tf.constant(0),
        draws=functools.partial(randomness.Draws, seed=0, step=0),
        scale=tf.constant(1.0),
    )
    moved = {
        variable.path.split("/")[-2]: bool(np.any(gradient))
        for variable, gradient in zip(
            discriminator.model.trainable_variables, gradients, strict=True
        )
        if variable.name == "kernel"
    }
    assert moved.pop("classifier") is False
    assert all(moved.values())


def test_only_the_classes_of_the_batch_are_learned():
    dataset = tiny.micro_noise()
    dataset = ArrayDataset(
        samples=dataset.samples, labels=dataset.labels % 2 * 2
    )
    state, step = tiny.make_micro(
        num_classes=4, dataset=dataset, penalty="r1", penalty_weight=1.0
    )
    tables = [
        variable
        for network in (state.generator, state.discriminator)
        for variable in network.trainable_variables
        if len(variable.shape) == 2 and variable.shape[0] == 4
    ]
    assert len(tables) == 3  # gamma, beta and the embeddings
    before = [table.numpy() for table in tables]
    step.run(2)
    for table, old in zip(tables, before, strict=True):
        moved = np.abs(table.numpy() - old).max(axis=1) > 0
        assert moved.tolist() == [True, False, True, False]


def test_a_class_is_made_as_it_is_in_the_data():
    labels = np.arange(100, dtype=np.int32) % 2
    shades = np.where(labels, 230, 25).astype(np.uint8)
    dataset = ArrayDataset(
        samples=np.broadcast_to(
            shades[:, None, None, None], [100, *tiny.MICRO_SHAPE]
        ).copy(),
        labels=labels,
    )
    state, step = tiny.make_micro(
        num_classes=2,
        dataset=dataset,
        state_settings={"learning_rate": 5e-3},
    )
    step.run(300)
    latents = _normal(32, tiny.LATENT_DIM) / 2 - 0.5
    latents = np.repeat(latents, 2, axis=0)
    made = state.generator(
        [latents, np.arange(64, dtype=np.int32) % 2], training=False
    ).numpy()
    dark, bright = made[::2].mean(), made[1::2].mean()
    assert dark < -0.4 < 0.4 < bright


def test_a_resumed_run_is_bit_identical(tmp_path):
    settings = {
        "num_classes": 10,
        "penalty": "r1_r2",
        "penalty_every_steps": 2,
        "ema_half_life_images": 100,
    }
    state, step = tiny.make_micro(**settings)
    step.run(3)
    path = state.as_checkpoint().write(str(tmp_path / "state"))
    step.run(2)
    resumed, step = tiny.make_micro(checkpoint=path, **settings)
    step.run(2)
    for one, other in zip(
        tiny.values(state), tiny.values(resumed), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_compiled_by_xla_it_is_the_same():
    plain, compiled = (
        tiny.make_micro(
            num_classes=10,
            jit_compile=jit_compile,
            penalty="r1",
            state_settings=_networks(synchronized=False),
        )
        for jit_compile in (False, True)
    )
    tiny.assert_alike(plain, compiled, num_steps=2)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_in_mixed_precision_the_tables_stay_float32(precision):
    state, step = tiny.make_micro(
        num_classes=10,
        penalty="r1",
        penalty_weight=0.1,
        state_settings={"precision": precision},
    )
    assert np.isfinite(step.run(2)["d_loss"])
    for network in (state.generator, state.discriminator):
        assert {v.dtype for v in network.trainable_variables} == {"float32"}


@pytest.mark.parametrize(
    ("num_samples", "num_classes", "expected"),
    [
        (4, 2, [[0, 1], [0, 1]]),
        (5, 3, [[0, 1, 2], [0, 1, 2]]),
        (3, 9, [[0, 4, 8]]),
        (1, 2, [[0]]),
    ],
)
def test_a_grid_has_a_column_for_each_class(num_samples, num_classes, expected):
    labels = samples.grid_labels(num_samples, num_classes)
    assert labels.tolist() == expected
    assert labels.dtype == np.int32


def test_a_row_shows_the_same_latents_in_each_class():
    latents, labels = keras.Input([3]), conditional.labels_input()
    rows = conditional.OneHot(10)(labels)
    generator = keras.Model(
        [latents, labels], keras.layers.Concatenate()([latents, rows])
    )
    sampler = samples.Sampler(
        generator, latent_dim=3, num_samples=75, seed=0, num_classes=10
    )
    assert sampler.num_columns == 10
    made = sampler.sample().reshape([8, 10, 13])
    np.testing.assert_array_equal(
        made[:, :, 3:], np.broadcast_to(np.eye(10), [8, 10, 10])
    )
    np.testing.assert_array_equal(
        made[:, :, :3], np.broadcast_to(made[:, :1, :3], [8, 10, 3])
    )
    assert len(np.unique(made[:, 0, 0])) == 8


def test_real_images_are_those_of_their_classes():
    labels = np.array([0, 0, 0, 0, 2], np.int32)
    dataset = ArrayDataset(
        samples=np.arange(1, 6, dtype=np.uint8).reshape([5, 1, 1, 1]),
        labels=labels,
    )
    wanted = np.array([0, 1, 2, 0, 1, 2])
    found = examples_of(dataset, wanted).reshape(-1)
    assert found.tolist() == [1, 0, 5, 3, 0, 5]


def test_data_of_one_class_are_refused(monkeypatch):
    one = ArrayDataset(
        samples=np.zeros([9, 28, 28, 1], np.uint8),
        labels=np.zeros([9], np.int32),
    )
    monkeypatch.setitem(data.ARRAYS, "digits", lambda **_: one)
    with pytest.raises(errors.UsageError, match="--conditional needs.*digits"):
        datasets.load_data(Config(conditional=True))
    assert datasets.load_data(Config()) is one


def test_other_classes_in_other_data_are_refused():
    def dataset(*class_names, largest=1):
        return ArrayDataset(
            samples=np.zeros([2, 28, 28, 1], np.uint8),
            labels=np.array([0, largest], np.int32),
            class_names=class_names,
        )

    config = Config(conditional=True, split="test")
    check = datasets.check_same_classes
    check(config, dataset("cat", "dog"), dataset("cat", "dog"))
    # A folder without cats counts from the dogs.
    with pytest.raises(errors.DataError, match="digits test has other classes"):
        check(config, dataset("cat", "dog"), dataset("dog", "owl"))
    check(config, dataset(largest=2), dataset())
    with pytest.raises(errors.DataError, match="3 in place of 2"):
        check(config, dataset(), dataset(largest=2))
    check(Config(), dataset(), dataset(largest=2))


def test_from_training_to_an_export(monkeypatch, tmp_path, capsys):
    stored_runs.use_tiny_networks(monkeypatch)
    workdir = tmp_path / "run"
    settings = {
        "epochs": 1,
        "conditional": True,
        "ema_half_life_images": 1000,
        "evaluate_every_epochs": 1,
        "num_evaluation_samples": 100,
        "cache_dir": str(tmp_path / "cache"),
    }
    assert stored_runs.run(workdir, **settings) == 0
    for name in ("real.png", "epoch_0001.png"):
        with PIL.Image.open(workdir / "samples" / name) as image:
            # Two rows of ten classes.
            assert image.size == (2 * (10 * 30 + 2), 2 * (2 * 30 + 2))
    run = [f"--workdir={workdir}"]
    assert generate.main(["generate.py", *run, "--labels=3,7"]) == 0
    with PIL.Image.open(
        workdir / "generated" / "step-000000007" / "grid_seed_0.png"
    ) as image:
        assert image.size == (16 * 30 + 2, 2 * 30 + 2)
    assert generate.main(["generate.py", *run, "--labels=10"]) == 2
    assert (
        evaluate.main(
            [
                "evaluate.py",
                *run,
                "--num_samples=100",
                f"--cache_dir={tmp_path / 'cache'}",
            ]
        )
        == 0
    )
    record = json.loads((workdir / "evaluations.jsonl").read_text())
    assert record["num_fake"] == 100
    assert export.main(["export.py", *run]) == 0
    output = workdir / "export" / "step-000000007"
    serve = tf.saved_model.load(str(output / "saved_model")).signatures[
        "serving_default"
    ]
    latents = tf.zeros([3, tiny.LATENT_DIM])
    made = serve(latents=latents, labels=tf.constant([0, 1, 1]))["samples"]
    np.testing.assert_array_equal(made[1], made[2])
    assert np.abs(made[0] - made[1]).max() > 0
    for label in (-1, 10):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"labels must be in 0\.\.9"
        ):
            serve(latents=latents, labels=tf.constant([0, 1, label]))
    card = (output / "README.md").read_text()
    assert "- `labels`: int32 [None]" in card
    assert "are 0 to 9." in card
    assert "(the averaged weights)" in card
    assert "labels = tf.range(16) % 10" in card
    # Other networks than those without classes.
    settings["conditional"] = False
    with pytest.raises(errors.UsageError, match="conditional: True -> False"):
        stored_runs.run(workdir, **settings)
