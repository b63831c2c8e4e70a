"""What `prepare` writes beside its TFRecord files, so that none is scanned.

DIR/shard-00000-of-00012.tfrecord   the images
DIR/shard-00000-of-00012.npy        where they are: one row each
DIR/shard-00000-of-00012.bad.json   the names of those left out, and why
DIR/classes.json                    the names of the classes; written last
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer import errors
from trainer.data import files, headers, record_file

CLASSES_FILE = "classes.json"
# First those of `record_storage.Place`, and without the shard.
ROW = np.dtype(
    [
        ("record", "<i8"),
        ("offset", "<i8"),
        ("num_bytes", "<i8"),
        ("image_start", "<i8"),
        ("image_bytes", "<i8"),
        ("label", "<i4"),
        ("crc", "<u4"),
        ("format", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("channels", "<i4"),
        ("orientation", "<i4"),
    ]
)


def shard_name(number: int, count: int) -> str:
    """Returns the file name of a shard, counted from 0."""
    return f"shard-{number:05d}-of-{count:05d}.tfrecord"


def list_path(shard_path: str) -> str:
    """Returns the path of the list beside a shard."""
    return f"{shard_path.removesuffix('.tfrecord')}.npy"


def left_out_path(shard_path: str) -> str:
    """Returns the path of the names of what is not in a shard."""
    return f"{shard_path.removesuffix('.tfrecord')}.bad.json"


def is_packed(paths: Sequence[str]) -> bool:
    """Tells whether the shards are what `prepare` wrote, all in one folder.

    Raises:
      DataError: they are only a part of it.
    """
    folders = {path.rpartition("/")[0] for path in paths}
    if len(folders) > 1:
        return False
    folder = folders.pop() or "."
    classes_path = files.join(folder, CLASSES_FILE)
    existing = files.list_glob(files.join(_escape(folder), "*"))
    if classes_path not in existing:
        if any(path.endswith(".npy") for path in existing):
            raise errors.DataError(
                f"{folder} is not complete: {CLASSES_FILE} is missing, which"
                " is written last. Run the same `prepare` command again."
            )
        return False
    return True


def read_lists(
    paths: Sequence[str],
) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
    """Returns all images as (place, label, bytes, crc, header), and classes.

    Raises:
      DataError: a shard is missing, or a list is or does not fit its shard.
    """
    folder = paths[0].rpartition("/")[0] or "."
    contents = _read_json(files.join(folder, CLASSES_FILE))
    _check_numbers(folder, paths)
    entries = []
    for number, path in enumerate(paths):
        for row in _read_rows(path):
            entries.append(from_row(number, row))
    if len(entries) != contents["num_images"]:
        raise errors.DataError(
            f"The lists in {folder} have {len(entries):,} images, and"
            f" {CLASSES_FILE} says {contents['num_images']:,}: they are of"
            " different data sets. Fetch all of it again, or run `prepare`"
            " again, into another folder."
        )
    return entries, tuple(contents["classes"])


def from_row(number: int, row: Sequence[int]) -> tuple[Any, ...]:
    """Returns (place, label, bytes, crc, header) of a row of a shard's list.

    Args:
      number: of the shard.
      row: in the order of `ROW`.
    """
    label, crc, image_format, *rest = row[5:]
    header = headers.Header(headers.FORMATS[image_format], *rest)
    place = (number, *row[:5])
    return place, label, row[4], crc, header


def row_end(label: int, crc: int, header: headers.Header) -> tuple[int, ...]:
    """Returns the part of a row that is behind the place."""
    return (label, crc, headers.FORMATS.index(header.format), *header[1:])


def _check_numbers(folder: str, paths: Sequence[str]) -> None:
    """Refuses a part of the shards: it would be another data set."""
    names = {path.rpartition("/")[2] for path in paths}
    counts = {
        int(match[1])
        for name in names
        if (match := re.fullmatch(r"shard-\d+-of-(\d+)\.tfrecord", name))
    }
    count = max(counts, default=0)
    expected = {shard_name(number, count) for number in range(count)}
    if missing := sorted(expected - names):
        raise errors.DataError(
            f"{len(missing):,} of the {count:,} shards in {folder} are missing:"
            f" {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
            " Fetch them again, or run the same `prepare` command again, and"
            " have the pattern of --dataset match all of them."
        )
    if others := sorted(names - expected):
        raise errors.DataError(
            f"{others[0]} in {folder} is no shard of the {count:,} that"
            " `prepare` wrote. Remove it, or have the pattern of --dataset"
            " match the others only."
        )


def _read_rows(shard_path: str) -> list[tuple[int, ...]]:
    path = list_path(shard_path)
    try:
        with files.open_binary(path) as file:
            rows = np.load(file, allow_pickle=False)
        with files.open_binary(shard_path) as file:
            size = file.seek(0, os.SEEK_END)
    except (OSError, ValueError) as error:
        raise errors.DataError(
            f"{path} cannot be read: {error}. Run `prepare` again."
        ) from error
    if rows.dtype != ROW or rows.ndim != 1:
        raise errors.DataError(
            f"{path} is not a list that this version wrote. Run `prepare`"
            " again, into another folder."
        )
    end = 0
    if len(rows):
        end = int(rows["offset"][-1] + rows["num_bytes"][-1])
        end += record_file.HEADER_BYTES + record_file.FOOTER_BYTES
    if end != size:
        raise errors.DataError(
            f"{shard_path} has {size} bytes and not the {end} of its list."
            " Fetch both again, or delete both and run `prepare` again."
        )
    return rows.tolist()


def _read_json(path: str) -> Any:
    try:
        with files.open_binary(path) as file:
            return json.loads(file.read())
    except (OSError, ValueError) as error:
        raise errors.DataError(
            f"{path} cannot be read: {error}. Run `prepare` again."
        ) from error


def _escape(folder: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in folder)
