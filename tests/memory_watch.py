"""Reads batches and prints the memory of its process; not a test itself.

usage: python -m tests.memory_watch <folder> <side> <budget in MiB>
           <batch size> <batches> ...

Prints a line of JSON: before anything is read, and after each number of
batches.
"""

import ctypes
import json
import os
import pathlib
import sys

from trainer import data
from trainer.data import pipeline

_KIB_PER_MIB = 1024


def _mib(field: str) -> float:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / _KIB_PER_MIB


def _print(**values: object) -> None:
    memory = {"resident_mib": _mib("VmRSS"), "peak_mib": _mib("VmHWM")}
    print(json.dumps(values | memory), flush=True)


def main(
    folder: str, side: int, budget_mib: int, batch_size: int, *counts: int
) -> None:
    """Reads up to the last of `counts` batches."""
    wanted = data.Wanted(image_size=(side, side), memory_bytes=budget_mib << 20)
    # TensorFlow's own start is not what the data take.
    next(iter(pipeline.tf.data.Dataset.range(1)))
    _print(batches=0)
    dataset = data.load(f"folder:{folder}", data_dir=None, wanted=wanted)
    batches = iter(
        pipeline.training_batches(
            dataset,
            global_batch_size=batch_size,
            num_replicas=1,
            first_step=0,
            seed=0,
        )
    )
    done = 0
    for count in counts:
        for _ in range(done, count):
            next(batches)
        done = count
        _print(batches=done, dataset=dataset.describe())
    # What is free and only kept by malloc goes back; a leak stays.
    ctypes.CDLL(None).malloc_trim(0)
    _print(batches=done, trimmed=True)
    # At exit, threads that prefetch are waited for.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
