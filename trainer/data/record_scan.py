"""Finds the images in TFRecord files, by reading all of them once."""

import dataclasses
import pathlib
import threading
import time
from collections.abc import Sequence

from absl import logging

from trainer import errors
from trainer.data import (
    files,
    images,
    record_index,
    record_shard,
    record_storage,
)
from trainer.data.dataset import Wanted
from trainer.data.quarantine import NothingUsable, Quarantine
from trainer.data.record_index import Found
from trainer.data.record_shard import Shard

_SECS_BETWEEN_REPORTS = 10.0
# Larger labels are no numbers of classes, but hashes or identifiers.
_MAX_CLASSES = 1_000_000


def scan_shards(
    shards: Sequence[Shard],
    *,
    wanted: Wanted,
    image_key: str | None = None,
    label_key: str | None = None,
    class_names: tuple[str, ...] = (),
) -> images.ImageList:
    """Lists the images in shards, by reading all of them once.

    With a cache, those are not read that are as they were when it was written.

    Args:
      shards: at least one.
      wanted: what to do with the images.
      image_key: of the examples; None: the first of `IMAGE_KEYS` there is.
      label_key: the same with `LABEL_KEYS`; if no image has one, all labels
        are 0.
      class_names: of the labels, if they are known.

    Raises:
      DataError: they are of another kind, or too much of them is bad.
      StorageError: one of them could not be read for minutes.
    """
    quarantine = Quarantine(wanted.max_bad_fraction)
    found = _find(
        shards,
        cache_dir=wanted.cache_dir,
        image_key=image_key,
        label_key=label_key,
        max_pixels=wanted.max_pixels,
    )
    for bad in (bad for shard in found for bad in shard.bad):
        quarantine.add(bad.name, bad.reason, count=bad.count)
    entries = [entry for shard in found for entry in shard.entries]
    quarantine.check(len(entries))
    if not entries:
        raise NothingUsable(
            f"{shards[0].path} and the other {len(shards) - 1} file(s) hold no"
            " image that can be used. Correct --dataset.",
            quarantine,
        )
    labels = {entry.label for entry in entries}
    if labels == {record_shard.NO_LABEL}:
        logging.info("No image has a label: all are of one class.")
        entries = [entry._replace(label=0) for entry in entries]
        labels, class_names = {0}, ()
    num_classes = len(class_names) or _MAX_CLASSES
    if min(labels) < 0 or max(labels) >= num_classes:
        raise errors.DataError(
            f"The labels in {shards[0].path} and the other files are from"
            f" {min(labels)} to {max(labels)}; they must be 0 to"
            f" {num_classes - 1} at most, and {record_shard.NO_LABEL} is also"
            " that of a record without one whole number as its label. Number"
            " the classes from 0, or leave all labels out, and write the files"
            " again."
        )
    image_list = record_storage.make_list(
        [shard.path for shard in shards],
        entries,
        class_names=class_names or tuple(map(str, range(max(labels) + 1))),
        quarantine=quarantine,
    )
    images.warn_of_empty_classes(image_list)
    return image_list


def _find(
    shards: Sequence[Shard],
    *,
    cache_dir: pathlib.Path | None,
    image_key: str | None,
    label_key: str | None,
    max_pixels: int,
) -> list[Found]:
    """Returns what is in each shard, from the index as far as it is there."""
    paths = [shard.path for shard in shards]
    states = list(files.map_in_threads(record_shard.state, paths, remote=True))
    index_path = None
    found: dict[int, Found] = {}
    if cache_dir is not None:
        index_path = record_index.path_of(
            cache_dir,
            [dataclasses.astuple(shard) for shard in shards],
            image_key=image_key,
            label_key=label_key,
            max_pixels=max_pixels,
        )
        found = record_index.read(index_path, states)
    missing = [n for n in range(len(shards)) if n not in found]
    if not missing:
        logging.info(
            "The TFRecord file(s) are as they were; not read again: %s.",
            index_path,
        )
        return [found[number] for number in range(len(shards))]
    logging.info(
        "Reading %d of %d TFRecord file(s) once.", len(missing), len(shards)
    )
    progress = _Progress(sum(states[n].num_bytes for n in missing))
    scanner = record_shard.Scanner(
        image_key=image_key,
        label_key=label_key,
        max_pixels=max_pixels,
        on_read=progress.add,
    )
    results = files.map_in_threads(
        lambda n: scanner.scan(n, shards[n], states[n].num_bytes),
        missing,
        remote=True,  # One shard is work enough for a thread.
    )
    found |= zip(missing, results, strict=True)
    in_order = [found[number] for number in range(len(shards))]
    # Where a server gives no times, a change would not be noticed.
    if index_path is not None and all(s.modified_ns for s in states):
        record_index.write(index_path, states, in_order)
    return in_order


class _Progress:
    """Says now and then how much has been read."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._done = 0
        self._next_report_secs = time.monotonic() + _SECS_BETWEEN_REPORTS
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Takes what a thread has read."""
        with self._lock:
            self._done += num_bytes
            if time.monotonic() < self._next_report_secs:
                return
            self._next_report_secs = time.monotonic() + _SECS_BETWEEN_REPORTS
        logging.info(
            "Read %.2f of %.2f GiB of TFRecord files.",
            self._done / 2**30,
            self._num_bytes / 2**30,
        )
