"""What a scan of TFRecord files found, kept so that the next start has it.

<cache>/records-<digest>.npz   rows of all files, one for each image; of each
                               file, its size and time, and what is bad in it

A file whose size or time is another by now is scanned again, and only that one.
To lose an index costs time and nothing else: what cannot be read or written is
told and passed over.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
from absl import logging

from trainer import atomic_file, errors
from trainer.data import images, packed
from trainer.data.files import FileState
from trainer.data.record_storage import Place

_VERSION = 3  # Of what is read out of a record, and of the file's layout.
_PATTERN = "records-*.npz"
# Some millions of images; and no more data sets than anybody goes back to.
_MAX_BYTES = 1 << 28
_MAX_INDEXES = 16


@dataclasses.dataclass(frozen=True)
class Bad:
    """What is left out; see `Quarantine.add`."""

    name: str
    reason: str
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Found:
    """What a scan of one shard found.

    Attributes:
      entries: of the usable images, in their order.
      bad: the others.
    """

    entries: Sequence[images.Entry]
    bad: Sequence[Bad]


def path_of(
    cache_dir: pathlib.Path, what: Sequence[object], **how: object
) -> pathlib.Path:
    """Returns the path of the index of some shards.

    Args:
      cache_dir: of all indexes.
      what: the shards, without what may change of them.
      **how: they are scanned.
    """
    key = repr((_VERSION, list(what), sorted(how.items())))
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    return cache_dir / f"records-{digest[:32]}.npz"


def read(path: pathlib.Path, states: Sequence[FileState]) -> dict[int, Found]:
    """Returns what is known of the shards that have not changed, by number.

    Args:
      path: of the index; there may be none.
      states: of the shards, as they are now.
    """
    if not path.exists():
        return {}
    try:
        return _read(path, states)
    # Whatever is wrong with it: there is as much to a damaged zip file.
    except Exception as error:
        logging.warning("%s is made anew: %s", path, error)
        return {}


def write(
    path: pathlib.Path,
    states: Sequence[FileState],
    found: Sequence[Found],
) -> None:
    """Keeps what is known of the shards, and drops the oldest other indexes.

    Args:
      path: of the index.
      states: of the shards, before they were scanned.
      found: in each of them.
    """
    rows = [_to_row(entry) for shard in found for entry in shard.entries]
    facts = [
        {
            "state": list(state),
            "num_images": len(shard.entries),
            "bad": [dataclasses.astuple(bad) for bad in shard.bad],
        }
        for state, shard in zip(states, found, strict=True)
    ]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        rows=np.array(rows, packed.ROW),
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
    )
    if buffer.tell() > _MAX_BYTES:
        logging.warning(
            "The index of the TFRecord files is not kept, because it has more"
            " than %d MiB. `python -m trainer.data_tools prepare` packs them"
            " so that none is needed.",
            _MAX_BYTES >> 20,
        )
        return
    try:
        atomic_file.make_directory(path.parent)
        atomic_file.write_bytes(path, buffer.getvalue())
        _drop_oldest(path.parent)
    except (errors.StorageError, OSError) as error:
        logging.warning(
            "The index of the TFRecord files is not kept, and the next start"
            " reads them once more: %s",
            error,
        )


def _read(path: pathlib.Path, states: Sequence[FileState]) -> dict[int, Found]:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    with zipfile.ZipFile(path) as archive:
        # The arrays are not compressed, but what is damaged may say so.
        if sum(item.file_size for item in archive.infolist()) > _MAX_BYTES:
            raise ValueError(f"it unpacks to more than {_MAX_BYTES} bytes")
    with np.load(path, allow_pickle=False) as arrays:
        rows, facts = arrays["rows"], json.loads(arrays["facts"].tobytes())
    num_images = sum(fact["num_images"] for fact in facts)
    if rows.dtype != packed.ROW or rows.shape != (num_images,):
        raise ValueError(f"it has no {num_images} rows")
    found = {}
    start = 0
    for number, (state, fact) in enumerate(zip(states, facts, strict=True)):
        end = start + fact["num_images"]
        if list(state) == fact["state"]:
            found[number] = Found(
                [_to_entry(number, row) for row in rows[start:end].tolist()],
                [Bad(*bad) for bad in fact["bad"]],
            )
        start = end
    return found


def _to_row(entry: images.Entry) -> tuple[int, ...]:
    _, *place = entry.place
    return (*place, *packed.row_end(entry.label, entry.crc, entry.header))


def _to_entry(number: int, row: Sequence[int]) -> images.Entry:
    place, *rest = packed.from_row(number, row)
    return images.Entry(Place(*place), *rest)


def _drop_oldest(directory: pathlib.Path) -> None:
    indexes = sorted(
        directory.glob(_PATTERN), key=lambda path: -path.stat().st_mtime_ns
    )
    for path in indexes[_MAX_INDEXES:]:
        path.unlink(missing_ok=True)
