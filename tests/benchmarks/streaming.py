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

    It creeps up in a few steps, and that is no leak, which would grow with each
    batch: CIFAR-10 at 256x256 took 188 MiB after 20 batches, 213 after 400 and
    213 after 800. The last line is after `malloc_trim`, which gives back to the
    system what malloc keeps free between buffers in use. It was 3 of these MiB:
    the rest is in use, by more batches in flight than at first. Where images
    are decoded at that size instead (JPEG, 1,024 of 256x256, 58 to 80 MiB), it
    was 22, all that had been added since the eighth batch.
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
