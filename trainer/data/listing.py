"""What the first bytes of a file in a folder tell, before it is used."""

import io
import os
from typing import IO, cast

import google_crc32c

from trainer.data import files, headers, images, patience

# What is read of each file before training. Headers are nearly always in it.
_START_BYTES = 4096


def examine(
    root: str, name: str, label: int, *, max_pixels: int
) -> images.Entry | str:
    """Returns what is known of a file, or why it is bad.

    What cannot be read at the moment is not bad, but waited for: or else a
    server's bad minute would make another data set.

    Args:
      root: of the folder.
      name: of the file there.
      label: of its class.
      max_pixels: of an image that can be used.

    Raises:
      StorageError: it could not be read for minutes.
    """
    path = files.join(root, name)
    try:
        entry = patience.read(
            path,
            lambda: _read_entry(path, name, label, max_pixels),
            lambda: files.is_missing(path) and files.holds_anything(root),
        )
    except headers.BadImage as bad:
        return str(bad)
    return entry or "it was removed while the folder was listed"


def _read_entry(
    path: str, name: str, label: int, max_pixels: int
) -> images.Entry:
    try:
        with files.open_binary(path) as file:
            start = file.read(_START_BYTES)
            num_bytes = len(start)
            source: IO[bytes] = io.BytesIO(start)
            if len(start) == _START_BYTES:
                num_bytes = file.seek(0, os.SEEK_END)
                source = cast(IO[bytes], _Honest(file))
            header = headers.read(start, source, max_pixels=max_pixels)
    except PermissionError as error:
        raise headers.BadImage(f"it cannot be read: {error}") from error
    except headers.BadImage:
        if isinstance(source, _Honest) and source.failure:
            raise source.failure from None
        raise
    return images.Entry(
        place=name,
        label=label,
        num_bytes=num_bytes,
        crc=google_crc32c.value(start),
        header=header,
    )


class _Honest:
    """A file that remembers what a decoder takes for damage: it was not read.

    Attributes:
      failure: the error of reading, if there was one.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.failure: OSError | None = None
        self._file = file

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self.failure = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
