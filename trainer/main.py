"""Trains a GAN: `python -m trainer.main --strategy=mirrored`.

This module is kept short on purpose: it turns the command line into a
`Config`, calls `train.run` and turns what comes back into an exit code.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging as absl_logging

from trainer import config, errors, interruption, options
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
    try:
        with interruption.end_at_once():
            valid_config = _read_command_line(argv)
            _configure_logging()
            stall_timeout_secs = valid_config.stall_timeout_secs
            with Heartbeat(stall_timeout_secs=stall_timeout_secs) as heartbeat:
                from trainer import train

                return train.run(valid_config, heartbeat)
    except errors.StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except errors.TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _print_help() -> None:
    flags_by_topic = options.help_text(config.Config)
    try:
        print(
            _HELP.format(flags=flags_by_topic, recipes=_recipes()), flush=True
        )
    except BrokenPipeError:
        # `--help | head` has read enough. Python flushes once more at exit,
        # and that must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


class _Formatter(logging.Formatter):
    """Shows the level of a message only where it is more than information."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno <= logging.INFO:
            return text
        return f"{record.levelname.lower()}: {text}"


def _configure_logging() -> None:
    # 2 leaves errors. Below that, TensorFlow's C++ side reports at every start
    # what it was compiled with; set the variable to see that. A few lines are
    # written while TensorFlow is imported, before it looks at the variable.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    # On the root, so that the warnings of libraries look like ours.
    logging.basicConfig(handlers=[handler])
    absl_logging.set_verbosity(absl_logging.INFO)
    # Not on the handler, which the progress bar replaces by its own.
    absl_logging.get_absl_logger().addFilter(_is_for_users)


def _is_for_users(record: logging.LogRecord) -> bool:
    """Drops what TensorFlow's Python side tells about each save.

    It speaks through the same logger as this package.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or record.levelno > logging.INFO:
        return True
    package = Path(tensorflow.__file__ or "").parent
    return not Path(record.pathname).is_relative_to(package)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
