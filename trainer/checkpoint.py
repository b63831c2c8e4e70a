"""Saves the training state so that it can be trusted, and finds it again.

A checkpoint is `step-000000350/` in a `CheckpointStore`: the TensorFlow bundle
(`state.index`, `state.data-*`), `host_state.json`, and `MANIFEST.json`, without
which it does not exist. Nothing is restored, and nothing is deleted in favour
of it, before its files agree with its manifest. No pickle on any path.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from absl import logging

from trainer import atomic_file, errors
from trainer.storage import CheckpointStore, files, finder, manifest


class Checkpointer:
    """Saves and restores the state of one run."""

    def __init__(
        self,
        *,
        objects: tf.train.Checkpoint,
        store: CheckpointStore,
        keep_checkpoints: int,
        config_digest: str,
        attempt: str,
    ) -> None:
        """Touches nothing yet.

        Args:
            objects: All variables of the run, already created: what does not
                exist yet is neither saved nor restored.
            store: Where the checkpoints are kept.
            keep_checkpoints: How many good ones to keep, at least 1.
            config_digest: The digest of what must not change within a run.
            attempt: A random id of this process, a plain file name.

        Raises:
            ValueError: If a value breaks these rules.
        """
        if keep_checkpoints < 1:
            raise ValueError(
                f"keep_checkpoints={keep_checkpoints} must be at least 1."
            )
        for value in (config_digest, attempt):
            if not manifest.is_plain_name(value):
                raise ValueError(f"{value!r} must be a plain file name.")
        self._objects = objects
        self._store = store
        self._keep_checkpoints = keep_checkpoints
        self._config_digest = config_digest
        self._attempt = attempt
        # Names that this process has verified or restored from: retention
        # does not read them again after every save.
        self._good: set[str] = set()

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
        self._good.add(stored.name)

    def save(self, step: int, host_state: dict[str, Any]) -> None:
        """Commits the state after a global step; then retention.

        If a good checkpoint of this step exists, it stays as it is, whoever
        wrote it: a good one is never overwritten. A bad one is replaced.

        Args:
            step: The global step.
            host_state: What the variables do not hold; JSON types only.

        Raises:
            CheckpointError: If another configuration's checkpoint has the
                name.
            StorageError: If it cannot be written or does not read back as it
                was written. The older checkpoints are all there then.
            ValueError: If the step is negative or the host state is too large.
        """
        name = manifest.checkpoint_name(step)
        replaces_bad = False
        if name in self._store.list_names():
            replaces_bad = not self._is_saved(name)
            if not replaces_bad:
                return
        staging = self._write(name, host_state)
        self._publish(staging, step=step, replaces_bad=replaces_bad)

    def _is_saved(self, name: str) -> bool:
        try:
            record = finder.verify(
                self._store, name, config_digest=self._config_digest
            )
        except manifest.BadCheckpointError as error:
            logging.warning("Checkpoint %s is replaced: %s", name, error)
            return False
        known = record.attempt == self._attempt or name in self._good
        logging.log(
            logging.INFO if known else logging.WARNING,
            "Checkpoint %s exists and is good (attempt %s); it is kept.",
            name,
            record.attempt,
        )
        return True

    def _write(self, name: str, host_state: dict[str, Any]) -> pathlib.Path:
        """Takes the state as it is now to a local staging directory.

        After this the variables may change. It is all that must happen
        between two training steps; `_publish` could run beside the next ones.
        """
        data = json.dumps(host_state, indent=1).encode()
        if len(data) > finder.MAX_HOST_STATE_BYTES:
            raise ValueError(
                f"The host state has {len(data)} bytes; at most "
                f"{finder.MAX_HOST_STATE_BYTES} are read back."
            )
        staging = self._store.stage(name, attempt=self._attempt)
        with self._discarded_on_error(staging):
            self._objects.write(str(staging / finder.BUNDLE_PREFIX))
            (staging / finder.HOST_STATE).write_bytes(data)
        return staging

    def _publish(
        self, staging: pathlib.Path, *, step: int, replaces_bad: bool
    ) -> None:
        """Commits a staging directory, verifies it, then prunes older ones."""
        with self._discarded_on_error(staging):
            record = files.describe(
                staging,
                step=step,
                attempt=self._attempt,
                config_digest=self._config_digest,
            )
            if replaces_bad:
                self._delete(record.name)
            self._store.commit(staging, record)
        try:
            finder.verify(
                self._store, record.name, config_digest=self._config_digest
            )
        except manifest.BadCheckpointError as error:
            raise errors.StorageError(
                f"Checkpoint {record.name} in {self._store.location} does not "
                f"read back as it was written: {error}. The older ones are "
                "kept. Check the disk, then run the same command again."
            ) from error
        self._good.add(record.name)
        logging.info("Saved %s (%.1f MB).", record.name, record.size / 1e6)
        self._prune(record.name)

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

    def _prune(self, saved: str) -> None:
        """Deletes what is older than the newest good ones to keep.

        Bad ones among those to keep stay too: nothing newer replaces them.
        """
        try:
            kept = 0
            for name in finder.newest_first(self._store):
                if kept < self._keep_checkpoints:
                    kept += self._is_good(name)
                elif name != saved:
                    self._delete(name)
        except errors.StorageError as error:
            # Too many checkpoints are no reason to stop; the next save tries
            # again.
            logging.warning("Older checkpoints are not deleted: %s", error)

    def _is_good(self, name: str) -> bool:
        if name not in self._good:
            try:
                finder.verify(
                    self._store, name, config_digest=self._config_digest
                )
            except (manifest.BadCheckpointError, errors.CheckpointError):
                return False
            self._good.add(name)
        return True

    def _delete(self, name: str) -> None:
        self._good.discard(name)
        try:
            self._store.delete(name)
        except errors.StorageError as error:
            logging.warning("Checkpoint %s is not deleted: %s", name, error)
