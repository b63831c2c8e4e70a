"""Checkpoints in a Cloud Storage bucket.

A bucket has no renames. What makes a checkpoint exist is that its manifest is
created, under the condition that there is none: of two writers, one succeeds.
The manifest names the attempt, and data lies below its writer's attempt (see
`trainer.storage.remote_layout`). So writers share no name but the manifest's,
and none can damage what another committed. With shared names that only the
first may create, what a crashed process left would block the next one.

A checkpoint is deleted manifest first. Data without a manifest is no
checkpoint; a later commit removes it, at once if it is its own attempt's, else
after a day by the server's clock: another process may still be uploading.
"""

import collections
import contextlib
import dataclasses
import datetime
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator

from absl import logging

from trainer import errors
from trainer.storage.bucket import Bucket
from trainer.storage.fetch_cache import FetchCache
from trainer.storage.local import LocalStore
from trainer.storage.manifest import (
    FILE_NAME,
    MAX_MANIFEST_BYTES,
    BadCheckpointError,
    FileRecord,
    Manifest,
    parse,
)
from trainer.storage.objects import (
    ConflictError,
    MissingObjectError,
    StoredObject,
    problem,
)
from trainer.storage.remote_layout import Layout

_LAYOUT = Layout("checkpoints")
_NUM_THREADS = 4
_LEFTOVER_AGE = datetime.timedelta(days=1)

# Ends the attempt of a checkpoint that takes the place of its own process'.
_AGAIN = "-again"


class RemoteStore:
    """A `CheckpointStore` in `checkpoints/` of a bucket's prefix."""

    def __init__(
        self, bucket: Bucket, *, cache: pathlib.Path, layout: Layout = _LAYOUT
    ) -> None:
        """Touches nothing yet.

        Args:
            bucket: Where the run is kept.
            cache: A local directory of this store alone, with room for two
                checkpoints. It may be lost at any time.
            layout: The names of the objects.
        """
        self._bucket = bucket
        self._local = LocalStore(cache)
        self._fetched = FetchCache(self._local)
        self._layout = layout

    @property
    def location(self) -> str:
        """The directory of the checkpoints, as a gs:// address."""
        return f"{self._bucket.location}/{self._layout.directory}"

    def stage(self, name: str, *, attempt: str) -> pathlib.Path:
        """See `CheckpointStore.stage`; `commit` cleans up in the bucket."""
        return self._local.stage(name, attempt=attempt)

    def commit(self, staging: pathlib.Path, manifest: Manifest) -> None:
        """See `CheckpointStore.commit`."""
        path = self._layout.manifest(manifest.name)
        if self._bucket.list_objects(path):
            raise self._conflict_error(path)
        self._commit(
            staging,
            manifest,
            lambda data: self._bucket.upload_bytes(
                data, path, create_only=True
            ),
        )

    def replace(self, staging: pathlib.Path, manifest: Manifest) -> None:
        """Commits in the place of another checkpoint of the same name.

        That one exists until this one does, and then no longer.

        Args:
            staging: What `stage` returned.
            manifest: Of its files. If the other one is of the same attempt, the
                manifest that is committed names another one, since the data of
                both are there for a moment.

        Raises:
            BadCheckpointError: If there is none whose manifest can be read.
        """
        path = self._layout.manifest(manifest.name)
        found = self._bucket.list_objects(path)
        old = self.read_manifest(manifest.name)
        if old.attempt == manifest.attempt:
            attempt = f"{manifest.attempt}{_AGAIN}"
            manifest = dataclasses.replace(manifest, attempt=attempt)
        self._commit(
            staging,
            manifest,
            lambda data: self._bucket.replace_bytes(
                data, path, generation=found[0].generation
            ),
        )
        self._fetched.forget(manifest.name)
        self._remove_quietly(lambda: self._data(manifest.name, old.attempt))

    def _commit(
        self,
        staging: pathlib.Path,
        manifest: Manifest,
        upload_manifest: Callable[[bytes], StoredObject],
    ) -> None:
        """Uploads the data, then the manifest, and cleans up."""

        def upload(file: FileRecord) -> None:
            self._bucket.upload_file(
                staging / file.name, self._layout.file(manifest, file), file
            )

        _in_threads(upload, manifest.files)
        try:
            created = upload_manifest(manifest.to_bytes()).created
        except ConflictError as error:
            self._remove_quietly(
                lambda: self._data(manifest.name, manifest.attempt)
            )
            path = self._layout.manifest(manifest.name)
            raise self._conflict_error(path) from error
        self._local.discard(staging)
        self._remove_leftovers(manifest.attempt, created)

    def discard(self, staging: pathlib.Path) -> None:
        """See `CheckpointStore.discard`."""
        self._local.discard(staging)

    def list_names(self) -> list[str]:
        """See `CheckpointStore.list_names`."""
        return sorted(self._layout.committed(self._all()))

    def read_manifest(self, name: str) -> Manifest:
        """See `CheckpointStore.read_manifest`."""
        try:
            data = self._bucket.read_bytes(
                self._layout.manifest(name), MAX_MANIFEST_BYTES
            )
        except MissingObjectError as error:
            raise BadCheckpointError(f"{FILE_NAME} is missing") from error
        except ValueError as error:
            raise BadCheckpointError(f"{FILE_NAME}: {error}") from error
        return parse(data, name=name)

    def problems(self, manifest: Manifest) -> list[str]:
        """See `CheckpointStore.problems`; reads what the server reports."""
        stored = {
            file.name: file
            for file in self._data(manifest.name, manifest.attempt)
        }
        found = (
            problem(file, stored.get(self._layout.file(manifest, file)))
            for file in manifest.files
        )
        return [line for line in found if line is not None]

    def fetch(self, manifest: Manifest) -> pathlib.Path:
        """See `CheckpointStore.fetch`; a good copy is not fetched again.

        Raises:
            BadCheckpointError: If a file is missing.
        """

        def download(directory: pathlib.Path) -> None:
            def download_one(file: FileRecord) -> None:
                self._bucket.download_file(
                    self._layout.file(manifest, file),
                    directory / file.name,
                    file,
                )

            _in_threads(download_one, manifest.files)

        try:
            return self._fetched.fetch(manifest, download)
        except MissingObjectError as error:
            raise BadCheckpointError(str(error)) from error

    def delete(self, name: str) -> None:
        """See `CheckpointStore.delete`."""
        # First, so that no later manifest is taken for the one that is read.
        manifests = self._bucket.list_objects(self._layout.manifest(name))
        attempt = self._owner(name)
        for stored in manifests:
            self._delete(stored)
        if attempt is not None:
            for stored in self._data(name, attempt):
                self._delete(stored)
        self._fetched.forget(name)

    def free_bytes(self) -> int | None:
        """See `CheckpointStore.free_bytes`; a bucket has no end."""
        return None

    @contextlib.contextmanager
    def scratch(self, *, attempt: str) -> Iterator["RemoteStore"]:
        """See `CheckpointStore.scratch`."""
        layout = self._layout.scratch(attempt)
        with self._local.scratch(attempt=attempt) as local:
            cache = pathlib.Path(local.location)
            store = RemoteStore(self._bucket, cache=cache, layout=layout)
            try:
                yield store
            finally:
                self._remove_quietly(store._all)

    def _all(self) -> list[StoredObject]:
        return self._bucket.list_objects(f"{self._layout.directory}/")

    def _data(self, name: str, attempt: str) -> list[StoredObject]:
        return self._bucket.list_objects(self._layout.data(name, attempt))

    def _owner(self, name: str) -> str | None:
        """Returns the attempt whose data a manifest stands for."""
        try:
            return self.read_manifest(name).attempt
        except BadCheckpointError:
            return None

    def _delete(self, stored: StoredObject) -> None:
        try:
            self._bucket.delete(stored.name, generation=stored.generation)
        except ConflictError as error:
            raise self._conflict_error(stored.name) from error

    def _conflict_error(self, path: str) -> errors.StorageError:
        return errors.StorageError(
            f"{self._bucket.location}/{path} exists already: another process "
            "wrote it meanwhile, and it is kept as it is. One run directory "
            "serves one run at a time: end the other process, or choose "
            "another --workdir."
        )

    def _remove_leftovers(self, attempt: str, now: datetime.datetime) -> None:
        """Removes data that no manifest stands for; never raises for it.

        Args:
            attempt: Ours, which has no commit under way.
            now: By the server's clock.
        """

        def find() -> Iterator[StoredObject]:
            stored = self._all()
            committed = self._layout.committed(stored)
            for (name, writer), data in self._layout.doubtful(stored).items():
                age = now - max(file.created for file in data)
                if writer != attempt and age < _LEFTOVER_AGE:
                    continue
                # Beside a damaged manifest, everything stays to be looked at.
                if name in committed and self._owner(name) in (writer, None):
                    continue
                yield from data

        self._remove_quietly(find)

    def _remove_quietly(
        self, find: Callable[[], Iterable[StoredObject]]
    ) -> None:
        """Removes objects; that it cannot is no reason to stop."""
        try:
            for stored in find():
                logging.info("Removing %s, left over.", stored.name)
                self._delete(stored)
        except errors.StorageError as error:
            logging.warning("Left-over data is not removed: %s", error)


def _in_threads(
    task: Callable[[FileRecord], None], files: Iterable[FileRecord]
) -> None:
    """Runs a task for every file; the first error ends it."""
    waiting = collections.deque(files)
    failures: list[BaseException] = []

    def work() -> None:
        while not failures:
            try:
                file = waiting.popleft()
            except IndexError:
                return
            try:
                task(file)
            except BaseException as error:
                failures.append(error)

    # Daemons, unlike those of `concurrent.futures`: a stalled upload must not
    # keep the process from ending at its deadline.
    threads = [
        threading.Thread(target=work, daemon=True) for _ in range(_NUM_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
