"""Samples as networks see them; `trainer.samples.to_uint8` goes back."""

import numpy as np
import tensorflow as tf

# A table, because TensorFlow and XLA would make another multiplication of the
# division by a constant, and its results differ in the last bit.
_FLOATS = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)


def to_float(samples: tf.Tensor) -> tf.Tensor:
    """Maps uint8 samples in 0..255 to float32 in [-1, 1].

    The compiled step does it, on the device: what is batched, prefetched and
    copied there before is a quarter of the size.
    """
    return tf.gather(tf.constant(_FLOATS), tf.cast(samples, tf.int32))
