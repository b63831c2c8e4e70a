"""What holds for the networks of every model that may know of classes."""

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import models

Networks = tuple[keras.Model, keras.Model]

# Of a small machine.
WIDTHS = {"sngan": 4, "r3gan": 8}


def build(
    name: str,
    side: int = 32,
    width: int | None = 8,
    num_classes: int | None = None,
    *,
    channels: int = 3,
    latent_dim: int = 10,
    sync_batch_norm: bool = False,
) -> Networks:
    """Builds both networks of a model."""
    model = models.get(name)
    settings: dict[str, Any] = {
        "sample_shape": (side, side, channels),
        "width": width,
        "num_classes": num_classes,
        "sync_batch_norm": sync_batch_norm,
    }
    return (
        model.build_generator(latent_dim=latent_dim, **settings),
        model.build_discriminator(**settings),
    )


def build_in(precision: str, name: str, **kwargs: Any) -> Networks:
    """The same under a policy of Keras."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        return build(name, 32, WIDTHS[name], **kwargs)
    finally:
        keras.config.set_dtype_policy(before)


def num_parameters(network: keras.Model) -> int:
    """Counts what is trained."""
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


def latents(count: int, size: int = 10) -> np.ndarray:
    """Draws [count, size]."""
    numbers = np.random.default_rng(0).normal(size=[count, size])
    return numbers.astype(np.float32)


def check_shapes(
    name: str, side: int, width: int, num_classes: int | None, channels: int
) -> None:
    """Latents go through both networks, with their classes if there are any."""
    generator, discriminator = build(
        name, side, width, num_classes, channels=channels
    )
    labels = [] if num_classes is None else [tf.constant([0, 1])]

    def with_labels(inputs: Any) -> Any:
        return [inputs, *labels] if labels else inputs

    for training in (False, True):
        inputs = with_labels(tf.constant(latents(2)))
        samples = generator(inputs, training=training)
        logits = discriminator(with_labels(samples), training=training)
        assert samples.shape == (2, side, side, channels)
        assert logits.shape == (2, 1)
        assert samples.dtype == logits.dtype == "float32"
        if not training:
            assert np.abs(samples).max() <= 1.0
    assert np.std(samples) > 1e-3
    assert np.std(logits) > 0.0


def check_precision(name: str) -> None:
    """In half precision, outputs are float32 and near those of float32."""
    for num_classes in (None, 3):
        pairs = [
            build_in(precision, name, num_classes=num_classes)
            for precision in ("float32", "mixed_bfloat16")
        ]
        labels = [] if num_classes is None else [np.array([0, 1], np.int32)]
        for exact, rounded in zip(*pairs, strict=True):
            for one, other in zip(
                exact.variables, rounded.variables, strict=True
            ):
                assert other.dtype == "float32"
                other.assign(one)
            shape = exact.inputs[0].shape[1:]
            numbers = latents(2, int(np.prod(shape))).reshape([2, *shape])
            inputs = [numbers, *labels] if labels else numbers
            outputs = rounded(inputs, training=False)
            assert outputs.dtype == "float32"
            expected = exact(inputs, training=False)
            np.testing.assert_allclose(outputs, expected, rtol=0.1, atol=0.1)
            kinds = {layer.compute_dtype for layer in rounded.layers}
            assert "bfloat16" in kinds


def check_classes(name: str) -> None:
    """Outputs, and gradients by the classes' tables, are those of a class."""
    generator, discriminator = build(name, 32, WIDTHS[name], 3)

    def tables(network: keras.Model) -> list[keras.Variable]:
        """Those with a row for each class."""
        return [
            v
            for v in network.trainable_variables
            if len(v.shape) == 2 and v.shape[0] == 3
        ]

    for network in (generator, discriminator):
        assert tables(network)
        for index, table in enumerate(tables(network)):
            # Batch norm's scales begin the same for all classes.
            numbers = np.random.default_rng(index).normal(size=table.shape)
            table.assign(0.5 * numbers + (table.name == "gamma"))
    rows = tf.repeat(latents(1), 3, axis=0)
    labels = tf.constant([0, 1, 2])
    samples = generator([rows, labels], training=False)
    logits = discriminator(
        [tf.repeat(samples[:1], 3, axis=0), labels], training=False
    )
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(samples[one] - samples[other]).max() > 1e-5
        assert np.abs(logits[one] - logits[other]).max() > 1e-5
    seen = tf.constant([0, 2, 2])
    for network, inputs in ((generator, rows), (discriminator, samples)):
        has_spectral_norm = any(v.name == "u" for v in network.variables)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(network([inputs, seen], training=False) ** 2)
        gradients = tape.gradient(total, [v.value for v in tables(network)])
        moved = sum(np.abs(gradient).sum(axis=1) for gradient in gradients)
        assert moved[0] > 0.0
        assert moved[2] > 0.0
        # A class that no example has moves by the norm of all only.
        assert has_spectral_norm or moved[1] == 0.0


def check_saving(name: str, directory: pathlib.Path) -> None:
    """A generator comes back from its .keras file."""
    for num_classes in (None, 3):
        generator, _ = build(name, 32, WIDTHS[name], num_classes)
        for index, variable in enumerate(generator.trainable_variables):
            # Or the kernels that begin as zeros would hide others.
            numbers = np.random.default_rng(index).normal(size=variable.shape)
            variable.assign(variable + 0.1 * numbers)
        path = directory / f"{num_classes}.keras"
        generator.save(path)
        copy = keras.saving.load_model(path)
        inputs: Any = tf.constant(latents(2))
        if num_classes:
            inputs = [inputs, tf.constant([0, 2])]
        expected = generator(inputs, training=False)
        assert np.std(expected) > 1e-3
        np.testing.assert_allclose(
            copy(inputs, training=False), expected, atol=1e-6
        )
