"""Features of InceptionV3, from a file that the user has.

It is the network of `keras.applications` with Keras' own weights for ImageNet
(`inception_v3_weights_tf_dim_ordering_tf_kernels.h5`), at the layer before the
classes (2048 numbers), for images resized to 299x299 without antialiasing.
Published FIDs are made with another set of weights of the same network (the
graph of 2015-12-05) and often another resizing filter: these values can be
compared with each other, and not with published ones. Nothing is downloaded.
"""

import hashlib
import pathlib
import warnings

import keras
import numpy as np
import tensorflow as tf

from trainer import errors
from trainer.evaluation.extractor import Extractor

FEATURE_DIM = 2048
_NUM_CLASSES = 1000
_SIDE = 299


def check(weights: str) -> None:
    """Refuses a file that is missing, before anything else is done.

    Raises:
      UsageError: it is.
    """
    if not pathlib.Path(weights).is_file():
        raise errors.UsageError(
            f"--inception_weights={weights} is not a file. Name a local copy of"
            " inception_v3_weights_tf_dim_ordering_tf_kernels.h5, or leave the"
            " flag out; nothing is downloaded."
        )


def load(weights: str) -> Extractor:
    """Builds the network with the weights in a local file.

    Raises:
      UsageError: the file is missing, or does not hold these weights.
    """
    check(weights)
    path = pathlib.Path(weights)
    try:
        network = keras.applications.InceptionV3(weights=None)
        with warnings.catch_warnings():
            # Of layers that are not in the file, Keras only warns, and leaves
            # them as they were: random.
            warnings.simplefilter("error", UserWarning)
            network.load_weights(path)
    # Depending on what the file is, h5py and Keras raise any of these.
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        UserWarning,
    ) as error:
        raise errors.UsageError(
            f"--inception_weights={weights} does not hold the weights of"
            f" keras.applications.InceptionV3 with its classes: {error}. Name"
            " inception_v3_weights_tf_dim_ordering_tf_kernels.h5."
        ) from error
    # The last layer turns the features into probabilities.
    both = keras.Model(
        network.inputs, [network.layers[-2].output, network.outputs[0]]
    )

    @tf.function(reduce_retracing=True)
    def run(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return both(prepare(images), training=False)

    def extract(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, probabilities = run(tf.constant(images))
        return features.numpy(), probabilities.numpy()

    checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Extractor(
        name=f"keras-inception-v3-{checksum}",
        description=(
            "InceptionV3 of keras.applications (not the weights of published"
            f" FIDs), from {path.name}"
        ),
        dim=FEATURE_DIM,
        num_classes=_NUM_CLASSES,
        extract=extract,
    )


def prepare(images: tf.Tensor) -> tf.Tensor:
    """Makes uint8 [B, H, W, C] what the network takes: [B, 299, 299, 3].

    Grey becomes three equal channels; the range is [-1, 1].
    """
    if images.shape[-1] == 1:
        images = tf.repeat(images, 3, axis=-1)
    scaled = tf.cast(images, tf.float32) / 127.5 - 1.0
    return tf.image.resize(scaled, [_SIDE, _SIDE], method="bilinear")
