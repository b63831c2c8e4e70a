"""The files of a run beside its checkpoints, in a bucket.

What grows is uploaded as a whole each time, so the longer a file, the more
seldom; the metrics go with each checkpoint too, which stands for them.
"""

import contextlib
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator

from absl import logging

from trainer import atomic_file
from trainer.run_directory import RunDirectory
from trainer.storage import files
from trainer.storage.bucket import Bucket
from trainer.storage.manifest import is_plain_name
from trainer.storage.objects import RefusedError, StoredObject

_BYTES_PER_UPLOAD = 1 << 23
_MAX_RECORD_BYTES = 1 << 20
_MAX_METRICS_BYTES = 1 << 32
_MAX_STARTS_BYTES = 1 << 24
_MAX_PICTURE_BYTES = 1 << 27
_MAX_PICTURES = 100_000

# Size and time of change: what tells that a file is the one that was sent.
_State = tuple[int, int]


class MirrorFiles:
    """Brings the files to the bucket; one thread uses it at a time.

    Its names are those of the objects: paths below the run directory.
    """

    def __init__(
        self,
        root: pathlib.Path,
        bucket: Bucket,
        *,
        secs_between_uploads: float,
    ) -> None:
        """Touches nothing yet.

        Args:
            root: The run directory.
            bucket: Where the run is kept.
            secs_between_uploads: Between two of a long file, for each 8 MiB.
        """
        self._root = root
        self._run = RunDirectory(root)
        self._bucket = bucket
        self._secs_between_uploads = secs_between_uploads
        self._stored: dict[str, StoredObject] = {}
        self._sent: dict[str, _State] = {}
        self._sent_secs: dict[str, float] = {}

    def changed(self) -> list[str]:
        """Lists the files that the bucket does not have as they are now."""
        return [
            name for name, state in self._states() if self._differs(name, state)
        ]

    def upload_new_pictures(self, may_go_on: Callable[[], bool]) -> None:
        """Uploads the pictures that never were, which do not change later.

        Args:
            may_go_on: Asked before each file.

        Raises:
            RefusedError: If the bucket takes the others only.
            StorageError: If the bucket cannot be written.
        """
        directory = self._run.samples.name
        self._upload_all(
            may_go_on,
            (
                (name, state)
                for name, state in self._states([self._run.samples])
                if name.startswith(f"{directory}/") and name not in self._sent
            ),
        )

    def upload_records(self, may_go_on: Callable[[], bool]) -> None:
        """Uploads what a checkpoint stands for: settings and metrics.

        Args:
            may_go_on: Asked before each file.

        Raises:
            RefusedError: If the bucket takes the others only.
            StorageError: If the bucket cannot be written.
        """
        self._upload_all(
            may_go_on,
            (
                (name, state)
                for name, state in self._states([])
                if self._differs(name, state)
            ),
        )

    def upload_changed(
        self, may_go_on: Callable[[], bool], *, all_files: bool, records: bool
    ) -> None:
        """Uploads what has changed.

        Args:
            may_go_on: Asked before each file.
            all_files: Whether long files are not to wait for longer.
            records: Whether those of `upload_records` are among them.

        Raises:
            RefusedError: If the bucket takes the others only.
            StorageError: If the bucket cannot be written.
        """
        now_secs = time.monotonic()

        def is_due(name: str, num_bytes: int) -> bool:
            wait_secs = (
                self._secs_between_uploads * num_bytes / _BYTES_PER_UPLOAD
            )
            sent_secs = self._sent_secs.get(name, -wait_secs)
            return all_files or now_secs >= sent_secs + wait_secs

        self._upload_all(
            may_go_on,
            (
                (name, state)
                for name, state in self._states()
                if is_due(name, state[0])
                and (records or not self._is_record(name))
                and self._differs(name, state)
            ),
        )

    def download_config(self, stored: Iterable[StoredObject]) -> int:
        """Brings `config.json`, so that it can be compared with the command.

        Args:
            stored: What the bucket holds; `download` needs it, too.

        Returns:
            How many files came, 0 or 1.

        Raises:
            StorageError: If the bucket cannot be read or the disk written.
        """
        self._stored = {file.name: file for file in stored}
        return self._download_all(
            [(self._run.config.name, _MAX_RECORD_BYTES)], replace=False
        )

    def download(self, *, replace: bool) -> int:
        """Brings the other files from the bucket that are missing here.

        Args:
            replace: Whether the bucket's state is the newer one, and its
                metrics and pictures take the place of other ones here.

        Returns:
            How many files came.

        Raises:
            StorageError: If the bucket cannot be read or the disk written.
        """
        return self._download_all(self._wanted(), replace=replace)

    def _download_all(
        self, wanted: Iterable[tuple[str, int]], *, replace: bool
    ) -> int:
        num_files = 0
        for name, max_bytes in wanted:
            file, path = self._stored.get(name), self._root / name
            if file is None:
                continue
            # The environment is that of the latest start: this one's.
            replaces = replace and path != self._run.environment
            if os.path.lexists(path) and not (replaces and _differ(path, file)):
                continue
            if file.size > max_bytes:
                logging.warning(
                    "%s/%s stays there: it has %d bytes, more than %d.",
                    self._bucket.location,
                    name,
                    file.size,
                    max_bytes,
                )
                continue
            self._download(file, path)
            num_files += 1
        return num_files

    def _wanted(self) -> list[tuple[str, int]]:
        """Names what may come from the bucket, and its largest size."""
        prefix = f"{self._run.samples.name}/"
        pictures = [
            name
            for name in self._stored
            if name.startswith(prefix)
            and is_plain_name(name.removeprefix(prefix))
        ]
        wanted = [(name, _MAX_PICTURE_BYTES) for name in pictures]
        wanted = wanted[:_MAX_PICTURES]
        return [
            *wanted,
            (self._run.metrics.name, _MAX_METRICS_BYTES),
            (self._run.starts.name, _MAX_STARTS_BYTES),
            (self._run.environment.name, _MAX_RECORD_BYTES),
            (self._run.bad_files.name, _MAX_METRICS_BYTES),
        ]

    def _download(self, file: StoredObject, path: pathlib.Path) -> None:
        atomic_file.make_directory(path.parent)
        temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
        try:
            self._bucket.download_file(file.name, temporary, file.record())
            atomic_file.fsync_file(temporary)
            os.rename(temporary, path)
            atomic_file.fsync_directory(path.parent)
        except OSError as error:
            raise atomic_file.storage_error("write", path, error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _states(
        self, directories: Iterable[pathlib.Path] | None = None
    ) -> Iterator[tuple[str, _State]]:
        """Yields what can be uploaded, with its size and time of change."""
        run = self._run
        paths = [
            *(run.config, run.environment, run.metrics, run.starts),
            run.bad_files,
        ]
        if directories is None:
            paths.append(run.report)
            directories = (run.samples, run.events)
        for directory in directories:
            # One that does not exist yet has nothing to upload.
            with contextlib.suppress(OSError):
                paths += sorted(directory.iterdir())
        for path in paths:
            # Files that are being written have names with a leading dot.
            if not is_plain_name(path.name):
                continue
            with contextlib.suppress(OSError, ValueError):
                with files.open_regular(path) as file:
                    status = os.fstat(file.fileno())
                name = path.relative_to(self._root).as_posix()
                yield name, (status.st_size, status.st_mtime_ns)

    def _is_record(self, name: str) -> bool:
        return "/" not in name and name != self._run.report.name

    def _differs(self, name: str, state: _State) -> bool:
        return self._sent.get(name) != state

    def _upload_all(
        self,
        may_go_on: Callable[[], bool],
        files: Iterable[tuple[str, _State]],
    ) -> None:
        """Uploads one after the other; one that is refused stops no other."""
        refusals = []
        for name, state in files:
            if not may_go_on():
                break
            try:
                self._upload(name, state)
            except RefusedError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def _upload(self, name: str, state: _State) -> None:
        path = self._root / name
        try:
            # It may grow meanwhile; what is measured here is what is sent.
            record = files.measure(path)
            known = self._stored.get(name)
            if known is None or not known.agrees(record):
                self._sent_secs[name] = time.monotonic()
                self._stored[name] = self._bucket.upload_file(
                    path, name, record
                )
        except (OSError, ValueError) as error:
            # This one alone: the disk refuses it, or it is gone again.
            logging.warning("%s is not uploaded: %s", path, error)
            return
        self._sent[name] = state


def _differ(path: pathlib.Path, stored: StoredObject) -> bool:
    """Tells whether a local file is another one than that in the bucket."""
    try:
        return not stored.agrees(files.measure(path))
    except (OSError, ValueError):
        return True  # A link, say, which a download replaces.
