"""What data cost in training: the time that it waits, the memory they take.

  python -m tests.benchmarks.streaming --folder=DIR --mnist_dir=DIR

Trains on each, against the same on always the same batch, which waits for
nothing; then streams a set that is many times larger than the budget, and
watches the memory of the process.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from tests.benchmarks import command
from tests.benchmarks.turns import Contestant, Group

_FOLDER = flags.DEFINE_string("folder", None, "Small images.", required=True)
_MNIST_DIR = flags.DEFINE_string("mnist_dir", None, "MNIST.", required=True)

_IMAGE_SIZE = 256
_BUDGET_MIB = 64
# Early enough to have all buffers full, late enough for a leak to show.
_BATCHES = (20, 50, 100, 200, 400, 800)
_MEMORY_BATCH_SIZE = 64


def _group(title: str, **settings: Any) -> Group:
    return Group(
        title,
        "A step, on batches of the data and on one batch for ever.",
        [
            Contestant(
                name,
                f"tests.benchmarks.ours:{builder}",
                {"batch_size": command.BATCH_SIZE.value, **settings},
                command.STEPS.value,
            )
            for name, builder in (
                ("one batch", "loop_on_one_batch"),
                ("the data", "loop"),
            )
        ],
    )


def _make_groups() -> Iterator[Group]:
    folder = str(pathlib.Path(_FOLDER.value).resolve())
    yield _group(
        "MNIST, in memory",
        dataset="mnist",
        data_dir=str(pathlib.Path(_MNIST_DIR.value).resolve()),
    )
    for title, data_memory_mib in (("in memory", 8192), ("streamed", 0)):
        yield _group(
            f"The folder, {title}, dcgan",
            dataset=f"folder:{folder}",
            model="dcgan",
            data_memory_mib=data_memory_mib,
        )
    print("\n## Memory\n", flush=True)
    _print_memory(folder)


def _print_memory(folder: str) -> None:
    """Prints what streaming takes, a line for each number of batches.

    It creeps up, and that is no leak. How many batches are in flight at a
    moment differs, so that the peak grows by whole batches until all have been
    at once; and of buffers of some hundred KiB, malloc keeps what lies free
    between others in use. The last line is after `malloc_trim`, which gives
    the latter back to the system. (Of 64 images of 256x256, JPEG: 677 MiB after
    8 batches, 699 after 400, 678 trimmed.)
    """
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tests.memory_watch", folder),
            *(str(_IMAGE_SIZE), str(_BUDGET_MIB), str(_MEMORY_BATCH_SIZE)),
            *map(str, _BATCHES),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    before, *later = map(json.loads, result.stdout.splitlines())
    print(
        f"{later[0]['dataset']}; budget {_BUDGET_MIB} MiB;"
        f" {before['resident_mib']:.0f} MiB before"
    )
    for line in later:
        trimmed = ", and malloc_trim" if line.get("trimmed") else ""
        print(
            f"after {line['batches']} batches of {_MEMORY_BATCH_SIZE} (12 MiB"
            f" as uint8, 48 as float32){trimmed}: {line['resident_mib']:.0f}"
            f" MiB, at most {line['peak_mib']:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    command.run("Data in training", _make_groups)
