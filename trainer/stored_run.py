"""A run that is looked at and not trained: its settings and its generator.

Nothing of the run is changed, so that it may go on training meanwhile.
"""

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import keras
import tensorflow as tf
from absl import logging

from trainer import distribution, errors
from trainer.assembly import datasets, networks
from trainer.config import Config
from trainer.run_directory import RunDirectory
from trainer.storage import CheckpointStore, finder
from trainer.storage.bucket import Bucket
from trainer.storage.local import LocalStore
from trainer.storage.objects import MissingObjectError
from trainer.storage.remote import RemoteStore

NEWEST = "newest"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_METRICS_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run as its directory has it.

    Attributes:
      config: its settings, with the `workdir` that it was found in.
      directory: where its files are, or those made from it go.
      checkpoint: the state that is looked at.
      bucket: where the run is kept; None: in its directory.
    """

    config: Config
    directory: RunDirectory
    checkpoint: finder.StoredCheckpoint
    bucket: Bucket | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the checkpoint is of."""
        return int(self.checkpoint.host_state["epoch"])

    @property
    def num_classes(self) -> int:
        """Of the data that it was trained on."""
        return int(self.checkpoint.host_state.get("num_classes", 1))

    def read_metrics(self) -> str:
        """Reads `metrics.jsonl` where the run is kept; empty if there is none.

        Raises:
          StorageError: it cannot be read.
        """
        path = self.directory.metrics
        try:
            if self.bucket is None:
                content = path.read_bytes()
            else:
                content = self.bucket.read_bytes(path.name, _MAX_METRICS_BYTES)
        except (FileNotFoundError, MissingObjectError):
            return ""
        except (OSError, ValueError) as error:
            raise errors.StorageError(
                f"Cannot read {path.name} of the run: {error}"
            ) from error
        return content.decode(errors="replace")

    def build_generator(self) -> keras.Model:
        """Builds the generator with the checkpoint's weights, in float32.

        It is the moving average of the weights, if the run keeps one.

        Raises:
          CheckpointError: the checkpoint is of other networks.
          TrainerError: it does not say the samples' shape, as old ones do not,
            and the data cannot be loaded.
        """
        shape = self.checkpoint.host_state.get("sample_shape")
        if shape is None:
            shape = datasets.load_data(self.config).sample_shape
        generator = networks.build_generator(
            self.config,
            tuple(shape),
            num_classes=self.num_classes if self.config.conditional else None,
        )
        prefix = str(self.checkpoint.directory / finder.BUNDLE_PREFIX)
        try:
            names = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
            is_averaged = any(n.startswith("ema_generator/") for n in names)
            name = "ema_generator" if is_averaged else "generator"
            status = tf.train.Checkpoint(**{name: generator}).read(prefix)
            status.assert_existing_objects_matched().expect_partial()
        except (
            tf.errors.OpError,
            AssertionError,
            IndexError,
            ValueError,
        ) as error:
            raise errors.CheckpointError(
                f"Checkpoint {self.checkpoint.name} is intact but does not fit"
                f" this program: {error} Use the version that wrote it."
            ) from error
        logging.info(
            "%s of step %d, epoch %d.",
            "Averaged generator" if is_averaged else "Generator",
            self.checkpoint.step,
            self.epoch,
        )
        return generator


def open_run(
    workdir: str, which: str, stack: contextlib.ExitStack
) -> StoredRun:
    """Finds a run and one of its checkpoints.

    Args:
      workdir: a directory, or gs://bucket/prefix, which is only read.
      which: "newest", "best" (see `finder.best_name`) or a step.
      stack: keeps what is fetched from a bucket until it is left.

    Raises:
      CheckpointError: there is no such good checkpoint.
      StorageError: the place cannot be read.
      UsageError: there is no run.
    """
    distribution.prepare_devices(num_logical_cpus=0, deterministic="auto")
    place = Config(workdir=workdir).resolve()
    place.validate()
    directory = RunDirectory(Path(place.local_root))
    store: CheckpointStore
    bucket: Bucket | None = None
    if place.bucket:
        name, prefix = place.bucket
        bucket = Bucket(name, prefix=prefix)
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        store = RemoteStore(bucket, cache=Path(cache))
        source = f"{bucket.location}/{directory.config.name}"
        text = _read_from_bucket(bucket, directory.config.name)
    else:
        store = LocalStore(directory.checkpoints)
        source = str(directory.config)
        text = _read(directory.config)
    config = dataclasses.replace(
        Config.from_json(text, source=source),
        workdir=place.workdir,
        local_dir=place.local_dir,
    )
    return StoredRun(
        config=config,
        directory=directory,
        checkpoint=_find(store, which, config.digest()),
        bucket=bucket,
    )


def _find(
    store: CheckpointStore, which: str, config_digest: str
) -> finder.StoredCheckpoint:
    if which.isdecimal():
        return finder.find_step(store, int(which), config_digest=config_digest)
    newest = finder.find_newest(store, config_digest=config_digest)
    if newest is None:
        raise errors.CheckpointError(
            f"There is no checkpoint in {store.location} yet. Wait for the"
            " first, or correct --workdir."
        )
    if which == NEWEST:
        return newest
    if newest.best is None:
        raise errors.CheckpointError(
            f"No best checkpoint is known in {store.location}: training has"
            " evaluated none. Choose a step, or train with"
            " --evaluate_every_epochs."
        )
    step = newest.host_state["best_evaluation"]["step"]
    return finder.find_step(store, step, config_digest=config_digest)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _no_run(str(path.parent)) from error
    except OSError as error:
        raise errors.StorageError(f"Cannot read {path}: {error}") from error


def _read_from_bucket(bucket: Bucket, name: str) -> bytes:
    try:
        return bucket.read_bytes(name, _MAX_CONFIG_BYTES)
    except MissingObjectError as error:
        raise _no_run(bucket.location) from error
    except ValueError as error:
        raise errors.StorageError(
            f"Cannot read {bucket.location}/{name}: {error}"
        ) from error


def _no_run(location: str) -> errors.UsageError:
    return errors.UsageError(
        f"--workdir={location} holds no run: there is no config.json. Name the"
        " directory that `python -m trainer.main` was given."
    )
