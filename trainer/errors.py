"""Errors that end a run, each with the exit code that users script against.

Each message carries the value, the rule that it broke and the remedy. The
entry point prints the message without a traceback and exits with the code;
anything that is not a `TrainerError` is a defect of ours and keeps its
traceback.

Codes 2 to 6 tell a scheduler not to restart the job; 7 may be mended by another
machine. After 130 (interrupted), 142 (stalled) and 143 (preempted) the same
command goes on. After 130 and 143 the state is saved, unless a second signal
came, training had not yet begun, or the save failed twice: then a line says
which older checkpoint is durable (with none, it is 6). For a run in a bucket,
the last line tells whether it is there or on this machine's disk only. After
142 it is the newest checkpoint's.
"""

EXIT_INTERRUPTED = 130
EXIT_STALLED = 142
EXIT_PREEMPTED = 143


class TrainerError(Exception):
    """A failure that the user can act upon."""

    exit_code = 1


class UsageError(TrainerError):
    """A flag, a value or a combination of them that cannot be used."""

    exit_code = 2


class DataError(TrainerError):
    """The training data is missing, unreadable or not what was promised."""

    exit_code = 3


class CheckpointError(TrainerError):
    """There are checkpoints, but none that can be trusted."""

    exit_code = 4


class DivergedError(TrainerError):
    """A loss, a gradient or a weight is no longer a finite number."""

    exit_code = 5


class CollapsedError(DivergedError):
    """The samples have become much worse than they were."""


class StorageError(TrainerError):
    """The run directory cannot be read or written."""

    exit_code = 6


class UnsavedError(StorageError):
    """The state is not saved.

    Attributes:
        newest_good: the newest checkpoint that is durable, if there is one.
    """

    def __init__(self, message: str, *, newest_good: str | None) -> None:
        """Says what is durable behind a message, which is a sentence."""
        super().__init__(
            f"{message} "
            + (
                f"What is durable is {newest_good}: the same command goes on "
                "there."
                if newest_good
                else "Nothing of this run is durable."
            )
        )
        self.newest_good = newest_good


class DeviceError(TrainerError):
    """The devices do not compute what they were asked to."""

    exit_code = 7


class StalledError(TrainerError):
    """Nothing moves any more: another process is missing, lost or too slow."""

    exit_code = EXIT_STALLED


class StoppedError(TrainerError):
    """A signal came when there was nothing to save."""

    def __init__(
        self,
        exit_code: int,
        message: str = "Stopped before training began: nothing to save.",
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeerError(TrainerError):
    """Another worker has ended with an error, which this one ends with too."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
