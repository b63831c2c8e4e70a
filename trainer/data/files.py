"""Reading files, local ones and those that TensorFlow reads from a bucket."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple, TypeVar, cast

_LOCAL_THREADS = 8
# Each waits for a server most of the time.
_REMOTE_THREADS = 64
_ITEMS_PER_TASK = 64

Item = TypeVar("Item")
Result = TypeVar("Result")


class FileState(NamedTuple):
    """What changes when a file does.

    Attributes:
      num_bytes: its size.
      modified_ns: when it was written, in nanoseconds since 1970.
    """

    num_bytes: int
    modified_ns: int


def is_remote(path: str) -> bool:
    """Tells whether a path is a URL, such as gs://bucket/folder."""
    return re.match(r"[a-z][a-z0-9+]*://", path) is not None


def locate(path: str, data_dir: str | None) -> str:
    """Returns a path; a relative one is looked up in `data_dir`."""
    if is_remote(path):
        return path.rstrip("/")
    path = os.path.expanduser(path)
    if data_dir and not os.path.isabs(path):
        return join(data_dir, path)
    return path


def join(directory: str, name: str) -> str:
    """Joins a directory, local or remote, and a name."""
    return f"{directory.rstrip('/')}/{name}"


def open_binary(path: str) -> IO[bytes]:
    """Opens a file to read.

    Raises:
      OSError: it cannot be opened; errors of TensorFlow's become this, too.
    """
    if not is_remote(path):
        return open(path, "rb")
    return cast(IO[bytes], _RemoteFile(path))


def state(path: str) -> FileState:
    """Returns a file's size and time.

    Raises:
      OSError: the server does not answer, or there is no such file.
    """
    if is_remote(path):
        found = _with_os_errors(lambda tf: tf.io.gfile.stat(path))
        return FileState(found.length, found.mtime_nsec)
    status = os.stat(path)
    return FileState(status.st_size, status.st_mtime_ns)


def is_missing(path: str) -> bool:
    """Tells whether there is no such file.

    A server or disk that does not answer gives no such proof.
    """
    try:
        if is_remote(path):
            _with_os_errors(lambda tf: tf.io.gfile.stat(path))
        else:
            os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def holds_anything(directory: str) -> bool:
    """Tells whether a directory is there and not empty, as a mount point is."""
    try:
        if is_remote(directory):
            return _with_os_errors(lambda tf: tf.io.gfile.isdir(directory))
        with os.scandir(directory) as entries:
            return any(entries)
    except OSError:
        return False


def list_glob(pattern: str) -> list[str]:
    """Returns the sorted paths that match.

    Raises:
      OSError: the server does not answer.
    """
    if not is_remote(pattern):
        return sorted(glob.glob(pattern))
    return sorted(_with_os_errors(lambda tf: tf.io.gfile.glob(pattern)))


def walk_remote(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (directory, names of its files) for all directories below.

    Raises:
      OSError: the server does not answer.
    """
    walk = _with_os_errors(lambda tf: list(tf.io.gfile.walk(root)))
    for directory, _, names in walk:
        yield directory, names


def map_in_threads(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    remote: bool,
) -> Iterator[Result]:
    """Yields the results in order, of several threads at work."""

    def work(batch: list[Item]) -> list[Result]:
        return [function(item) for item in batch]

    everything = list(items)
    size = 1 if remote else _ITEMS_PER_TASK
    batches = [
        everything[start : start + size]
        for start in range(0, len(everything), size)
    ]
    threads = _REMOTE_THREADS if remote else _LOCAL_THREADS
    with ThreadPoolExecutor(threads) as executor:
        for results in executor.map(work, batches):
            yield from results


class _RemoteFile:
    """TensorFlow's reader of remote files, with Python's kind of errors."""

    def __init__(self, path: str) -> None:
        self._file = _with_os_errors(lambda tf: tf.io.gfile.GFile(path, "rb"))

    def read(self, size: int = -1) -> bytes:
        return _with_os_errors(lambda tf: self._file.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        _with_os_errors(lambda tf: self._file.seek(offset, whence))
        return self.tell()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "_RemoteFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_os_errors(call: Callable[[Any], Any]) -> Any:
    # Here, because the import takes seconds that local files need not pay.
    import tensorflow as tf

    try:
        return call(tf)
    except tf.errors.NotFoundError as error:
        text = f"NotFoundError: {error.message}"
        raise FileNotFoundError(text) from error
    except tf.errors.OpError as error:
        raise OSError(f"{type(error).__name__}: {error.message}") from error
