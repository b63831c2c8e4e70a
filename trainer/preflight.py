"""Tries out the place of the checkpoints before hours are spent."""

import contextlib
import secrets

from absl import logging

from trainer import atomic_file, errors
from trainer.storage import CheckpointStore, files, finder, manifest

_NUM_BYTES = 1 << 16
_DIGEST = "preflight"


def probe(
    store: CheckpointStore,
    *,
    keep_checkpoints: int,
    checkpoint_bytes: int,
    attempt: str,
    keep_for_ever: int = 0,
    num_in_transit: int = 0,
) -> None:
    """Really saves a small checkpoint, and asks for the room of the real ones.

    It is staged, committed, verified, read back and deleted in a place of its
    own (`CheckpointStore.scratch`), so that no reader ever takes it for one of
    the run, even if the process dies here.

    Args:
        store: Where the run's checkpoints will be, or are already.
        keep_checkpoints: How many of them will be kept, at least 1.
        checkpoint_bytes: The estimated size of one.
        attempt: The id of the writing process, a plain file name.
        keep_for_ever: How many are to come that are never deleted. Whoever
            runs for weeks may move them away, so that only a warning tells
            that there is no room for all.
        num_in_transit: How many more hold room until they are uploaded.

    Raises:
        StorageError: If anything of that fails, or if the room is not enough
            for those to keep and one more, less those that are there.
    """
    with store.scratch(attempt=attempt) as trial:
        # First: on a full disk, its message says more. But inside, because
        # what crashed writers left is gone by then.
        _check_room(
            store,
            keep_checkpoints,
            checkpoint_bytes,
            keep_for_ever,
            num_in_transit,
        )
        _save_and_delete(trial, attempt)


def _check_room(
    store: CheckpointStore,
    keep_checkpoints: int,
    checkpoint_bytes: int,
    keep_for_ever: int,
    num_in_transit: int,
) -> None:
    free_bytes = store.free_bytes()
    if free_bytes is None:
        return
    num_there = _count_newest(store, keep_checkpoints)
    num_needed = keep_checkpoints + 1 + num_in_transit - num_there
    needed_bytes = num_needed * checkpoint_bytes
    if free_bytes < needed_bytes:
        raise errors.StorageError(
            f"{store.location} has {free_bytes / 1e6:,.1f} MB free and needs "
            f"{needed_bytes / 1e6:,.1f} MB: --keep_checkpoints="
            f"{keep_checkpoints}, one being written and {num_in_transit} on "
            f"their way to a bucket, {num_there} of them "
            f"there already, of {checkpoint_bytes / 1e6:,.1f} MB each. Make "
            "room, lower --keep_checkpoints, or choose another --workdir."
        )
    needed_bytes += keep_for_ever * checkpoint_bytes
    if free_bytes < needed_bytes:
        logging.warning(
            "%s has %.1f MB free, but the run would need %.1f MB until its "
            "end: --keep_every_epochs keeps %d more checkpoints for ever, of "
            "%.1f MB each. Raise it, or move them away in time.",
            store.location,
            free_bytes / 1e6,
            needed_bytes / 1e6,
            keep_for_ever,
            checkpoint_bytes / 1e6,
        )


def _count_newest(store: CheckpointStore, most: int) -> int:
    """Counts, up to a number, the committed checkpoints."""
    num_found = 0
    for name in finder.newest_first(store):
        if num_found < most:
            with contextlib.suppress(manifest.BadCheckpointError):
                store.read_manifest(name)
                num_found += 1
    return num_found


def _save_and_delete(trial: CheckpointStore, attempt: str) -> None:
    content = secrets.token_bytes(_NUM_BYTES)
    bundle = f"{finder.BUNDLE_PREFIX}.index"
    name = manifest.checkpoint_name(0)
    staging = trial.stage(name, attempt=attempt)
    try:
        (staging / bundle).write_bytes(content)
        (staging / finder.HOST_STATE).write_bytes(b"{}")
        record = files.describe(
            staging, step=0, attempt=attempt, config_digest=_DIGEST
        )
        trial.commit(staging, record)
    except BaseException as error:
        trial.discard(staging)
        if isinstance(error, OSError):
            raise atomic_file.storage_error("write", staging, error) from error
        raise
    try:
        record = finder.verify(trial, name, config_digest=_DIGEST)
        reads_back = (trial.fetch(record) / bundle).read_bytes() == content
    except manifest.BadCheckpointError as error:
        raise _cannot("read back", trial, str(error)) from error
    except OSError as error:
        raise atomic_file.storage_error(
            "read", trial.location, error
        ) from error
    if not reads_back:
        raise _cannot("read back", trial, "it holds something else")
    trial.delete(name)
    if trial.list_names():
        raise _cannot("delete", trial, "it is still there")


def _cannot(
    action: str, trial: CheckpointStore, reason: str
) -> errors.StorageError:
    return errors.StorageError(
        f"Cannot {action} a checkpoint that was written to {trial.location} "
        f"as a trial: {reason}. Nothing saved there could be trusted: check "
        "the disk, or choose another --workdir."
    )
