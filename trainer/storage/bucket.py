"""Objects under one prefix of a Cloud Storage bucket.

A request that may succeed later is sent again by the client library, with a
growing delay and a deadline. Bytes that arrive otherwise than they were sent
are sent again from the beginning. All the rest is a `StorageError` at once.
"""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from trainer import atomic_file
from trainer.storage import cloud_requests, transfers
from trainer.storage.cloud_requests import Patience
from trainer.storage.manifest import FileRecord
from trainer.storage.objects import (
    ConflictError,
    MissingObjectError,
    StoredObject,
    record_of,
)

_PATIENCE = Patience()


class Bucket:
    """The objects under one prefix; threads may share it.

    Every method raises `trainer.errors.StorageError` if the bucket cannot be
    reached, does not exist or refuses.
    """

    def __init__(
        self,
        name: str,
        *,
        prefix: str,
        client: Any = None,
        patience: Patience = _PATIENCE,
    ) -> None:
        """Finds the credentials; sends nothing to the bucket.

        Args:
            name: The bucket's name, without `gs://`.
            prefix: What the names of all objects begin with, up to a slash;
                may be empty.
            client: A `google.cloud.storage.Client`; None for one with the
                Application Default Credentials, or with none at all if
                STORAGE_EMULATOR_HOST is set.
            patience: How long to wait.

        Raises:
            UsageError: If google-cloud-storage is not installed.
            StorageError: If there are no credentials.
        """
        self._name = name
        self._prefix = f"{prefix.strip('/')}/".lstrip("/")
        self._patience = patience
        if client is None:
            client = cloud_requests.make_client(patience)
        self._bucket = client.bucket(name)

    @property
    def location(self) -> str:
        """The bucket and prefix as a user writes them."""
        return self._location("")

    @contextlib.contextmanager
    def ended_by(
        self, check: Callable[[], object], retry_secs: float | None = None
    ) -> Iterator[None]:
        """Lets what a check raises end requests while this is entered.

        Args:
            check: See `Patience`; by any thread that uses the bucket.
            retry_secs: See `Patience`; None leaves it as it is.
        """
        patience = self._patience
        self._patience = dataclasses.replace(
            patience,
            check=check,
            retry_secs=retry_secs or patience.retry_secs,
        )
        try:
            yield
        finally:
            self._patience = patience

    def upload_file(
        self, path: pathlib.Path, object_name: str, expected: FileRecord
    ) -> StoredObject:
        """Uploads a file, which may replace an object.

        Args:
            path: The file.
            object_name: Its name below the prefix.
            expected: The size and crc32c that the server must report.

        Raises:
            OSError: If the file cannot be read.
        """
        with open(path, "rb") as source:
            return self._upload(object_name, source, expected, None)

    def upload_bytes(
        self, data: bytes, object_name: str, *, create_only: bool
    ) -> StoredObject:
        """Uploads a small object.

        Args:
            data: All of it.
            object_name: Its name below the prefix.
            create_only: Whether the name must be free. If the same bytes are
                there, they are ours: the answer to a first try was lost.

        Raises:
            ConflictError: If `create_only` and other bytes are there.
        """
        source, expected = io.BytesIO(data), record_of(data, object_name)
        generation = 0 if create_only else None
        return self._upload(object_name, source, expected, generation)

    def replace_bytes(
        self, data: bytes, object_name: str, *, generation: int
    ) -> StoredObject:
        """Puts a small object in the place of another one, all at once.

        Args:
            data: All of it.
            object_name: Its name below the prefix.
            generation: The one that is meant. If the same bytes are there, they
                are ours: the answer to a first try was lost.

        Raises:
            ConflictError: If another generation has the name, or none.
        """
        source, expected = io.BytesIO(data), record_of(data, object_name)
        return self._upload(object_name, source, expected, generation)

    def download_file(
        self, object_name: str, path: pathlib.Path, expected: FileRecord
    ) -> None:
        """Downloads an object to a file, which it creates or overwrites.

        Raises:
            MissingObjectError: If there is no such object.
            StorageError: Also if other bytes than the expected arrive, again
                and again, or if the disk does not take them. The file is not
                to be used then.
        """
        try:
            with open(path, "wb") as file:
                self._download(object_name, expected, file)
        except OSError as error:
            raise atomic_file.storage_error("write", path, error) from error

    def read_bytes(self, object_name: str, max_bytes: int) -> bytes:
        """Reads a small object.

        Raises:
            MissingObjectError: If there is no such object.
            ValueError: If it has more than `max_bytes`.
        """
        stored = self._find(object_name)
        if stored is None:
            self._check_bucket()
            raise MissingObjectError(f"{object_name} is missing")
        if stored.size > max_bytes:
            raise ValueError(
                f"{object_name} has {stored.size} bytes, more than {max_bytes}"
            )
        content = io.BytesIO()
        expected = stored.record()
        self._download(object_name, expected, content, stored.generation)
        return content.getvalue()

    def list_objects(self, prefix: str) -> list[StoredObject]:
        """Lists the objects whose names below ours begin with a prefix."""
        with self._explained("list", prefix):
            blobs = self._bucket.list_blobs(
                prefix=self._prefix + prefix, **self._options()
            )
            return [StoredObject.of(blob, self._prefix) for blob in blobs]

    def delete(self, object_name: str, *, generation: int) -> None:
        """Deletes an object; that it is gone already is fine.

        Args:
            object_name: Its name below the prefix.
            generation: The one that is meant. A try that arrives late, or
                after a lost answer, must not hit what took the name since.

        Raises:
            ConflictError: If another generation has the name.
        """
        from google.api_core import exceptions

        with self._explained("delete", object_name):
            try:
                self._blob(object_name).delete(
                    if_generation_match=generation, **self._options()
                )
            except exceptions.NotFound:
                return
            except exceptions.PreconditionFailed as error:
                if self._find(object_name) is not None:
                    raise ConflictError(object_name) from error

    def _upload(
        self,
        name: str,
        source: BinaryIO,
        expected: FileRecord,
        generation: int | None,
    ) -> StoredObject:
        from google.api_core import exceptions

        blob, size = self._blob(name), expected.size

        def upload() -> StoredObject:
            nonlocal generation
            source.seek(0)
            try:
                transfers.send(blob, source, size, generation, self._patience)
            except exceptions.PreconditionFailed as error:
                found = self._find(name)
                if found is None or not found.agrees(expected):
                    raise ConflictError(name) from error
                return found
            except transfers.DamagedError:
                self._check_bucket()
                raise
            stored = StoredObject.of(blob, self._prefix)
            if not stored.agrees(expected):
                if generation == 0:  # The next try needs the name to be free.
                    self.delete(name, generation=stored.generation)
                elif generation is not None:
                    generation = stored.generation
                raise transfers.DamagedError("the server has other bytes")
            return stored

        with self._explained("write", name):
            return transfers.repeat(self._location(name), upload)

    def _download(
        self,
        name: str,
        expected: FileRecord,
        file: BinaryIO,
        generation: int | None = None,
    ) -> None:
        from google.api_core import exceptions

        blob = self._blob(name, generation)

        def download() -> None:
            file.seek(0)
            try:
                transfers.receive(blob, expected, file, self._patience)
            except exceptions.NotFound as error:
                self._check_bucket()
                raise MissingObjectError(f"{name} is missing") from error

        with self._explained("read", name):
            transfers.repeat(self._location(name), download)

    def _find(self, name: str) -> StoredObject | None:
        with self._explained("read", name):
            blob = self._bucket.get_blob(self._prefix + name, **self._options())
        return None if blob is None else StoredObject.of(blob, self._prefix)

    def _check_bucket(self) -> None:
        """Tells a missing bucket from a missing object: both answer 404."""
        with self._explained("use", ""):
            blobs = self._bucket.list_blobs(
                prefix=self._prefix, max_results=1, **self._options()
            )
            next(iter(blobs), None)

    def _blob(self, name: str, generation: int | None = None) -> Any:
        return self._bucket.blob(self._prefix + name, generation=generation)

    def _options(self) -> dict[str, Any]:
        return cloud_requests.options(self._patience)

    def _explained(self, verb: str, name: str) -> AbstractContextManager[None]:
        return cloud_requests.explained(verb, self._location(name))

    def _location(self, name: str) -> str:
        return f"gs://{self._name}/{self._prefix}{name}".rstrip("/")
