"""Images a second of our training loop against the tutorial's, in one run.

  python -m tests.benchmarks.tutorial_loop --dataset=mnist --data_dir=DIR

The tutorial's loop is the one that its text shows: float images in memory, a
shuffle buffer over all of them, Keras' layers and optimizers, one call into
TensorFlow a step. Ours is the data pipeline and the compiled loop that
`python -m trainer.main` runs, without what it writes. Deterministic ops are off
for both, because the tutorial's random draws would be refused; TensorFlow's
remapper is off for both, since it is a setting of the process. The two take
turns, so that a noisy machine disturbs both alike; what counts is the median of
the ratios of neighbouring turns.
"""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from trainer import assembly, data, distribution
from trainer.config import Config
from trainer.data.array_dataset import ArrayDataset

_DATASET = flags.DEFINE_enum("dataset", "digits", list(data.DATASETS), "Data.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Data prepared before.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images a step.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns that each loop takes.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps in a turn.")
_PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "What our layers compute in.",
)
_REPLICAS = flags.DEFINE_integer("num_logical_cpus", 1, "Replicas of ours.")

_LATENT_DIM = 100
_LEARNING_RATE = 1e-4


def tutorial_loop(
    dataset: ArrayDataset, batch_size: int
) -> Callable[[int], None]:
    """Returns what runs some steps as the tutorial does."""
    images = (dataset.samples.astype(np.float32) - 127.5) / 127.5
    batches = iter(
        tf.data.Dataset.from_tensor_slices(images)
        .shuffle(len(images))
        .batch(batch_size, drop_remainder=True)
        .repeat()
    )
    generator, discriminator = _tutorial_networks()
    g_optimizer = keras.optimizers.Adam(_LEARNING_RATE)
    d_optimizer = keras.optimizers.Adam(_LEARNING_RATE)
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def train_step(real: tf.Tensor) -> None:
        noise = tf.random.normal([batch_size, _LATENT_DIM])
        with tf.GradientTape() as g_tape, tf.GradientTape() as d_tape:
            fake = generator(noise, training=True)
            real_logits = discriminator(real, training=True)
            fake_logits = discriminator(fake, training=True)
            g_loss = cross_entropy(tf.ones_like(fake_logits), fake_logits)
            d_loss = cross_entropy(
                tf.ones_like(real_logits), real_logits
            ) + cross_entropy(tf.zeros_like(fake_logits), fake_logits)
        for tape, loss, network, optimizer in (
            (g_tape, g_loss, generator, g_optimizer),
            (d_tape, d_loss, discriminator, d_optimizer),
        ):
            weights = network.trainable_variables
            gradients = tape.gradient(loss, weights)
            optimizer.apply_gradients(zip(gradients, weights, strict=True))

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            train_step(next(batches))

    return run


def our_loop(config: Config, dataset: ArrayDataset) -> Callable[[int], object]:
    """Returns what runs some steps as `trainer.train` does."""
    strategy = distribution.make_strategy(
        config.strategy, num_logical_cpus=config.num_logical_cpus
    )
    state = assembly.build_state(config, strategy)
    return assembly.build_step(config, strategy, dataset, state, 0).run


def _tutorial_networks() -> tuple[keras.Model, keras.Model]:
    layers = keras.layers
    deconvolution = {"padding": "same", "use_bias": False}
    generator = keras.Sequential(
        [
            keras.Input([_LATENT_DIM]),
            layers.Dense(7 * 7 * 256, use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Reshape([7, 7, 256]),
            layers.Conv2DTranspose(128, 5, strides=1, **deconvolution),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(64, 5, strides=2, **deconvolution),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(
                1, 5, strides=2, activation="tanh", **deconvolution
            ),
        ]
    )
    discriminator = keras.Sequential(
        [
            keras.Input([28, 28, 1]),
            layers.Conv2D(64, 5, strides=2, padding="same"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Conv2D(128, 5, strides=2, padding="same"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    return generator, discriminator


def _secs(run: Callable[[int], object], num_steps: int) -> float:
    start = time.monotonic()
    run(num_steps)
    return time.monotonic() - start


def main(argv: list[str]) -> None:
    """Prints the medians, the spread and the ratio."""
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is not a flag.")
    config = Config(
        dataset=_DATASET.value,
        data_dir=_DATA_DIR.value,
        batch_size=_BATCH_SIZE.value,
        precision=_PRECISION.value,
        num_logical_cpus=_REPLICAS.value,
        deterministic="off",
    ).resolve()
    config.validate()
    distribution.prepare_devices(
        num_logical_cpus=config.num_logical_cpus,
        deterministic=config.deterministic,
    )
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    loops = {
        "tutorial": tutorial_loop(dataset, _BATCH_SIZE.value),
        "ours": our_loop(config, dataset),
    }
    for run in loops.values():
        _secs(run, 2)  # Traces, and fills the buffers.
    secs: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(_ROUNDS.value):
        for name, run in loops.items():
            secs[name].append(_secs(run, _STEPS.value))
    images = _BATCH_SIZE.value * _STEPS.value
    for name, values in secs.items():
        rates = sorted(images / value for value in values)
        print(
            f"{name:9} {statistics.median(rates):8,.0f} images/s "
            f"({rates[0]:,.0f} to {rates[-1]:,.0f})"
        )
    ratios = [
        theirs / ours
        for theirs, ours in zip(secs["tutorial"], secs["ours"], strict=True)
    ]
    print(f"ours / tutorial: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    app.run(main)
