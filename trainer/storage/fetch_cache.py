"""Checkpoints that were fetched from elsewhere, on a local disk."""

import pathlib
import secrets
from collections.abc import Callable

from trainer import errors
from trainer.storage.local import LocalStore
from trainer.storage.manifest import Manifest


class FetchCache:
    """Copies that are verified each time, and replaced if they are not good."""

    def __init__(self, local: LocalStore) -> None:
        """Touches nothing yet.

        Args:
            local: Where the copies are kept.
        """
        self._local = local

    def fetch(
        self, manifest: Manifest, download: Callable[[pathlib.Path], None]
    ) -> pathlib.Path:
        """Returns a directory with the files; none half-filled ever exists.

        Args:
            manifest: Which checkpoint.
            download: Puts all files into a directory; called only if there is
                no good copy.

        Raises:
            StorageError: If the disk does not take them.
            Exception: What `download` raises.
        """
        if not self._has(manifest):
            self.forget(manifest.name)
            try:
                self._fill(manifest, download)
            except errors.StorageError:
                # Another process on this machine may have fetched it.
                if not self._has(manifest):
                    raise
        return self._local.fetch(manifest)

    def forget(self, name: str) -> None:
        """Removes the copy of a checkpoint, if there is one.

        Raises:
            StorageError: If it cannot be removed.
        """
        if name in self._local.list_names():
            self._local.delete(name)

    def _has(self, manifest: Manifest) -> bool:
        return manifest.name in self._local.list_names() and not (
            self._local.problems(manifest)
        )

    def _fill(
        self, manifest: Manifest, download: Callable[[pathlib.Path], None]
    ) -> None:
        staging = self._local.stage(
            manifest.name, attempt=f"fetch-{secrets.token_hex(4)}"
        )
        try:
            download(staging)
            self._local.commit(staging, manifest)
        except BaseException:
            self._local.discard(staging)
            raise
