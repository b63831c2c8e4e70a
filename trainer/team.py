"""The workers of a run, who take every decision together.

One process alone is a team of one, which asks nobody. Of several, only the
chief touches the run directory; whatever follows from what it finds there, and
whether to stop, every worker learns in the same exchange, so that all do the
same collective operations in the same order. A worker that went its own way
would leave the others waiting for it.
"""

import contextlib
import hashlib
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from trainer import errors

_LEAVE_SECS = 60.0
# What TensorFlow raises where another worker has gone; with other errors it
# says that it has aborted the collective operations.
_LOST_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)
_LOST_TEXT = "Collective ops is aborted by"


class Vote(NamedTuple):
    """What all workers do next.

    Attributes:
      stops: save and stop.
      saves: save after the next steps.
    """

    stops: bool
    saves: bool


class Team:
    """This worker and the others; enter it while they work together.

    Attributes:
      strategy: the replicas of all workers.
      is_chief: whether this worker is the one that reads and writes files.
      exit_code: what the last `vote` has agreed upon: 0, 130 or 143.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        *,
        index: int = 0,
        num_workers: int = 1,
    ) -> None:
        """Joins; the others must do the same at the same point.

        Args:
          strategy: one over all workers.
          index: which of them this is; 0 is the chief.
          num_workers: how many they are.
        """
        self.strategy = strategy
        self.is_chief = index == 0
        self.exit_code = 0
        self._index = index
        self._num_workers = num_workers
        self._sum = tf.function(self._sum_over_workers)

    @property
    def local_replicas(self) -> range:
        """Which of all replicas are this worker's."""
        count = self.strategy.num_replicas_in_sync // self._num_workers
        return range(self._index * count, (self._index + 1) * count)

    def share(self, value: int, topic: str = "") -> list[int]:
        """Returns every worker's value, in their order.

        Args:
          value: this worker's, in 0 .. 2**62.
          topic: what it is about; the same for all.

        Raises:
          PeerError: another worker has ended with an error.
          StalledError: another worker is elsewhere in the program.
        """
        number = _number(topic)
        error_codes, topics, values = self._exchange(
            error_code=0, topic=number, value=value
        )
        for index, code in enumerate(error_codes):
            if code:
                raise errors.PeerError(
                    f"Worker {index} has ended with exit code {code}, and so "
                    "do the others; its own last lines say why.",
                    code,
                )
        if any(each != number for each in topics):
            # One has seen other numbers: its memory or its devices are bad.
            raise errors.StalledError(
                "The workers have come apart: they no longer take the same "
                "steps. Start all again with the same command to go on from "
                "the newest checkpoint; if it happens again, one of the "
                "machines computes wrongly."
            )
        return values

    def from_chief(self, value: int) -> int:
        """Returns the chief's value; what the others give is ignored."""
        return self.share(value, "the chief's")[0]

    def vote(self, *, exit_code: int = 0, wants_save: bool = False) -> Vote:
        """Asks all workers whether signals want something of them.

        Args:
          exit_code: this worker's: 0, or 130 or 143 if it is to stop.
          wants_save: whether it was asked to save.
        """
        ballot = exit_code * 2 + wants_save
        votes = [divmod(v, 2) for v in self.share(ballot, "vote")]
        exit_codes = [code for code, _ in votes]
        self.exit_code = max(exit_codes)
        if self.exit_code and not exit_code:
            logging.info(
                "Worker %d was told to stop, and all stop with it.",
                exit_codes.index(self.exit_code),
            )
        return Vote(
            stops=bool(self.exit_code), saves=any(saves for _, saves in votes)
        )

    def check_same_data(self, digest: str) -> None:
        """Refuses workers that have read different data.

        Args:
          digest: of this worker's data.

        Raises:
          DataError: on all of them.
        """
        values = self.share(_number(digest), "data")
        different = [v != values[0] for v in values]
        if any(different):
            raise errors.DataError(
                f"Worker {different.index(True)} has read other data than "
                "worker 0. All workers train on shares of the same: give them "
                "copies of the same --data_dir."
            )

    def take_over_from_chief(self, variables: Sequence[tf.Variable]) -> None:
        """Gives the chief's values to the variables of all workers."""
        self.share(0)  # Or the chief could have left with an error by now.
        if self._num_workers == 1:
            return

        @tf.function
        def broadcast() -> list[tf.Tensor]:
            per_replica = self.strategy.run(_contribute, [variables])
            return [
                self.strategy.experimental_local_results(value)[0]
                for value in per_replica
            ]

        for variable, value in zip(variables, broadcast(), strict=True):
            variable.assign(value)

    def __enter__(self) -> "Team":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends together: waits for the others, or tells them of an error.

        Raises:
          StalledError: another worker was lost.
        """
        if self._num_workers == 1:
            return
        if error is None:
            try:
                # The chief may still be saving, and whoever leaves takes the
                # connection with it.
                self.share(0, "end")
            except tf.errors.OpError as lost:
                raise _stalled(lost) from lost
        elif _tells_of_a_loss(error):
            raise _stalled(error) from error
        elif not isinstance(error, errors.PeerError):
            self._tell_others(getattr(error, "exit_code", 1))

    def _tell_others(self, error_code: int) -> None:
        """Takes part in their next exchange, if they come to one in time."""

        def tell() -> None:
            with contextlib.suppress(tf.errors.OpError):
                self._exchange(error_code=error_code, topic=0, value=0)

        thread = threading.Thread(target=tell, name="leaving", daemon=True)
        thread.start()
        thread.join(_LEAVE_SECS)
        if thread.is_alive():
            logging.warning("The other workers were not told of the error.")

    def _exchange(
        self, *, error_code: int, topic: int, value: int
    ) -> list[list[int]]:
        """Returns the error codes, the topics and the values of all workers."""
        if self._num_workers == 1:
            return [[error_code], [topic], [value]]
        rows = [[0, 0, 0] for _ in range(self._num_workers)]
        rows[self._index] = [error_code, topic, value]
        sums = self._sum(tf.constant(rows, tf.int64)).numpy()
        return sums.T.tolist()

    def _sum_over_workers(self, rows: tf.Tensor) -> tf.Tensor:
        def on_replica(rows: tf.Tensor) -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            # One replica speaks for the worker.
            speaks = tf.equal(
                replica.replica_id_in_sync_group, self.local_replicas.start
            )
            mine = tf.where(speaks, rows, tf.zeros_like(rows))
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, mine)

        per_replica = self.strategy.run(on_replica, [rows])
        return self.strategy.experimental_local_results(per_replica)[0]


def _contribute(variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """Sums the first replica's values with nothing; call on each replica."""
    replica = tf.distribute.get_replica_context()
    is_first = tf.equal(replica.replica_id_in_sync_group, 0)
    sums = []
    for variable in variables:
        value = tf.convert_to_tensor(variable)
        # The zero that changes no number, -0.0 not excepted, is negative.
        nothing = -tf.zeros_like(value)
        mine = tf.where(is_first, value, nothing)
        sums.append(replica.all_reduce(tf.distribute.ReduceOp.SUM, mine))
    return sums


def _tells_of_a_loss(error: BaseException) -> bool:
    return isinstance(error, _LOST_ERRORS) or (
        isinstance(error, tf.errors.OpError) and _LOST_TEXT in str(error)
    )


def _stalled(error: BaseException) -> errors.StalledError:
    return errors.StalledError(
        "Another worker was lost, and with it the steps since the newest "
        "checkpoint. Start all workers again with the same command to go on "
        f"from there. TensorFlow says: {_brief(error)}"
    )


def _number(text: str) -> int:
    """Returns a number for a text, of the size that a value can have."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _brief(error: BaseException) -> str:
    """Returns the line that says what happened, without the graph's stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "aborted" in line]
    return (causes or lines or [type(error).__name__])[0][:300]
