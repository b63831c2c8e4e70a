"""Packs a data set into TFRecord files, once, for many runs.

A few large files are copied many times faster than a million small ones; and
where each image lies is written beside them, so that training starts at once.
The order is kept: the batches are the same, to the last bit, as those of the
source, if none of its images is damaged.

A shard appears when it is complete, after the names of the images that were
left out of it. The same command again goes on with the shards that are missing.
"""

import dataclasses
import io
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
import numpy as np
import tensorflow as tf
import tqdm

from trainer import atomic_file, errors
from trainer.data import files, headers, packed, record_file
from trainer.data.streamed_dataset import StreamedDataset

_PLAN_FILE = "prepare.json"


class _Packed(NamedTuple):
    """An image to write: its record, and its row for the list."""

    payload: bytes
    row: tuple[int, ...]


class _Contents(NamedTuple):
    """Of a shard: how many images, and why others are not in it, by name."""

    num_images: int
    bad: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What there is in the folder now.

    Attributes:
      num_images: in all shards.
      num_shards: of them.
      num_written: shards that were not there before.
    """

    num_images: int
    num_shards: int
    num_written: int


def pack(
    source: StreamedDataset,
    output: pathlib.Path,
    *,
    shard_bytes: int,
    as_samples: bool,
) -> Result:
    """Writes the shards that are missing, and then the names of the classes.

    Every image is decoded once, and left out if that fails; the source's
    quarantine then has it, in later calls as well.

    Args:
      source: what to pack.
      output: a folder, which is made if need be.
      shard_bytes: how large a shard should be.
      as_samples: keep the resized images, as PNG files, instead of the
        originals.

    Raises:
      DataError: too many images are left out; nobody can use the folder then.
      StorageError: the folder cannot be written, or the source not be read.
      UsageError: it holds another data set.
    """
    count = len(source.labels)
    total_bytes = int(source.images.num_bytes.sum())
    if as_samples:
        total_bytes = source.memory_bytes
    num_shards = min(count, max(1, -(-total_bytes // shard_bytes)))
    atomic_file.make_directory(output)
    _check_plan(source, output, num_shards, as_samples)
    num_images = num_written = 0
    with tqdm.tqdm(total=count, unit=" images") as progress:
        for number in range(num_shards):
            start = count * number // num_shards
            end = count * (number + 1) // num_shards
            path = output / packed.shard_name(number, num_shards)
            contents = _contents(path)
            if contents is None:
                contents = _write_shard(
                    source, path, range(start, end), as_samples, progress
                )
                num_written += 1
            else:
                progress.update(end - start)
            for name, reason in contents.bad.items():
                source.quarantine.add(name, reason)
            num_images += contents.num_images
    try:
        source.quarantine.check(num_images)
    except errors.DataError:
        # That of an earlier call, which allowed more.
        (output / packed.CLASSES_FILE).unlink(missing_ok=True)
        raise
    names = {"classes": source.class_names, "num_images": num_images}
    atomic_file.write_bytes(
        output / packed.CLASSES_FILE, json.dumps(names, indent=2).encode()
    )
    return Result(
        num_images=num_images,
        num_shards=num_shards,
        num_written=num_written,
    )


def _check_plan(
    source: StreamedDataset,
    output: pathlib.Path,
    num_shards: int,
    as_samples: bool,
) -> None:
    """Refuses to mix two data sets in one folder."""
    plan = {"source": source.digest(), "num_shards": num_shards}
    if as_samples:
        plan |= {"samples": list(source.sample_shape), "resize": source.resize}
    path = output / _PLAN_FILE
    text = json.dumps(plan, indent=2)
    if path.exists():
        if path.read_text() != text:
            raise errors.UsageError(
                f"{output} holds, or was to hold, another data set or the same"
                " with other flags. Choose another --output, or delete it."
            )
        return
    # A process that was killed here may have left a part of the plan.
    started = f".{_PLAN_FILE}.tmp-"
    if any(not path.name.startswith(started) for path in output.iterdir()):
        raise errors.UsageError(
            f"{output} is not empty. Choose another --output."
        )
    atomic_file.write_bytes(path, text.encode())


def _contents(path: pathlib.Path) -> _Contents | None:
    """Returns what is in a shard; None if it is to be written, or anew."""
    if not path.exists():
        return None
    try:
        rows = np.load(packed.list_path(str(path)), allow_pickle=False)
        bad_path = pathlib.Path(packed.left_out_path(str(path)))
        return _Contents(len(rows), json.loads(bad_path.read_bytes()))
    # Missing, of no use, or empty.
    except (OSError, ValueError, EOFError):
        return None


def _write_shard(
    source: StreamedDataset,
    path: pathlib.Path,
    indices: range,
    as_samples: bool,
    progress: tqdm.tqdm,
) -> _Contents:
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
    rows: list[tuple[int, ...]] = []
    bad: dict[str, str] = {}
    try:
        with open(temporary, "xb") as file:
            for item in _pack_all(source, indices, as_samples, bad, progress):
                # What comes before: its number in the shard, and its place.
                rows.append((len(rows), file.tell(), *item.row))
                file.write(record_file.frame(item.payload))
            file.flush()
            os.fsync(file.fileno())
        buffer = io.BytesIO()
        np.save(buffer, np.array(rows, packed.ROW), allow_pickle=False)
        list_path = pathlib.Path(packed.list_path(str(path)))
        atomic_file.write_bytes(list_path, buffer.getvalue())
        bad_path = pathlib.Path(packed.left_out_path(str(path)))
        atomic_file.write_bytes(bad_path, json.dumps(bad, indent=2).encode())
        # Last, because a shard that exists is complete.
        os.rename(temporary, path)
        atomic_file.fsync_directory(path.parent)
    except OSError as error:
        raise atomic_file.storage_error("write", path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return _Contents(len(rows), bad)


def _pack_all(
    source: StreamedDataset,
    indices: range,
    as_samples: bool,
    bad: dict[str, str],
    progress: tqdm.tqdm,
) -> Iterator[_Packed]:
    def pack_or_reason(index: int) -> _Packed | str:
        try:
            return _pack_one(source, index, as_samples)
        except headers.BadImage as error:
            return str(error)

    results = files.map_in_threads(
        pack_or_reason, indices, remote=source.images.storage.is_remote
    )
    for index, result in zip(indices, results, strict=True):
        progress.update()
        if isinstance(result, str):
            bad[source.images.storage.name(index)] = result
        else:
            yield result


def _pack_one(source: StreamedDataset, index: int, as_samples: bool) -> _Packed:
    images = source.images
    content = source.read_encoded(index)
    sample = source.decode(index, content)
    header = headers.Header(
        headers.FORMATS[images.formats[index]],
        int(images.heights[index]),
        int(images.widths[index]),
        int(images.channels[index]),
        int(images.orientations[index]),
    )
    if as_samples:
        content = tf.io.encode_png(sample).numpy()
        header = headers.Header("PNG", *sample.shape)
    label = int(images.labels[index])
    name = images.storage.name(index).encode(errors="surrogateescape")
    features = {
        "image": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[content])
        ),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name])),
    }
    payload = tf.train.Example(
        features=tf.train.Features(feature=features)
    ).SerializeToString(deterministic=True)
    row = (
        len(payload),
        payload.find(content),
        len(content),
        *packed.row_end(label, google_crc32c.value(content), header),
    )
    return _Packed(payload, row)
