"""Keeps a run in its bucket."""

import contextlib
import os
import platform
from collections.abc import Iterator

from absl import logging

from trainer import run_directory
from trainer.config import Config
from trainer.interruption import Interruption
from trainer.run_directory import RunDirectory
from trainer.schedule import Schedule
from trainer.storage.bucket import Bucket
from trainer.storage.lease import PATIENCE as LEASE_PATIENCE
from trainer.storage.lease import Lease
from trainer.storage.local import LocalStore
from trainer.storage.mirror import Mirror

_RELEASE_SECS = 10.0
# More than the lease of a process lasts that died.
_MAX_WAIT_SECS = 90.0


@contextlib.contextmanager
def open_mirror(
    config: Config,
    directory: RunDirectory,
    store: LocalStore,
    schedule: Schedule,
    attempt: str,
    interruption: Interruption,
) -> Iterator[Mirror]:
    """Brings a run here from its bucket, and keeps it there while entered.

    Raises:
      StoppedError: a signal came before it was here.
      CheckpointError: none of its checkpoints is good, or they are another
        configuration's.
      StorageError: the bucket refuses, or another process writes there.
      UsageError: this config cannot continue the run that is there.
    """
    if config.bucket is None:
        raise ValueError(f"{config.workdir} is not in a bucket.")
    name, prefix = config.bucket
    lease = Lease(
        # A lease whose renewal hangs is as good as lost.
        Bucket(name, prefix=prefix, patience=LEASE_PATIENCE),
        attempt=attempt,
        holder=f"process {os.getpid()} on {platform.node()}",
    )
    mirror = Mirror(
        directory.root,
        store,
        Bucket(name, prefix=prefix),
        lease=lease,
        config_digest=config.digest(),
        attempt=attempt,
        keep_checkpoints=config.keep_checkpoints,
        keep_every_steps=schedule.keep_every_steps,
        scheduled_every_steps=schedule.checkpoint_every_steps,
    )
    lease.acquire(wait_secs=_MAX_WAIT_SECS, check_stop=interruption.check)
    try:
        what_was_done = mirror.download(
            check_config=lambda: run_directory.check(config),
            check_stop=interruption.check,
        )
        if what_was_done:
            logging.info(what_was_done)
        try:
            yield mirror
        finally:
            mirror.close(
                config.upload_deadline_secs,
                urgent_deadline_secs=config.stop_upload_deadline_secs,
                is_urgent=lambda: interruption.requested,
            )
            # Of what a failed download had not looked at, nothing is known.
            logging.info(mirror.durability())
    finally:
        lease.release(_RELEASE_SECS)
