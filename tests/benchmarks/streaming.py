"""What data cost in training: the time that it waits, the memory they take.

  python -m tests.benchmarks.streaming --folder=DIR --mnist_dir=DIR

Trains on each, against the same on always the same batch, which waits for
nothing; then streams a set that is many times larger than the budget, and
watches the memory of the process.
"""

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
_BATCHES = (20, 200)

_WATCH_MEMORY = """
import sys
from trainer import data
from trainer.data import pipeline

def resident_mib(field):
    with open("/proc/self/status") as file:
        [line] = (l for l in file if l.startswith(field))
    return int(line.split()[1]) / 1024

name, size, budget, *counts = sys.argv[1], *map(int, sys.argv[2:])
wanted = data.Wanted(image_size=(size, size), memory_bytes=budget << 20)
dataset = data.load(name, data_dir=None, wanted=wanted)
before = resident_mib("VmRSS")
print(f"{dataset.describe()}; budget {budget} MiB; {before:.0f} MiB before")
batches = iter(pipeline.training_batches(
    dataset, global_batch_size=64, num_replicas=1, first_step=0, seed=0))
done = 0
for count in counts:
    while done < count:
        next(batches)
        done += 1
    print(f"after {count} batches of 64 (12 MiB as uint8, 48 as float32):"
          f" {resident_mib('VmRSS'):.0f} MiB,"
          f" at most {resident_mib('VmHWM'):.0f} MiB", flush=True)
sys.stdout.flush()
import os
os._exit(0)
"""


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
    subprocess.run(
        [
            *(sys.executable, "-c", _WATCH_MEMORY),
            *(f"folder:{folder}", str(_IMAGE_SIZE), str(_BUDGET_MIB)),
            *map(str, _BATCHES),
        ],
        stderr=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    command.run("Data in training", _make_groups)
