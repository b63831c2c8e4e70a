"""What data cost in training: the time that it waits, the memory they take.

  python -m tests.benchmarks.streaming --folder=DIR --mnist_dir=DIR

Runs `trainer.main` on each, and reads what it logs; then streams a set that is
many times larger than the budget, and watches the memory of the process.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from absl import app, flags

from tests.benchmarks import machine

_FOLDER = flags.DEFINE_string("folder", None, "Small images.", required=True)
_MNIST_DIR = flags.DEFINE_string("mnist_dir", None, "MNIST.", required=True)
_STEPS = flags.DEFINE_integer("steps", 60, "Steps that count.", 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images a step.", 1)

_LOG_EVERY_STEPS = 10
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


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is not a flag.")
    print("# Data in training\n", *machine.describe(), sep="\n- ")
    folder = [f"--dataset=folder:{_FOLDER.value}", "--model=dcgan"]
    mnist = [f"--data_dir={_MNIST_DIR.value}"]
    print("\n| | steps/s | waits for data |\n| --- | --- | --- |")
    for name, arguments in (
        ("mnist, in memory", ["--dataset=mnist", *mnist]),
        ("folder, in memory", folder),
        ("folder, streamed", [*folder, "--data_memory_mib=0"]),
    ):
        rate, share = _train(arguments)
        print(f"| {name} | {rate:.2f} | {share:.2%} |", flush=True)
    print("\n## Memory\n", flush=True)
    subprocess.run(
        [
            *(sys.executable, "-c", _WATCH_MEMORY),
            *(f"folder:{_FOLDER.value}", str(_IMAGE_SIZE), str(_BUDGET_MIB)),
            *map(str, _BATCHES),
        ],
        stderr=subprocess.DEVNULL,
        check=True,
    )


def _train(arguments: Sequence[str]) -> tuple[float, float]:
    """Returns steps a second, and the share of time that training waited."""
    with tempfile.TemporaryDirectory() as workdir:
        subprocess.run(
            [
                *(sys.executable, "-m", "trainer.main", *arguments),
                f"--workdir={workdir}/run",
                f"--batch_size={_BATCH_SIZE.value}",
                f"--max_steps={_STEPS.value + _LOG_EVERY_STEPS}",
                f"--log_every_steps={_LOG_EVERY_STEPS}",
            ],
            stderr=subprocess.PIPE,
            check=True,
        )
        metrics = pathlib.Path(workdir, "run", "metrics.jsonl").read_text()
    # The first has the tracing in it.
    records = [json.loads(line) for line in metrics.splitlines()][1:]
    secs = sum(
        _LOG_EVERY_STEPS * _BATCH_SIZE.value / record["images_per_sec"]
        for record in records
    )
    waited_secs = sum(record["data_wait_secs"] for record in records)
    return len(records) * _LOG_EVERY_STEPS / secs, waited_secs / secs


if __name__ == "__main__":
    app.run(main)
