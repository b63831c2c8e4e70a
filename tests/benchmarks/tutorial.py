"""The loop of TensorFlow's DCGAN tutorial, as its text shows it.

Float images in memory, a shuffle buffer over all of them, Keras' layers and
optimizers, one call into TensorFlow a step, TensorFlow's own options. It
departs from the text in two points: the last, smaller batch of an epoch is left
out, so that images can be counted; and a GPU's memory is taken as it is needed,
because the contestants share it.
"""

import tempfile
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from trainer import data

_LATENT_DIM = 100
_LEARNING_RATE = 1e-4
_NUM_KEPT = 3


def loop(
    *, dataset: str, data_dir: str | None, batch_size: int
) -> Callable[[int], None]:
    """Returns what runs some steps."""
    _prepare_gpu()
    batches = _batches(dataset, data_dir, batch_size)
    generator, discriminator = _networks()
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
        for network in (generator, discriminator):
            network.trainable_variables[-1].numpy()  # Waits for the GPU.

    return run


def batches_alone(
    *, dataset: str, data_dir: str | None, batch_size: int
) -> Callable[[int], None]:
    """Returns what makes some batches."""
    _prepare_gpu()
    batches = _batches(dataset, data_dir, batch_size)

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            next(batches)

    return run


def checkpoint_save() -> Callable[[int], None]:
    """Returns what saves the state some times; the newest are kept."""
    _prepare_gpu()
    objects: dict[str, object] = {}
    for name, network in zip("gd", _networks(), strict=True):
        optimizer = keras.optimizers.Adam(_LEARNING_RATE)
        optimizer.build(network.trainable_variables)
        objects |= {name: network, f"{name}_optimizer": optimizer}
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(**objects),
        directory=tempfile.mkdtemp(),
        max_to_keep=_NUM_KEPT,
    )

    def run(num_saves: int) -> None:
        for _ in range(num_saves):
            manager.save()

    return run


def _prepare_gpu() -> None:
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.set_visible_devices(gpus[:1], "GPU")


def _batches(
    dataset: str, data_dir: str | None, batch_size: int
) -> Iterator[tf.Tensor]:
    images = data.load(dataset, data_dir=data_dir).samples.astype(np.float32)
    return iter(
        tf.data.Dataset.from_tensor_slices((images - 127.5) / 127.5)
        .shuffle(len(images))
        .batch(batch_size, drop_remainder=True)
        .repeat()
    )


def _networks() -> tuple[keras.Model, keras.Model]:
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
