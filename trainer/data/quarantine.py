"""The files that are not used, by name and reason.

One bad file in ten thousand is what real data are like, and no reason to lose a
night; one in ten is a mistake that training must not begin with.
"""

import contextlib
import threading
from collections.abc import Iterator

from absl import logging

from trainer import errors

_NUM_EXAMPLES = 5
_HOW_TO_LIST = "`python -m trainer.data_tools inspect` lists all of them"


def printable(name: str) -> str:
    """Returns a name on one line, whatever bytes a file system lets it have.

    A line feed would look like another name, and an escape sequence would do
    to the terminal what it says.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in name
    )


class NothingUsable(errors.DataError):
    """No image can be used, of all or of a class.

    Attributes:
      quarantine: what is wrong with them.
    """

    def __init__(self, message: str, quarantine: "Quarantine") -> None:
        super().__init__(f"{message} {quarantine.summary()}".rstrip())
        self.quarantine = quarantine


class Quarantine:
    """Counts bad files, and says when there are too many.

    Attributes:
      failure: why reading had to end in the middle of training, if it had to.
        TensorFlow reports it as an error of its own.
    """

    def __init__(self, max_bad_fraction: float = 0.01) -> None:
        """Starts without any; `max_bad_fraction` of all files may be bad."""
        self.failure: errors.TrainerError | None = None
        self._max_bad_fraction = max_bad_fraction
        self._reasons: dict[str, str] = {}
        self._num_good = 0
        self._num_bad = 0
        self._num_replaced = 0
        self._lock = threading.Lock()

    @property
    def reasons(self) -> dict[str, str]:
        """Why each bad file is not used, by name, in the order found."""
        with self._lock:
            return dict(self._reasons)

    @property
    def num_bad(self) -> int:
        """How many are not used, those that were replaced among them."""
        return self._num_bad

    @property
    def bad_fraction(self) -> float:
        """The bad part of all files, in 0..1."""
        return self._num_bad / max(self._num_found, 1)

    def add(self, name: str, reason: str, *, count: int = 1) -> None:
        """Takes a file that is left out.

        Args:
          name: of the file, or of the place in one.
          reason: why, to follow the name in parentheses.
          count: of the examples that are lost with it.
        """
        with self._lock:
            self._reasons[name] = reason
            self._num_bad += count

    def check(self, num_good: int) -> None:
        """Refuses too many, once all files have been looked at.

        Args:
          num_good: files that can be used.

        Raises:
          DataError: more than the allowed fraction is bad.
        """
        with self._lock:
            self._num_good = num_good
            self._check()

    def replace(self, name: str, reason: str) -> None:
        """Takes a file that turned out bad when it was read; again or anew.

        Raises:
          DataError: with this one, too many are bad; `failure` keeps it.
        """
        with self._lock:
            if name in self._reasons:
                return
            self._reasons[name] = reason
            self._num_replaced += 1
            self._num_good -= 1
            self._num_bad += 1
            try:
                self._check()
            except errors.DataError as error:
                self.failure = error
                raise
        logging.warning(
            "%s is not used, but replaced by the next good image of its class:"
            " %s.",
            printable(name),
            reason,
        )

    def fail(self, message: str) -> errors.DataError:
        """Keeps the reason why reading cannot go on, and returns it."""
        failure = self.failure = errors.DataError(message)
        return failure

    def summary(self) -> str:
        """Says how many are bad and names some; "" if none is."""
        reasons = self.reasons
        if not reasons:
            return ""
        replaced = ""
        if self._num_replaced:
            replaced = f" ({self._num_replaced} of them replaced)"
        return (
            f"{self._num_bad:,} of {self._num_found:,} images are not used"
            f"{replaced}:\n{_some(reasons)}"
        )

    @property
    def _num_found(self) -> int:
        return self._num_good + self._num_bad

    def _check(self) -> None:
        if self._num_bad > self._num_found * self._max_bad_fraction:
            raise errors.DataError(
                f"{self._num_bad:,} of {self._num_found:,} images cannot be"
                " used, more than"
                f" --max_bad_fraction={self._max_bad_fraction:g}:\n"
                f"{_some(self._reasons)}\nRepair or remove them, or raise"
                " --max_bad_fraction."
            )


def _some(reasons: dict[str, str]) -> str:
    lines = [
        f"  {printable(name)} ({reason})"
        for name, reason in list(reasons.items())[:_NUM_EXAMPLES]
    ]
    if (num_others := len(reasons) - len(lines)) > 0:
        lines.append(f"  and {num_others:,} others; {_HOW_TO_LIST}")
    return "\n".join(lines)


@contextlib.contextmanager
def own_failure(quarantine: Quarantine) -> Iterator[None]:
    """Reads within it end with our error, not with what TensorFlow makes of it.

    Raises:
      TrainerError: the reason why reading ended.
    """
    try:
        yield
    except errors.TrainerError:
        raise
    except Exception as error:
        if quarantine.failure is None:
            raise
        raise quarantine.failure from error


@contextlib.contextmanager
def told_at_the_end(quarantine: Quarantine) -> Iterator[None]:
    """Tells of the files that were not used when it is left.

    Raises:
      TrainerError: the reason why reading ended, if it did.
    """
    try:
        with own_failure(quarantine):
            yield
    finally:
        if summary := quarantine.summary():
            logging.warning("%s", summary)
