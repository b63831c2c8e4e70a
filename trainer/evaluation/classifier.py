"""Features of a small classifier that is trained on the data set's own labels.

For grey digits and the like this is the valid choice: Inception has seen
photographs in colour, and its distances between digits mean little. It is
trained from a seed, so that every machine gets about the same (bit for bit, the
machine that has it in its cache), and says how well it classifies what it was
not trained on.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from trainer import errors
from trainer.evaluation.extractor import Extractor
from trainer.evaluation.moments import Moments

FEATURE_DIM = 64
# A tenth of them is held out, and the spread of those is measured.
MIN_IMAGES = 20
# Raise it when the network or its training changes: both decide the numbers.
_VERSION = 1
_SEED = 0
_NUM_STEPS = 1500
_BATCH_SIZE = 64
_LEARNING_RATE = 1e-3
_HELD_OUT_SHARE = 0.1
_MAX_HELD_OUT = 5000
# At this size or below, images are not halved any more.
_MIN_SIDE = 8
_MAX_FILTERS = 128
_IMAGES_PER_CALL = 250


@dataclasses.dataclass(frozen=True)
class TrainedClassifier:
    """What has been learned, and what it is good for.

    Attributes:
      weights: of `build_network`, in its order.
      feature_mean: of the features of those held out [64].
      feature_scale: that makes their mean variance 1: the kernel distance has
        no scale of its own.
      held_out_accuracy: the share of correct classes among images that it was
        not trained on.
      num_held_out: how many those were.
    """

    weights: list[np.ndarray]
    feature_mean: np.ndarray
    feature_scale: float
    held_out_accuracy: float
    num_held_out: int


def digest(
    data_digest: str, preparation: str = "", *, num_steps: int = _NUM_STEPS
) -> str:
    """Returns 16 hex digits for what decides the weights.

    Args:
      data_digest: of the data as they lie in their source.
      preparation: how they were brought to size and channels, if they were.
      num_steps: of the training.
    """
    text = f"{_VERSION} {_SEED} {num_steps} {data_digest} {preparation}"
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def build_network(
    sample_shape: tuple[int, ...], num_classes: int
) -> keras.Model:
    """Builds images in [-1, 1] -> features [B, 64] and logits [B, classes]."""
    seeds = iter(range(_SEED, 1000))

    def initializer() -> keras.initializers.Initializer:
        return keras.initializers.HeNormal(seed=next(seeds))

    # Of the user's precision this knows nothing: its numbers are compared.
    images = keras.Input(sample_shape, dtype="float32")
    hidden = images
    filters = 32
    while True:
        hidden = keras.layers.Conv2D(
            filters,
            3,
            padding="same",
            activation="relu",
            kernel_initializer=initializer(),
            dtype="float32",
        )(hidden)
        if min(hidden.shape[1:3]) <= _MIN_SIDE:
            break
        hidden = keras.layers.MaxPooling2D(dtype="float32")(hidden)
        filters = min(2 * filters, _MAX_FILTERS)
    # Before the nonlinearity they are more like the Gaussians that the Frechet
    # distance takes them for.
    features = keras.layers.Dense(
        FEATURE_DIM, kernel_initializer=initializer(), dtype="float32"
    )(keras.layers.Flatten(dtype="float32")(hidden))
    logits = keras.layers.Dense(
        num_classes, kernel_initializer=initializer(), dtype="float32"
    )(keras.layers.ReLU(dtype="float32")(features))
    return keras.Model(images, [features, logits])


def train(
    read: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    *,
    num_classes: int,
    num_steps: int = _NUM_STEPS,
    on_progress: Callable[[], object] = lambda: None,
) -> TrainedClassifier:
    """Trains a classifier; a pure function of its arguments, up to rounding.

    Args:
      read: indices [B] -> images, uint8 [B, H, W, C].
      labels: int32 [N], from 0 to num_classes - 1; N is `MIN_IMAGES` or more.
      num_classes: two or more.
      num_steps: of 64 images each.
      on_progress: is called after each step, and may raise to end this.

    Raises:
      DataError: the images are all the same.
    """
    random = np.random.default_rng(_SEED)
    order = random.permutation(len(labels))
    num_held_out = min(math.ceil(len(labels) * _HELD_OUT_SHARE), _MAX_HELD_OUT)
    held_out, rest = order[:num_held_out], order[num_held_out:]
    network = build_network(read(order[:1]).shape[1:], num_classes)
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.PolynomialDecay(_LEARNING_RATE, num_steps)
    )
    optimizer.build(network.trainable_variables)

    @tf.function(reduce_retracing=True)
    def step(images: tf.Tensor, targets: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            _, logits = network(_scaled(images), training=True)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            )
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients)

    for _ in range(num_steps):
        batch = random.choice(rest, min(_BATCH_SIZE, len(rest)), replace=False)
        step(tf.constant(read(batch)), tf.constant(labels[batch]))
        on_progress()
    num_correct = 0
    moments = Moments(FEATURE_DIM)
    for start in range(0, num_held_out, _IMAGES_PER_CALL):
        batch = held_out[start : start + _IMAGES_PER_CALL]
        features, logits = network(_scaled(tf.constant(read(batch))))
        moments.add(features.numpy())
        num_correct += int((np.argmax(logits, axis=1) == labels[batch]).sum())
        on_progress()
    variance = np.trace(moments.covariance) / FEATURE_DIM
    if not variance > 0.0:
        raise errors.DataError(
            "All images look the same to the classifier, so that nothing can be"
            " measured by it. Look at them with `python -m trainer.data_tools"
            " inspect`, or train without evaluations."
        )
    return TrainedClassifier(
        weights=network.get_weights(),
        feature_mean=moments.mean,
        feature_scale=1.0 / math.sqrt(variance),
        held_out_accuracy=num_correct / num_held_out,
        num_held_out=num_held_out,
    )


def as_extractor(
    trained: TrainedClassifier,
    *,
    sample_shape: tuple[int, ...],
    num_classes: int,
    name: str,
) -> Extractor:
    """Makes features with what was trained.

    Raises:
      ValueError: the weights are not those of such a network.
    """
    network = build_network(sample_shape, num_classes)
    network.set_weights(trained.weights)

    @tf.function(reduce_retracing=True)
    def run(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features, logits = network(_scaled(images), training=False)
        return features, tf.nn.softmax(logits)

    def extract(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, probabilities = run(tf.constant(images))
        scaled = (features.numpy() - trained.feature_mean) * (
            trained.feature_scale
        )
        return scaled.astype(np.float32), probabilities.numpy()

    return Extractor(
        name=name,
        description=(
            f"a classifier of {num_classes} classes trained on the data's own"
            f" labels, {trained.held_out_accuracy:.2%} right on"
            f" {trained.num_held_out:,} images held out"
        ),
        dim=FEATURE_DIM,
        num_classes=num_classes,
        extract=extract,
    )


def _scaled(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images, tf.float32) / 127.5 - 1.0
