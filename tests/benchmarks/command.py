"""What the commands have in common: flags, and the head of their output."""

from collections.abc import Callable, Iterable
from typing import Any

from absl import app, flags

from tests.benchmarks import machine
from tests.benchmarks.turns import Contestant, Group, print_group

DATASET = flags.DEFINE_string("dataset", "digits", "Data.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Data prepared before.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images a step.", 1)
ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each contestant.", 1)
STEPS = flags.DEFINE_integer(
    "steps",
    10,
    "Steps in a turn, or a multiple of it for what is short. A turn should last"
    " a second or more: on a GPU, take hundreds.",
    1,
)


def contestant(
    name: str, builder: str, num_steps: int | None = None, **arguments: Any
) -> Contestant:
    """Returns a contestant on the data that the flags say.

    Args:
      name: of the row.
      builder: "module.function" of this package.
      num_steps: in a turn; None for --steps.
      **arguments: of the builder, besides the data and the batch size.
    """
    module, function = builder.split(".")
    return Contestant(
        name,
        f"tests.benchmarks.{module}:{function}",
        {
            "dataset": DATASET.value,
            "data_dir": DATA_DIR.value,
            "batch_size": BATCH_SIZE.value,
            **arguments,
        },
        num_steps or STEPS.value,
    )


def run(title: str, make_groups: Callable[[], Iterable[Group]]) -> None:
    """Parses the flags and prints the tables, one after the other."""

    def print_groups() -> None:
        for group in make_groups():
            print_group(group, ROUNDS.value)

    run_body(title, print_groups)


def run_body(title: str, print_body: Callable[[], None]) -> None:
    """Parses the flags and prints the head, then what a function prints."""

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"{argv[1]!r} is not a flag.")
        lines = [
            *machine.describe(),
            f"{DATASET.value}; batch {BATCH_SIZE.value}, if not said otherwise",
            f"{ROUNDS.value} turns each, alternating; medians; ratios are"
            " medians over neighbouring turns; the first row is the baseline",
        ]
        print(f"# {title}\n", *[f"- {line}" for line in lines], sep="\n")
        print_body()

    app.run(main)
