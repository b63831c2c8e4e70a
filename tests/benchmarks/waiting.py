"""The share of the time that training waits for its data.

  python -m tests.benchmarks.waiting --dataset=mnist --data_dir=DIR

Trains as `trainer.main` would, and prints `data_wait_secs` against the time of
the same steps, turn by turn.
"""

import statistics
import time

from absl import flags

from tests.benchmarks import command, ours

_MODEL = flags.DEFINE_string("model", "dcgan28", "Of the networks.")
_MEMORY = flags.DEFINE_integer(
    "data_memory_mib", 4096, "Larger data are streamed.", 0
)


def _print_shares() -> None:
    config = ours.configure(
        dataset=command.DATASET.value,
        data_dir=command.DATA_DIR.value,
        batch_size=command.BATCH_SIZE.value,
        model=_MODEL.value,
        data_memory_mib=_MEMORY.value,
    )
    step = ours.build_step(config)
    step.run(1)  # Traces.
    shares = []
    for _ in range(command.ROUNDS.value):
        start_secs = time.monotonic()
        waited_secs = step.run(command.STEPS.value)["data_wait_secs"]
        shares.append(waited_secs / (time.monotonic() - start_secs))
    print(
        f"\ntraining waits for data {statistics.median(shares):.3%} of the"
        f" time ({min(shares):.3%} to {max(shares):.3%})",
        flush=True,
    )


if __name__ == "__main__":
    command.run_body("Waiting for data", _print_shares)
