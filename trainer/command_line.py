"""What the commands of this package have in common."""

import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import logging as absl_logging

from trainer import errors, options


def exit_code_of(run: Callable[[], int]) -> int:
    """Returns what `run` returns, or the code of the error that ended it."""
    try:
        return run()
    except errors.StoppedError as stopped:
        _tell(str(stopped))
        return stopped.exit_code
    except errors.TrainerError as error:
        _tell(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _tell("interrupted")
        return errors.EXIT_INTERRUPTED


def _tell(text: str) -> None:
    # All at once, so that workers on one terminal do not split it.
    sys.stderr.write(f"{text}\n")


def wants_help(argv: Sequence[str]) -> bool:
    """Tells whether a command line asks for the flags."""
    return bool({"--help", "-help", "-h"}.intersection(argv[1:]))


def values(
    flags_type: type, argv: Sequence[str], where_listed: str
) -> dict[str, Any]:
    """Returns the values of a command whose flags are a dataclass's fields.

    Args:
      flags_type: the dataclass; see `options.declare`.
      argv: the program name and the arguments.
      where_listed: a sentence about where to find the flags.

    Raises:
      UsageError: something is no flag, or has no legal value.
    """
    flag_values = options.parse([flags_type], argv, where_listed)
    return options.values_from_flags(flags_type, flag_values)


def workdir_flag() -> Any:
    """Declares --workdir of a command that looks at a run."""
    return options.declare(
        False,
        "Run",
        None,
        "Directory of the run, or gs://bucket/prefix; it is only read.",
        "directory",
        default_text="none, it must be given",
    )


def step_flag() -> Any:
    """Declares --step of a command that takes one of a run's checkpoints."""
    return options.declare(
        False,
        "Run",
        "newest",
        "Which checkpoint: newest; best, of the evaluations during training; or"
        " a step.",
        "step",
        pattern=r"newest|best|\d{1,12}",
        rule="newest, best or a step",
    )


def require_workdir(workdir: str | None) -> str:
    """Returns --workdir, which has no default where a run must exist.

    Raises:
      UsageError: it was not given.
    """
    if workdir is None:
        raise errors.UsageError(
            "--workdir is missing: which run? Give the directory that"
            " `python -m trainer.main` was given, such as"
            " --workdir=runs/digits-dcgan28."
        )
    return workdir


def print_help(text: str) -> None:
    """Prints a text, of which the reader may not want to see all."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # `--help | head` has read enough. Python flushes once more at exit,
        # and that must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Formatter(logging.Formatter):
    """Shows the level of a message only where it is more than information."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno <= logging.INFO:
            return text
        return f"{record.levelname.lower()}: {text}"


def configure_logging() -> None:
    """Shows what this package and its libraries tell, as people read it."""
    # 2 leaves errors. Below that, TensorFlow's C++ side reports at every start
    # what it was compiled with; set the variable to see that. A few lines are
    # written while TensorFlow is imported, before it looks at the variable.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Names of files and classes are any bytes, and terminals not all UTF-8.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
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
