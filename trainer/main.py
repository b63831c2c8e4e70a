"""Trains a GAN: `python -m trainer.main --strategy=mirrored`.

This module is kept short on purpose: it turns the command line into a
`Config`, calls `train.run` and turns what comes back into an exit code.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainer import command_line, config, interruption, options
from trainer.heartbeat import Heartbeat

_HELP = """\
Trains a GAN. The same command again continues where the run stands.

usage: python -m trainer.main [--flag=value ...]

examples:
  python -m trainer.main --strategy=mirrored
      The default: 50 epochs on handwritten digits, nothing to download.
  python -m trainer.main --num_logical_cpus=2
      The same on two replicas, without a GPU.
  python -m trainer.main --flagfile={recipes}/mnist.flags --epochs=5
      A recipe, and flags after it that override its own.
  python -m launch.main submit --platform=local --num_workers=2 -- --epochs=5
      Two processes that train together. `python -m launch.main --help` says how
      to submit the same to Docker and to cloud GPUs.

{flags}

Other:
  --flagfile=<file>
      Read flags from a file, one a line. Recipes are in
      {recipes}
  --help
      Show this text.

exit codes: 0 done, 2 usage, 3 data, 4 no good checkpoint, 5 diverged,
6 storage, 7 devices, 130 interrupted, 142 stalled, 143 preempted; after the
last three, the same command goes on."""


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, program name first; returns its exit code.

    TensorFlow takes seconds to import, so `trainer.train` is imported only
    after the flags have turned out to be valid.
    """
    if {"--help", "-help", "-h"}.intersection(argv[1:]):
        _print_help()
        return 0
    return command_line.exit_code_of(lambda: _train(argv))


def _train(argv: Sequence[str]) -> int:
    with interruption.end_at_once():
        valid_config = _read_command_line(argv)
        command_line.configure_logging()
        stall_timeout_secs = valid_config.stall_timeout_secs
        with Heartbeat(stall_timeout_secs=stall_timeout_secs) as heartbeat:
            from trainer import train

            return train.run(valid_config, heartbeat)


def _print_help() -> None:
    flags_by_topic = options.help_text(config.Config)
    command_line.print_help(
        _HELP.format(flags=flags_by_topic, recipes=_recipes())
    )


def _read_command_line(argv: Sequence[str]) -> config.Config:
    flag_values = options.parse(
        [config.Config],
        argv,
        "`python -m trainer.main --help` lists the flags; recipes for"
        f" --flagfile are in {_recipes()}",
    )
    values = options.values_from_flags(config.Config, flag_values)
    unresolved = config.Config(**values)
    unresolved.validate()
    return unresolved.resolve()


def _recipes() -> Path:
    """Returns the recipes' directory, which an installed package has too."""
    directory = Path(__file__).parent / "recipes"
    here = Path.cwd()
    if directory.is_relative_to(here):
        return directory.relative_to(here)
    return directory


if __name__ == "__main__":
    sys.exit(main(sys.argv))
