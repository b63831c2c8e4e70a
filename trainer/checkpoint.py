"""Saves the training state so that it can be trusted, and finds it again.

A checkpoint is `step-000000350/` in a `CheckpointStore`: the TensorFlow bundle
(`state.index`, `state.data-*`), `host_state.json`, and `MANIFEST.json`, without
which it does not exist. Before its files agree with its manifest it is not
restored, and, unless the disk is full, nothing is deleted in favour of it. No
pickle on any path.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from absl import logging

from trainer import atomic_file, errors
from trainer.finiteness import FiniteCheck
from trainer.retention import Retention
from trainer.snapshot import Snapshot, Snapshots
from trainer.storage import CheckpointStore, files, finder, manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class PendingCheckpoint:
    """A state in memory that is no checkpoint yet."""

    step: int
    snapshot: Snapshot
    host_state: bytes
    replaces_bad: bool
    best: str | None


class Checkpointer:
    """Saves and restores the state of one run; one thread at a time."""

    def __init__(
        self,
        *,
        objects: tf.train.Checkpoint,
        store: CheckpointStore,
        keep_checkpoints: int,
        config_digest: str,
        attempt: str,
        keep_every_steps: int | None = None,
        scheduled_every_steps: int = 1,
    ) -> None:
        """Touches nothing of the store yet.

        Args:
            objects: All variables of the run, already created: what does not
                exist yet is neither saved nor restored.
            store: Where the checkpoints are kept.
            keep_checkpoints: How many good ones to keep, at least 1.
            config_digest: The digest of what must not change within a run.
            attempt: A random id of this process, a plain file name.
            keep_every_steps: See `Retention`.
            scheduled_every_steps: See `Retention`.

        Raises:
            ValueError: If a value breaks these rules.
        """
        for value in (config_digest, attempt):
            if not manifest.is_plain_name(value):
                raise ValueError(f"{value!r} must be a plain file name.")
        self._objects = objects
        self._store = store
        self._config_digest = config_digest
        self._attempt = attempt
        self._retention = Retention(
            store,
            keep_checkpoints=keep_checkpoints,
            keep_every_steps=keep_every_steps,
            scheduled_every_steps=scheduled_every_steps,
            config_digest=config_digest,
        )
        self._finite_check = FiniteCheck(objects)
        self._snapshots = Snapshots(objects)

    @property
    def newest_good(self) -> str | None:
        """The newest checkpoint that was verified or restored here, by name."""
        return self._retention.newest_trusted

    def has_saved(self, step: int) -> bool:
        """Tells whether the state of a step was verified or restored here."""
        return self._retention.trusts(manifest.checkpoint_name(step))

    def restore(self, stored: finder.StoredCheckpoint) -> None:
        """Puts the values of a checkpoint into the variables.

        Raises:
            CheckpointError: If it does not hold exactly these variables. Some
                of them may have been changed by then.
        """
        try:
            status = self._objects.read(
                str(stored.directory / finder.BUNDLE_PREFIX)
            )
            # Nothing left over in the file, no variable left without a value.
            status.assert_consumed()
        # A file that is cut short after the verification raises IndexError;
        # other shapes ValueError, other variables AssertionError.
        except (
            tf.errors.OpError,
            AssertionError,
            IndexError,
            ValueError,
        ) as error:
            raise errors.CheckpointError(
                f"Checkpoint {stored.name} in {self._store.location} is intact "
                f"but does not fit this program: {error} Its variables must be "
                "those of the networks and optimizers. Continue with the "
                "version of the program that wrote it, or start afresh in "
                "another --workdir."
            ) from error
        self._retention.trust(stored.name)
        self._retention.protect_best(stored.best)

    def save(self, step: int, host_state: dict[str, Any]) -> None:
        """Commits the state after a global step: `take`, then `publish`."""
        pending = self.take(step, host_state)
        if pending is not None:
            self.publish(pending)

    def take(
        self, step: int, host_state: dict[str, Any]
    ) -> PendingCheckpoint | None:
        """Takes the state as it is now, into the host's memory.

        This is all that must happen between two training steps: the variables
        may change after it. It looks at each variable (`FiniteCheck` says what
        that costs) and copies what is in a GPU's memory; the disk is asked only
        whether there is a checkpoint of this step.

        Args:
            step: The global step.
            host_state: What the variables do not hold; JSON types only.

        Returns:
            What to publish. None if a good checkpoint of this step exists,
            whoever wrote it: only a bad one is replaced.

        Raises:
            CheckpointError: If another configuration's checkpoint has the
                name.
            DivergedError: If a variable holds a number that is not finite.
            StorageError: If the store cannot be listed.
            ValueError: If the step is negative or the host state is too large.
        """
        name = manifest.checkpoint_name(step)
        replaces_bad = name in self._store.list_names()
        if replaces_bad and self._is_saved(name):
            return None
        self._finite_check.check(step)
        return PendingCheckpoint(
            step=step,
            snapshot=self._snapshots.take(),
            host_state=_to_bytes(host_state),
            replaces_bad=replaces_bad,
            best=finder.best_name(host_state),
        )

    def publish(self, pending: PendingCheckpoint) -> None:
        """Writes what was taken, commits and verifies it, deletes older ones.

        Looks at no variable. If the disk is full, it tries once more after
        `Retention.make_room_after`.

        Args:
            pending: What `take` returned last; it is used up by this.

        Raises:
            StorageError: If it cannot be written or committed, or does not read
                back as it was written. The older ones stay, but for one to make
                room.
        """
        try:
            staging = self._stage(pending)
        except errors.StorageError as error:
            if not self._retention.make_room_after(error):
                raise
            staging = self._stage(pending)
        with self._discarded_on_error(staging):
            record = files.describe(
                staging,
                step=pending.step,
                attempt=self._attempt,
                config_digest=self._config_digest,
            )
            if pending.replaces_bad:
                self._retention.delete(record.name)
            self._commit(staging, record)
        try:
            self._retention.verify(record.name)
        except manifest.BadCheckpointError as error:
            raise errors.StorageError(
                f"Checkpoint {record.name} in {self._store.location} does not "
                f"read back as it was written: {error}. The older ones are "
                "kept. Check the disk, then run the same command again."
            ) from error
        logging.info("Saved %s (%.1f MB).", record.name, record.size / 1e6)
        # Not before: it may be this one, in whose favour the old one goes.
        self._retention.protect_best(pending.best)
        self._retention.prune(record.name)

    def _is_saved(self, name: str) -> bool:
        known = self._retention.trusts(name)
        try:
            record = self._retention.verify(name)
        except manifest.BadCheckpointError as error:
            logging.warning("Checkpoint %s is replaced: %s", name, error)
            return False
        known = known or record.attempt == self._attempt
        logging.log(
            logging.INFO if known else logging.WARNING,
            "Checkpoint %s exists and is good (attempt %s); it is kept.",
            name,
            record.attempt,
        )
        return True

    def _stage(self, pending: PendingCheckpoint) -> pathlib.Path:
        staging = self._store.stage(
            manifest.checkpoint_name(pending.step), attempt=self._attempt
        )
        with self._discarded_on_error(staging):
            pending.snapshot.write(str(staging / finder.BUNDLE_PREFIX))
            (staging / finder.HOST_STATE).write_bytes(pending.host_state)
        return staging

    def _commit(self, staging: pathlib.Path, record: manifest.Manifest) -> None:
        try:
            self._store.commit(staging, record)
        except errors.StorageError as error:
            # The files are complete; if a disk that refused has lost some of
            # them, the verification will tell. After the rename there is
            # nothing left to commit.
            if not staging.is_dir() or not self._retention.make_room_after(
                error
            ):
                raise
            self._store.commit(staging, record)

    @contextlib.contextmanager
    def _discarded_on_error(self, staging: pathlib.Path) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._store.discard(staging)
            if isinstance(error, OSError | tf.errors.OpError):
                raise atomic_file.storage_error(
                    "write", staging, error
                ) from error
            raise


def _to_bytes(host_state: dict[str, Any]) -> bytes:
    data = json.dumps(host_state, indent=1).encode()
    if len(data) > finder.MAX_HOST_STATE_BYTES:
        raise ValueError(
            f"The host state has {len(data)} bytes; at most "
            f"{finder.MAX_HOST_STATE_BYTES} are read back."
        )
    return data
