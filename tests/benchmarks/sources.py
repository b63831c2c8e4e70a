"""Images a second of each source alone, against what people use instead.

  python -m tests.benchmarks.sources --folder=DIR --tfds_dir=DIR

--folder holds small images of one size, such as CIFAR-10's, in a sub-folder for
each class; --tfds_dir what tensorflow-datasets has prepared of MNIST.
"""

import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import PIL.Image
from absl import flags

from tests.benchmarks import command, source_loops
from tests.benchmarks.turns import Contestant, Group

_FOLDER = flags.DEFINE_string("folder", None, "Small images.", required=True)
_TFDS_DIR = flags.DEFINE_string("tfds_dir", None, "MNIST.", required=True)

_IN_MEMORY = 8 << 30
_SAMPLE_SIZE = (64, 64)
# So that a turn lasts a second or more: each begins with an empty pipeline, and
# ends with one that is full for nothing.
_SMALL_FACTOR = 10
_IN_MEMORY_FACTOR = 200


def _contestant(
    title: str, builder: str, factor: int = 1, **arguments: Any
) -> Contestant:
    return Contestant(
        title,
        f"tests.benchmarks.source_loops:{builder}",
        {"batch_size": command.BATCH_SIZE.value, **arguments},
        command.STEPS.value * factor,
    )


def _group(title: str, *contestants: Contestant) -> Group:
    return Group(
        title,
        "Shuffled batches of float32 and labels.",
        contestants,
        images_per_step=command.BATCH_SIZE.value,
    )


def _make_groups() -> Iterator[Group]:
    folder = str(pathlib.Path(_FOLDER.value).resolve())
    first = next(path for path in pathlib.Path(folder).rglob("*.jpg"))
    width, height = PIL.Image.open(first).size
    yield _group(
        f"A folder of JPEG files, {height}x{width}",
        _contestant(
            "image_dataset_from_directory",
            "keras_folder",
            _SMALL_FACTOR,
            folder=folder,
            image_size=(height, width),
        ),
        _contestant(
            "ours, streamed", "ours", _SMALL_FACTOR, name=f"folder:{folder}"
        ),
        _contestant(
            "ours, packed and streamed",
            "ours",
            _SMALL_FACTOR,
            name=f"folder:{folder}",
            packed=True,
        ),
        _contestant(
            "ours, in memory",
            "ours",
            _IN_MEMORY_FACTOR,
            name=f"folder:{folder}",
            memory_bytes=_IN_MEMORY,
        ),
    )
    yield from _photographs("Photographs", tiles=1, count=512, factor=4)
    yield from _photographs("Large scans", tiles=4, count=256, factor=1)
    mnist = {"name": "mnist", "data_dir": _TFDS_DIR.value}
    yield _group(
        "MNIST, prepared by tensorflow-datasets",
        _contestant("tfds.load", "plain_tfds", cached=False, **mnist),
        _contestant("tfds.load, cached", "plain_tfds", cached=True, **mnist),
        _contestant(
            "ours, streamed",
            "ours",
            _SMALL_FACTOR,
            name="tfds:mnist",
            data_dir=_TFDS_DIR.value,
        ),
        _contestant(
            "ours, in memory",
            "ours",
            _IN_MEMORY_FACTOR,
            memory_bytes=_IN_MEMORY,
            **mnist,
        ),
    )


def _photographs(
    title: str, *, tiles: int, count: int, factor: int
) -> Iterator[Group]:
    with tempfile.TemporaryDirectory() as folder:
        height, width = source_loops.write_photographs(
            pathlib.Path(folder), count=count, tiles=tiles
        )
        yield _group(
            f"{title}, JPEG files of {height}x{width}, to {_SAMPLE_SIZE}",
            _contestant(
                "image_dataset_from_directory",
                "keras_folder",
                factor,
                folder=folder,
                image_size=_SAMPLE_SIZE,
            ),
            _contestant(
                "ours, streamed",
                "ours",
                factor,
                name=f"folder:{folder}",
                image_size=_SAMPLE_SIZE,
            ),
        )


if __name__ == "__main__":
    command.run("Sources of data, alone", _make_groups)
