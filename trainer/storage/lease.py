"""A lease on a prefix of a bucket: one live process writes there at a time.

The lease is an object that its holder writes again and again. Who wants it
waits until the server's clock says that it has not been written for its whole
duration. Every write is under the condition that nobody else wrote meanwhile.

The holder counts from before it sends a write, the server from when it gets
it. So the holder stops before anybody may take over, whatever the clocks of
the two machines say.
"""

import threading
import time
from collections.abc import Callable

from absl import logging

from trainer import errors
from trainer.storage import lease_object
from trainer.storage.bucket import Bucket
from trainer.storage.cloud_requests import Patience
from trainer.storage.lease_object import Claim
from trainer.storage.objects import ConflictError

# Of the duration: between two writes, and after one that failed.
_RENEWAL = 1 / 3
_RETRY = 1 / 10
_POLL_SECS = 1.0
# What an unreadable lease is taken to claim.
_UNKNOWN = Claim(
    holder="an unknown process", attempt="unknown", duration_secs=60.0
)
# For the bucket of a lease of the usual duration: a write that takes longer
# than to the next one is better given up.
PATIENCE = Patience(request_secs=10.0, retry_secs=20.0)
_START_RETRY_SECS = 300.0


class Lease:
    """The right to write below a bucket's prefix; any thread may ask for it."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        attempt: str,
        holder: str,
        duration_secs: float = 60.0,
    ) -> None:
        """Sends nothing yet.

        Args:
            bucket: Where the run is kept. It should give up on a request well
                within the duration, as with `PATIENCE`.
            attempt: The id of this process, a plain file name.
            holder: Who that is for a person: the host name and process id.
            duration_secs: How long the lease outlives a process that dies.
        """
        claim = Claim(
            holder=holder, attempt=attempt, duration_secs=duration_secs
        )
        self._bucket = bucket
        self._attempt = attempt
        self._data = claim.to_bytes()
        self._duration_secs = duration_secs
        self._generation = 0
        self._end_secs = 0.0
        self._lost: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, name="lease", daemon=True
        )

    @property
    def held(self) -> bool:
        """Whether nobody else can have the lease now.

        False also while the network is down for longer than the lease lasts;
        true again afterwards, if nobody has taken it.
        """
        return self._lost is None and _now_secs() < self._end_secs

    @property
    def lost(self) -> str | None:
        """Who has taken the lease, as a sentence; None if nobody has."""
        return self._lost

    def acquire(
        self,
        *,
        wait_secs: float = 0.0,
        check_stop: Callable[[], object] = lambda: None,
    ) -> None:
        """Takes the lease, and keeps it until `release`.

        Args:
            wait_secs: How long to wait at most for the lease of a process that
                may have died; that of a live one, which renews it, is not
                waited for.
            check_stop: Is called while it waits, and raises to end that.

        Raises:
            StorageError: If another process has it, or if the bucket cannot be
                written.
        """
        # A network that is down for minutes is waited for at the start; later,
        # what is not renewed soon is as good as lost.
        with self._bucket.ended_by(check_stop, _START_RETRY_SECS):
            try:
                self._write(0)
            except ConflictError:
                self._await_expiry(wait_secs, check_stop)
                self._take_over()
        self._thread.start()

    def release(self, deadline_secs: float) -> None:
        """Gives the lease back; what cannot be given back expires.

        Never raises: it is called while another error may be on its way.

        Args:
            deadline_secs: How long to wait for the server.
        """
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(deadline_secs)
        self._end_secs = 0.0

    def _await_expiry(
        self, wait_secs: float, check_stop: Callable[[], object]
    ) -> None:
        """Waits until nobody can have the lease, or somebody renews it."""
        deadline_secs = time.monotonic() + wait_secs
        first = lease_object.find(self._bucket)
        claim = lease_object.read(self._bucket) or _UNKNOWN
        # By our clock, from now: a little longer than by the server's.
        expiry_secs = time.monotonic() + claim.duration_secs + _POLL_SECS
        if first is None or expiry_secs > deadline_secs:
            return
        logging.info(
            "%s has the lease of %s. Waiting for at most %d s: either it is "
            "renewed, or that process has died.",
            _name(claim),
            self._bucket.location,
            claim.duration_secs,
        )
        while time.monotonic() < expiry_secs:
            time.sleep(_POLL_SECS)
            check_stop()
            stored = lease_object.find(self._bucket)
            if stored is None or stored.generation != first.generation:
                return

    def _take_over(self) -> None:
        """Takes a lease that has expired.

        Raises:
            StorageError: If it has not.
        """
        stored = lease_object.find(self._bucket)
        claim = lease_object.read(self._bucket) or _UNKNOWN
        generation, left_secs = 0, 0.0
        if stored is not None:
            age_secs = lease_object.age_secs(
                self._bucket, stored, attempt=self._attempt
            )
            generation = stored.generation
            left_secs = claim.duration_secs - age_secs
        if left_secs <= 0:
            try:
                self._write(generation)
                logging.info("Took over the lease of %s.", _name(claim))
                return
            except ConflictError:
                # Somebody was faster, or it was alive after all.
                claim = lease_object.read(self._bucket) or _UNKNOWN
                left_secs = claim.duration_secs
        raise errors.StorageError(
            f"{self._bucket.location} is being written by {_name(claim)}, and "
            "one run directory serves one run at a time. End that process; if "
            "it has ended without a word, its lease expires in "
            f"{max(1, round(left_secs))} s: run the same command again then. "
            "Or choose another --workdir."
        )

    def _keep(self) -> None:
        """Renews the lease until it is lost or released."""
        delay_secs = self._duration_secs * _RENEWAL
        while not self._stopping.wait(delay_secs):
            try:
                self._write(self._generation)
            except ConflictError:
                self._note_loss()
                return
            except errors.StorageError as error:
                delay_secs = self._duration_secs * _RETRY
                logging.warning("The lease is not renewed: %s", error)
            else:
                delay_secs = self._duration_secs * _RENEWAL
        try:
            self._bucket.delete(lease_object.NAME, generation=self._generation)
        except (ConflictError, errors.StorageError) as error:
            logging.warning("The lease is left to expire: %s", error)

    def _write(self, generation: int) -> None:
        """Writes the lease in place of a generation.

        Raises:
            ConflictError: If another process wrote it meanwhile.
            StorageError: If the bucket cannot be written.
        """
        start_secs = _now_secs()
        self._generation = lease_object.write(
            self._bucket, self._data, generation=generation
        ).generation
        self._end_secs = start_secs + self._duration_secs

    def _note_loss(self) -> None:
        location = self._bucket.location
        try:
            claim = lease_object.read(self._bucket) or _UNKNOWN
        except errors.StorageError:
            claim = _UNKNOWN
        self._lost = (
            f"{location} now belongs to {_name(claim)}, which took the lease "
            "over."
        )
        logging.error("%s Nothing more is uploaded.", self._lost)


def _now_secs() -> float:
    """Reads a clock that goes on while the machine is suspended, if any does.

    Another process may have taken the lease by the time it wakes up.
    """
    return time.clock_gettime(
        getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    )


def _name(claim: Claim) -> str:
    return f"{claim.holder} (attempt {claim.attempt})"
