"""Writes files in MNIST's original format, whole or damaged."""

import gzip
import pathlib
import struct

import numpy as np


def idx_bytes(array, *, magic=None, shape=None):
    """Encodes a uint8 array; `magic` and `shape` override its header."""
    shape = array.shape if shape is None else shape
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + array.tobytes()


def write(directory, *, images, labels):
    """Writes the training split of `images` [N, 28, 28] and `labels` [N]."""
    directory = pathlib.Path(directory)
    for name, array in (
        ("train-images-idx3-ubyte.gz", images),
        ("train-labels-idx1-ubyte.gz", labels),
    ):
        content = idx_bytes(np.asarray(array, np.uint8))
        (directory / name).write_bytes(gzip.compress(content))


def write_random(directory, *, num_examples=20):
    """Writes a training split of noise and returns (images, labels)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, 28, 28), np.uint8)
    labels = (np.arange(num_examples) % 10).astype(np.uint8)
    write(directory, images=images, labels=labels)
    return images, labels
