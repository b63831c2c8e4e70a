"""Where checkpoints are kept: one small interface, one module per place.

A checkpoint is a flat directory of files under one name that is never written
twice. It is first written to a *staging* directory on a local disk, whatever
the store, and exists from the moment that its `MANIFEST.json` does.
"""

import contextlib
import pathlib
from typing import Protocol

from trainer.storage.manifest import Manifest


class CheckpointStore(Protocol):
    """A place that keeps checkpoints.

    Every method raises `trainer.errors.StorageError` if the place as a whole
    refuses (no permission, no space, no network), which says nothing about
    whether a checkpoint is good. Only `stage`, `commit`, `discard`, `delete`
    and `scratch` change anything, so that a reader can use a store of a live
    run.
    One thread writes at a time; others may read meanwhile.
    """

    @property
    def location(self) -> str:
        """The place as the user would write it, for messages."""

    def stage(self, name: str, *, attempt: str) -> pathlib.Path:
        """Returns a new empty local directory, which no reader looks at.

        Also removes what crashed writers left behind, where no live process
        can still need it.

        Args:
            name: The checkpoint to be.
            attempt: The id of the writing process, a plain file name.
        """

    def commit(self, staging: pathlib.Path, manifest: Manifest) -> None:
        """Makes a staged checkpoint exist, all at once and durably.

        The files become durable first and the manifest last. The name must
        not exist: a commit creates and never replaces.
        """

    def discard(self, staging: pathlib.Path) -> None:
        """Drops a staging directory that will not be committed.

        Never raises: it is called while another error is on its way.
        """

    def list_names(self) -> list[str]:
        """Lists what claims to be a checkpoint, good or not, in no order.

        What a crash left while writing or deleting is not listed.
        """

    def read_manifest(self, name: str) -> Manifest:
        """Reads the commit record of a checkpoint.

        Raises:
            BadCheckpointError: If it is missing or not to be trusted.
        """

    def problems(self, manifest: Manifest) -> list[str]:
        """Compares the stored files with the manifest: size and crc32c.

        Returns:
            What does not agree, one line a file; empty for a good checkpoint.
        """

    def fetch(self, manifest: Manifest) -> pathlib.Path:
        """Returns a local directory that holds the verified files."""

    def delete(self, name: str) -> None:
        """Removes a checkpoint, good or not.

        A crash in the middle leaves no checkpoint under the name, rather than
        a broken one.
        """

    def free_bytes(self) -> int | None:
        """Returns the bytes that can still be written there.

        None where nothing limits them, or where the place does not tell. The
        place must exist, which it does after a `stage`.
        """

    def scratch(
        self, *, attempt: str
    ) -> contextlib.AbstractContextManager["CheckpointStore"]:
        """Makes a store of the same kind in the same place, for trials.

        While it is entered, it is as good as this one, whose readers never see
        what is in it. Afterwards it is gone with all that it holds; after a
        crash it takes some room until a later `stage`.

        Args:
            attempt: The id of the writing process, a plain file name.
        """
