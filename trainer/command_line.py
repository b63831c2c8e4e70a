"""What the commands of this package have in common."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from absl import logging as absl_logging

from trainer import errors


def exit_code_of(run: Callable[[], int]) -> int:
    """Returns what `run` returns, or the code of the error that ended it."""
    try:
        return run()
    except errors.StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except errors.TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return errors.EXIT_INTERRUPTED


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
