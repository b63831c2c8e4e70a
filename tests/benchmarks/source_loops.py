"""Input pipelines alone, ours and those that people write with other tools.

All give endless shuffled batches of float32 in [-1, 1] with labels.
"""

import itertools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf

from trainer import data
from trainer.data import packing, pipeline

_SHUFFLE_BUFFER = 10_000
_PIECE = (375, 500)
_SHARD_BYTES = 64 << 20


def ours(
    *,
    name: str,
    data_dir: str | None = None,
    batch_size: int,
    image_size: tuple[int, int] | None = None,
    memory_bytes: int = 0,
    packed: bool = False,
) -> Callable[[int], None]:
    """Returns what fetches some of our batches.

    Args:
      name: as in --dataset.
      data_dir: as in --data_dir.
      batch_size: images in a batch.
      image_size: to bring them to.
      memory_bytes: what may be kept in memory; 0: all is streamed.
      packed: whether it is packed first, and read from there.
    """
    size = tuple(image_size) if image_size else None
    wanted = data.Wanted(image_size=size, memory_bytes=memory_bytes)
    if packed:
        # In what `turns.Child` removes when this process is no more.
        directory = tempfile.mkdtemp()
        packing.pack(
            data.stream(name, data_dir=data_dir, wanted=wanted),
            pathlib.Path(directory),
            shard_bytes=_SHARD_BYTES,
            as_samples=False,
        )
        name, data_dir = "tfrecord:*.tfrecord", directory
    dataset = data.load(name, data_dir=data_dir, wanted=wanted)
    return _fetch(
        pipeline.training_batches(
            dataset,
            global_batch_size=batch_size,
            num_replicas=1,
            first_step=0,
            seed=0,
        )
    )


def keras_folder(
    *, folder: str, batch_size: int, image_size: tuple[int, int]
) -> Callable[[int], None]:
    """Returns what fetches batches of Keras' reader of folders."""
    dataset = tf.keras.utils.image_dataset_from_directory(
        folder,
        image_size=tuple(image_size),
        batch_size=batch_size,
        crop_to_aspect_ratio=True,
        verbose=False,
    )
    return _fetch(
        dataset.map(_normalize, tf.data.AUTOTUNE)
        .repeat()
        .prefetch(tf.data.AUTOTUNE)
    )


def plain_tfds(
    *, name: str, data_dir: str, batch_size: int, cached: bool
) -> Callable[[int], None]:
    """Returns what fetches batches as the guides of tfds show it.

    Args:
      name: of the data set.
      data_dir: where it is prepared.
      batch_size: images in a batch.
      cached: whether decoded images stay in memory, one by one.
    """
    import tensorflow_datasets as tfds

    dataset = tfds.load(
        name,
        split="train",
        data_dir=data_dir,
        download=False,
        as_supervised=True,
        shuffle_files=True,
    )
    if cached:
        dataset = dataset.cache()
    return _fetch(
        dataset.shuffle(_SHUFFLE_BUFFER)
        .repeat()
        .batch(batch_size, drop_remainder=True)
        .map(_normalize, tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def write_photographs(
    folder: pathlib.Path, *, count: int, tiles: int
) -> tuple[int, int]:
    """Writes pieces of scikit-learn's two photographs as JPEG files.

    Args:
      folder: to write a folder of each into.
      count: of the files.
      tiles: how often a piece of 375x500 is repeated in both directions.

    Returns:
      height and width of each.
    """
    from sklearn import datasets

    images = datasets.load_sample_images()
    for name, image in zip(("china", "flower"), images.images, strict=True):
        (folder / name).mkdir()
        places = itertools.product(
            range(image.shape[0] - _PIECE[0]), range(image.shape[1] - _PIECE[1])
        )
        for number, (top, left) in enumerate(
            itertools.islice(places, count // 2)
        ):
            piece = image[top : top + _PIECE[0], left : left + _PIECE[1]]
            picture = PIL.Image.fromarray(np.tile(piece, (tiles, tiles, 1)))
            picture.save(folder / name / f"{number}.jpg")
    return _PIECE[0] * tiles, _PIECE[1] * tiles


def _normalize(image: tf.Tensor, label: tf.Tensor) -> tuple[Any, Any]:
    return tf.cast(image, tf.float32) / 127.5 - 1.0, label


def _fetch(batches: tf.data.Dataset) -> Callable[[int], None]:
    def run(num_steps: int) -> None:
        # Anew, as an epoch begins: what an iterator prefetched while others
        # took their turns would come for nothing.
        iterator = iter(batches)
        for _ in range(num_steps):
            next(iterator)

    return run
