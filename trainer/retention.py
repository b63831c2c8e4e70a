"""Which checkpoints of a run stay: the newest good ones, and the best one.

Those of some epochs can be kept for ever besides.

Of those that the schedule asks for, the newest stays too, however many signals
have made since: a run that diverges goes back to it.

Nothing is deleted in favour of a checkpoint before that one's files agree with
its manifest, unless the disk is full. What cannot be deleted stops nobody: the
next save tries again.
"""

import errno

from absl import logging

from trainer import errors
from trainer.storage import CheckpointStore, finder, manifest


class Retention:
    """Deletes what a run no longer needs, and remembers what is good.

    The best one stays besides; see `protect_best`.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        keep_checkpoints: int,
        keep_every_steps: int | None,
        scheduled_every_steps: int,
        config_digest: str,
    ) -> None:
        """Touches nothing yet.

        Args:
            store: Where the checkpoints are kept.
            keep_checkpoints: How many good ones to keep, at least 1.
            keep_every_steps: Keeps those of each multiple of it for ever, at
                least 1; None keeps none for ever.
            scheduled_every_steps: Of the multiples of it, keeps the newest
                good one.
            config_digest: The digest of what must not change within a run.

        Raises:
            ValueError: If a value breaks these rules.
        """
        for name, value in (
            ("keep_checkpoints", keep_checkpoints),
            ("keep_every_steps", keep_every_steps),
            ("scheduled_every_steps", scheduled_every_steps),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self._store = store
        self._keep_checkpoints = keep_checkpoints
        self._keep_every_steps = keep_every_steps
        self._scheduled_every_steps = scheduled_every_steps
        self._config_digest = config_digest
        # Names that this process has verified or restored from: they are not
        # read again after every save.
        self._good: set[str] = set()
        # One name, or several while the last of them is not yet verified.
        self._best: set[str] = set()

    @property
    def newest_trusted(self) -> str | None:
        """The newest checkpoint that `trusts` knows; None if it knows none."""
        return max(
            self._good,
            key=lambda name: manifest.step_of(name) or 0,
            default=None,
        )

    def trust(self, name: str) -> None:
        """Notes that this process has found a checkpoint to be good."""
        self._good.add(name)

    def trusts(self, name: str) -> bool:
        """Tells whether this process has found a checkpoint to be good."""
        return name in self._good

    def verify(self, name: str) -> manifest.Manifest:
        """Reads a checkpoint with `finder.verify`, and trusts it if it is good.

        Raises:
            BadCheckpointError: If it is not good, with all reasons.
            CheckpointError: If it is another configuration's.
            StorageError: If the store cannot be read.
        """
        record = finder.verify(
            self._store, name, config_digest=self._config_digest
        )
        self._good.add(name)
        return record

    def protect_best(self, name: str | None) -> None:
        """Notes which checkpoint is the best one now, which then stays.

        The ones noted before stay too until this one is there and good: its
        save may have failed, or its upload may still be to come.

        Args:
            name: The best one; None if none is known any more.
        """
        if name is None:
            self._best.clear()
            return
        self._best.add(name)
        if len(self._best) == 1:
            return
        try:
            if self._is_good(name):
                self._best = {name}
        except errors.StorageError as error:
            logging.warning("Whether %s is good is not known: %s", name, error)

    def prune(self, saved: str) -> None:
        """Deletes what is older than the newest good ones to keep.

        Bad ones among those stay too: nothing newer replaces them. Problems
        are logged and never raised.

        Args:
            saved: What was saved and verified last, which always stays.
        """
        try:
            kept, has_scheduled = 0, False
            for name in finder.newest_first(self._store):
                step = manifest.step_of(name) or 0
                is_scheduled = step % self._scheduled_every_steps == 0
                if kept < self._keep_checkpoints:
                    is_good = self._is_good(name)
                    kept += is_good
                elif is_scheduled and not has_scheduled:
                    is_good = self._is_good(name)
                elif name != saved and not self._is_protected(name):
                    self.delete(name)
                    continue
                else:
                    continue
                has_scheduled = has_scheduled or (is_scheduled and is_good)
        except errors.StorageError as error:
            # Too many checkpoints are no reason to stop.
            logging.warning("Older checkpoints are not deleted: %s", error)

    def make_room_after(self, error: errors.StorageError) -> bool:
        """If the disk is full, deletes the oldest checkpoint that may go.

        The newest good one, what is newer than it and what is kept for ever
        may not go. Nothing does where `CheckpointStore.free_bytes` knows of no
        limit: then it is another disk. Problems are logged and never raised.

        Args:
            error: What a save was refused with.

        Returns:
            Whether one was deleted: to try again makes sense.
        """
        if not _is_disk_full(error):
            return False
        try:
            if self._store.free_bytes() is None:
                return False
            names = finder.newest_first(self._store)
            while names and not self._is_good(names[0]):
                del names[0]
            older = [name for name in names[1:] if not self._is_protected(name)]
            if not older or not self.delete(older[-1]):
                return False
        except errors.StorageError as problem:
            logging.warning("No checkpoint is deleted for room: %s", problem)
            return False
        logging.warning("%s was deleted to make room: %s", older[-1], error)
        return True

    def delete(self, name: str) -> bool:
        """Deletes one checkpoint; tells whether that went well, logs if not."""
        self._good.discard(name)
        try:
            self._store.delete(name)
        except errors.StorageError as error:
            logging.warning("Checkpoint %s is not deleted: %s", name, error)
            return False
        return True

    def _is_protected(self, name: str) -> bool:
        """Tells whether a checkpoint is kept, however old it is."""
        return name in self._best or self.is_for_ever(name)

    def is_for_ever(self, name: str) -> bool:
        """Tells whether a checkpoint is one of those kept for ever."""
        step = manifest.step_of(name)
        return (
            self._keep_every_steps is not None
            and step is not None
            and step % self._keep_every_steps == 0
        )

    def _is_good(self, name: str) -> bool:
        if name not in self._good:
            try:
                self.verify(name)
            except (manifest.BadCheckpointError, errors.CheckpointError):
                return False
        return True


def _is_disk_full(error: BaseException | None) -> bool:
    """Tells whether a full disk, or a used-up quota, was the first cause."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        # TensorFlow's own; it is not imported for the sake of its name.
        if type(error).__name__ == "ResourceExhaustedError":
            return True
        error = error.__cause__
    return False
