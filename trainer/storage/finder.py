"""What a checkpoint holds, and which one is the newest that can be trusted.

Needs no TensorFlow: a finished run can say so before any network is built.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from trainer import errors
from trainer.storage import CheckpointStore, files
from trainer.storage.manifest import (
    BadCheckpointError,
    Manifest,
    checkpoint_name,
    step_of,
)

# The TensorFlow bundle: `state.index` and `state.data-*`.
BUNDLE_PREFIX = "state"
HOST_STATE = "host_state.json"
MAX_HOST_STATE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint that was found to be good.

    Attributes:
        name: Its name in the store.
        step: The global step after which it was saved.
        host_state: What `save` was given, as JSON gives it back.
        directory: A local directory with its files.
    """

    name: str
    step: int
    host_state: dict[str, Any]
    directory: pathlib.Path

    @property
    def best(self) -> str | None:
        """See `best_name`."""
        return best_name(self.host_state)


def find_newest(
    store: CheckpointStore, *, config_digest: str, every_steps: int = 1
) -> StoredCheckpoint | None:
    """Finds the newest good checkpoint, without any network being built.

    A bad one is named in the log, with the reason, and passed over for the
    one before.

    Args:
        store: Where to look.
        config_digest: The digest of the configuration that asks.
        every_steps: Looks at the multiples of it only.

    Returns:
        The checkpoint, or None if there are none at all.

    Raises:
        CheckpointError: If there are some and none is good, or if one was
            written with another configuration. Nothing is deleted.
        StorageError: If the store cannot be read.
    """
    reasons = []
    for name in newest_first(store):
        if (step_of(name) or 0) % every_steps:
            continue
        try:
            return _load(store, name, config_digest)
        except BadCheckpointError as error:
            reasons.append(f"{name}: {error}")
            logging.warning(
                "Checkpoint %s in %s is skipped: %s",
                name,
                store.location,
                error,
            )
    if not reasons:
        return None
    raise errors.CheckpointError(
        f"None of the {len(reasons)} checkpoints in {store.location} is good, "
        "and a run never starts again from zero in silence:\n  "
        + "\n  ".join(reasons)
        + "\nNothing was deleted. Put a good copy back, or start afresh in "
        "another --workdir."
    )


def find_step(
    store: CheckpointStore, step: int, *, config_digest: str
) -> StoredCheckpoint:
    """Finds the checkpoint of one step.

    Raises:
        CheckpointError: If there is none, if it is not good, or if it was
            written with another configuration.
        StorageError: If the store cannot be read.
    """
    names = newest_first(store)
    name = checkpoint_name(step)
    if name not in names:
        known = ", ".join(str(step_of(name)) for name in names) or "none"
        raise errors.CheckpointError(
            f"There is no checkpoint of step {step} in {store.location}. Steps"
            f" that there are: {known}."
        )
    try:
        return _load(store, name, config_digest)
    except BadCheckpointError as error:
        raise errors.CheckpointError(
            f"Checkpoint {name} in {store.location} is not good: {error}."
            " Choose another one."
        ) from error


def best_name(host_state: Mapping[str, Any]) -> str | None:
    """Names the best checkpoint that one knows of, which may be itself.

    Args:
        host_state: Of the one; training puts `best_evaluation` there.
    """
    best = host_state.get("best_evaluation")
    return checkpoint_name(best["step"]) if best else None


def newest_first(store: CheckpointStore) -> list[str]:
    """Lists what claims to be a checkpoint, by step, the newest first."""
    steps = {step_of(name): name for name in store.list_names()}
    return [name for step, name in sorted(steps.items(), reverse=True)]


def verify(
    store: CheckpointStore, name: str, *, config_digest: str
) -> Manifest:
    """Returns the manifest of a good checkpoint; every check is this one.

    Raises:
        BadCheckpointError: If it is not good, with all reasons.
        CheckpointError: If it is another configuration's.
    """
    record = store.read_manifest(name)
    if record.config_digest != config_digest:
        raise errors.CheckpointError(
            f"Checkpoint {name} in {store.location} was written with another "
            f"configuration (digest {record.config_digest}, now "
            f"{config_digest}). A run goes on only with its own: use the "
            "flags in its config.json, or another --workdir."
        )
    names = {file.name for file in record.files}
    problems = [
        f"{required} is not in the manifest"
        for required in (f"{BUNDLE_PREFIX}.index", HOST_STATE)
        if required not in names
    ]
    problems += store.problems(record)
    if problems:
        raise BadCheckpointError("; ".join(problems))
    return record


def _load(
    store: CheckpointStore, name: str, config_digest: str
) -> StoredCheckpoint:
    record = verify(store, name, config_digest=config_digest)
    directory = store.fetch(record)
    return StoredCheckpoint(
        name=name,
        step=record.step,
        host_state=read_host_state(directory),
        directory=directory,
    )


def read_host_state(directory: pathlib.Path) -> dict[str, Any]:
    """Reads what `save` was given.

    Raises:
        BadCheckpointError: If that is impossible.
    """
    try:
        with files.open_regular(directory / HOST_STATE) as file:
            data = file.read(MAX_HOST_STATE_BYTES + 1)
        if len(data) > MAX_HOST_STATE_BYTES:
            raise ValueError(f"more than {MAX_HOST_STATE_BYTES} bytes")
        host_state = json.loads(data)
        if not isinstance(host_state, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpointError(
            f"{HOST_STATE} cannot be read: {error}"
        ) from error
    return host_state
