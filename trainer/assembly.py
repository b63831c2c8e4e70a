"""Makes the parts of a run from its config, which they never see themselves."""

import contextlib
import dataclasses
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from trainer import (
    augmentations,
    cluster,
    data,
    distribution,
    divergence,
    errors,
    losses,
    models,
    penalties,
    rendezvous,
    run_directory,
    samples,
)
from trainer.adaptive_probability import AdaptiveProbability
from trainer.config import Config
from trainer.data import pipeline
from trainer.data.dataset import (
    Dataset,
    Wanted,
    examples_of,
    num_classes,
    spread,
)
from trainer.ema import Ema
from trainer.evaluation import extractors, metrics
from trainer.evaluation.evaluator import Evaluator
from trainer.interruption import Interruption
from trainer.learning_rates import LearningRateFactor
from trainer.outputs import Outputs
from trainer.quality import Quality
from trainer.regularizer import Regularizer
from trainer.run_directory import RunDirectory
from trainer.schedule import Schedule
from trainer.storage.bucket import Bucket
from trainer.storage.lease import PATIENCE as LEASE_PATIENCE
from trainer.storage.lease import Lease
from trainer.storage.local import LocalStore
from trainer.storage.mirror import Mirror
from trainer.team import Team
from trainer.train_state import TrainState
from trainer.train_step import TrainStep

_OF_THE_MACHINE = {
    "cache_dir",
    "data_dir",
    "inception_weights",
    "local_dir",
    "workdir",
}
_RELEASE_SECS = 10.0
# More than the lease of a process lasts that died.
_MAX_WAIT_SECS = 90.0


def start_team(config: Config, interruption: Interruption) -> Team:
    """Configures TensorFlow and joins the other workers, if there are any.

    Raises:
      StoppedError: a signal came while it waited for them.
      StalledError: they did not come.
      UsageError: they were started with other flags or versions.
    """
    workers = None
    if config.strategy == "multi_worker":
        workers = cluster.from_environment(os.environ)
        if not _meet(workers, config, interruption):
            interruption.check()
    distribution.prepare_devices(
        num_logical_cpus=config.num_logical_cpus,
        deterministic=config.deterministic,
    )
    if workers is None:
        strategy = distribution.make_strategy(
            config.strategy, num_logical_cpus=config.num_logical_cpus
        )
        return Team(strategy)
    strategy = distribution.join_cluster(workers.addresses, workers.index)
    interruption.take_signals_back()
    return Team(strategy, index=workers.index, num_workers=workers.num_workers)


def _meet(
    workers: cluster.Cluster, config: Config, interruption: Interruption
) -> bool:
    logging.info(
        "Worker %d of %d, %s.",
        workers.index,
        workers.num_workers,
        workers.address,
    )
    if not workers.is_chief:
        # The chief speaks for all, but for warnings.
        logging.set_verbosity(logging.WARNING)
    flags = {
        f"--{name}": str(value)
        for name, value in dataclasses.asdict(config).items()
        # Each machine has its own.
        if name not in _OF_THE_MACHINE
    }
    versions = {
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        # TensorFlow assumes so many on every worker.
        "number of GPUs": str(len(tf.config.list_physical_devices("GPU"))),
    }
    return rendezvous.meet(
        workers,
        facts=flags | versions,
        timeout_secs=config.worker_wait_secs,
        should_stop=lambda: interruption.requested,
        say=logging.info,
    )


def load_data(config: Config) -> Dataset:
    """Loads the data, and checks that the model can make the like.

    Raises:
      DataError: they are missing, damaged, or too few.
      UsageError: the model cannot make samples of their shape, or their classes
        are wanted and they have none.
    """
    dataset = data.load(
        config.dataset, data_dir=config.data_dir, wanted=wanted_data(config)
    )
    models.check(config.model, dataset.sample_shape, width=config.model_width)
    _check_classes(config, dataset)
    logging.info("%s: %s.", config.dataset, dataset.describe())
    if summary := dataset.quarantine.summary():
        logging.warning("%s", summary)
    return dataset


def _check_classes(config: Config, dataset: Dataset) -> None:
    if config.conditional and num_classes(dataset) < 2:
        raise errors.UsageError(
            "--conditional needs data of several classes, and --dataset="
            f"{config.dataset} has one. Leave it out, or choose data with"
            " labels: in a folder, a sub-folder for each class."
        )


def conditional_classes(config: Config, dataset: Dataset) -> int | None:
    """Returns how many classes the networks know; None: they take no labels."""
    return num_classes(dataset) if config.conditional else None


def check_same_classes(
    config: Config, trained: Dataset, other: Dataset
) -> None:
    """Refuses to ask a generator for the classes of data that have others.

    Args:
      config: of the other data.
      trained: what the generator was trained on.
      other: whose labels it is asked for.

    Raises:
      DataError: a label means another class, or none.
    """
    fits = trained.class_names == other.class_names and num_classes(
        other
    ) <= num_classes(trained)
    if config.conditional and not fits:
        raise errors.DataError(
            f"{split_name(config)} has other classes than were trained on"
            f" ({other.class_names or num_classes(other)} in place of"
            f" {trained.class_names or num_classes(trained)}), so its labels"
            " mean others. Give it the same, or choose another part."
        )


def wanted_data(config: Config) -> Wanted:
    """Returns what the config says of the data, for the data package."""
    return Wanted(
        split=config.split,
        image_size=config.height_and_width,
        channels=None if config.channels == "auto" else int(config.channels),
        resize=config.resize,
        max_bad_fraction=config.max_bad_fraction,
        max_pixels=config.max_pixels,
        memory_bytes=config.data_memory_mib * 2**20,
        cache_dir=pathlib.Path(config.cache_dir)
        if config.cache_dir
        else extractors.default_cache(),
    )


def split_name(config: Config) -> str:
    """Returns what part of which data it is, in words."""
    return f"{config.dataset} {config.split or 'as trained on'}"


def preparation(config: Config) -> str:
    """Returns what is done to the data's images, empty if it is nothing."""
    if config.height_and_width is None and config.channels == "auto":
        return ""
    return f"{config.height_and_width} {config.channels} {config.resize}"


def make_schedule(
    config: Config, strategy: tf.distribute.Strategy, dataset: Dataset
) -> Schedule:
    """Works out and checks the batch arithmetic.

    Raises:
      DataError: there is less data than a batch.
      UsageError: the replicas cannot share a batch equally.
    """
    distribution.check_batch_size(
        config.global_batch_size,
        num_replicas=strategy.num_replicas_in_sync,
        num_parts=config.gradient_accumulation_steps,
    )
    return Schedule(
        steps_per_epoch=pipeline.steps_per_epoch(
            len(dataset.labels), config.images_per_step
        ),
        epochs=config.epochs,
        max_steps=config.max_steps,
        steps_per_loop=config.steps_per_loop,
        log_every_steps=config.log_every_steps or config.steps_per_loop,
        sample_every_epochs=config.sample_every_epochs,
        checkpoint_every_epochs=config.checkpoint_every_epochs,
        keep_every_epochs=config.keep_every_epochs,
        evaluate_every_epochs=config.evaluate_every_epochs,
    )


def build_state(
    config: Config,
    strategy: tf.distribute.Strategy,
    sample_shape: tuple[int, ...],
    *,
    num_classes: int | None = None,
    num_rollbacks: int = 0,
) -> TrainState:
    """Builds networks and optimizers on the replicas.

    Args:
      config: of the run.
      strategy: the replicas.
      sample_shape: such as (H, W, C).
      num_classes: see `conditional_classes`.
      num_rollbacks: how often the run has gone back so far.
    """
    model = models.get(config.model)
    factor = config.rollback_learning_rate_factor**num_rollbacks
    with strategy.scope():
        return TrainState(
            build_generator=lambda: build_generator(
                config, sample_shape, num_classes=num_classes
            ),
            build_discriminator=lambda: model.build_discriminator(
                sample_shape=sample_shape,
                width=config.model_width,
                sync_batch_norm=config.sync_batch_norm,
                num_classes=num_classes,
            ),
            g_learning_rate=config.g_learning_rate * factor,
            d_learning_rate=config.d_learning_rate * factor,
            seed=divergence.seed_after(config.seed, num_rollbacks),
            precision=config.precision,
            optimizer=config.optimizer,
            g_optimizer_settings=_adam_settings(config, config.g_beta_1),
            d_optimizer_settings=_adam_settings(config, config.d_beta_1),
            has_penalty=config.penalty != "none",
            has_ema=config.ema_half_life_images > 0,
            build_augment_probability=_adaptive_probability(config),
        )


def _adaptive_probability(
    config: Config,
) -> Callable[[], AdaptiveProbability] | None:
    target = config.augment_target
    if target is None:
        return None
    return lambda: AdaptiveProbability(
        target=target, speed_images=config.augment_speed_images
    )


def _adam_settings(config: Config, beta_1: float) -> dict[str, float]:
    if config.optimizer != "adam":
        return {}
    return {"beta_1": beta_1, "beta_2": config.beta_2}


def _learning_rate_factor(config: Config) -> LearningRateFactor | None:
    factor = LearningRateFactor(
        schedule=config.learning_rate_schedule,
        warmup_steps=config.learning_rate_warmup_steps,
        decay_steps=config.learning_rate_decay_steps or 1,
        final_factor=config.learning_rate_final_factor,
    )
    return None if factor.is_constant else factor


def build_generator(
    config: Config,
    sample_shape: tuple[int, ...],
    *,
    num_classes: int | None,
) -> keras.Model:
    """Builds the generator alone; see `build_state`."""
    return models.get(config.model).build_generator(
        latent_dim=config.latent_dim,
        sample_shape=sample_shape,
        width=config.model_width,
        sync_batch_norm=config.sync_batch_norm,
        num_classes=num_classes,
    )


def build_step(
    config: Config,
    team: Team,
    dataset: Dataset,
    state: TrainState,
    *,
    first_step: int = 0,
    num_rollbacks: int = 0,
) -> TrainStep:
    """Connects the state with the data from a global step on."""
    strategy = team.strategy
    seed = divergence.seed_after(config.seed, num_rollbacks)
    batches = strategy.distribute_datasets_from_function(
        lambda _: pipeline.training_batches(
            dataset,
            # The batches of a step, one after the other, are its parts.
            global_batch_size=config.images_per_step,
            num_replicas=strategy.num_replicas_in_sync,
            first_step=first_step,
            seed=seed,
            local_replicas=team.local_replicas,
            num_parts=config.num_discriminator_steps
            * config.gradient_accumulation_steps,
            random_flip=config.random_flip,
        )
    )
    return TrainStep(
        state,
        strategy=strategy,
        batches=batches,
        loss=losses.get(config.loss),
        latent_dim=config.latent_dim,
        global_batch_size=config.global_batch_size,
        seed=seed,
        regularizer=_regularizer(config, state),
        learning_rate_factor=_learning_rate_factor(config),
        ema=_ema(config, state),
        augment=augmentations.get(config.augment),
        augment_probability=config.augment_probability,
        num_discriminator_steps=config.num_discriminator_steps,
        num_accumulation_steps=config.gradient_accumulation_steps,
        jit_compile=distribution.should_jit(
            config.jit_compile,
            devices=strategy.extended.worker_devices,
            sync_batch_norm=config.sync_batch_norm,
        ),
    )


def _ema(config: Config, state: TrainState) -> Ema | None:
    if state.ema_generator is None:
        return None
    return Ema(
        state.ema_generator,
        half_life_images=config.ema_half_life_images,
        images_per_step=config.images_per_step,
    )


def _regularizer(config: Config, state: TrainState) -> Regularizer | None:
    penalty = penalties.get(config.penalty)
    if penalty is None:
        return None
    return Regularizer(
        penalty,
        weight=config.penalty_weight,
        every_steps=config.penalty_every_steps,
        float32_discriminator=state.build_float32_discriminator(),
    )


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


def make_quality(
    config: Config,
    dataset: Dataset,
    state: TrainState,
    *,
    host_state: Mapping[str, Any],
    is_saved: Callable[[int], bool],
    on_progress: Callable[[], object],
) -> Quality:
    """Makes ready what the samples are measured with; may train a classifier.

    Args:
      config: of the run.
      dataset: what it is trained on.
      state: whose generator is measured: the averaged one, if there is one.
      host_state: of the checkpoint that the run goes on from.
      is_saved: see `Quality`.
      on_progress: is called again and again, and may raise to end this.

    Raises:
      DataError: there are too few real samples.
      StorageError: the cache cannot be written.
      UsageError: there are no features of such data.
    """
    extractor = extractors.make(
        dataset,
        preparation=preparation(config),
        inception_weights=config.inception_weights,
        cache_dir=config.cache_dir,
        on_progress=on_progress,
    )
    logging.info("Samples are measured by %s.", extractor.description)
    real = dataset
    if config.evaluation_split not in (None, config.split):
        config = dataclasses.replace(config, split=config.evaluation_split)
        real = load_data(config)
        check_same_classes(config, dataset, real)
    evaluator = Evaluator(
        extractor,
        dataset=real,
        split=split_name(config),
        num_samples=config.num_evaluation_samples,
        metric_names=list(metrics.METRICS),
        seed=config.seed,
    )
    generator = state.shown_generator
    return Quality(
        evaluator, generator, host_state=host_state, is_saved=is_saved
    )


def real_images(config: Config, dataset: Dataset) -> np.ndarray:
    """Returns real images to lay out like the samples, uint8 [B, H, W, C]."""
    if classes := conditional_classes(config, dataset):
        labels = samples.grid_labels(config.num_samples, classes)
        return examples_of(dataset, labels.reshape(-1))
    return spread(dataset, config.num_samples)


def open_outputs(
    config: Config,
    directory: RunDirectory,
    schedule: Schedule,
    state: TrainState,
    first_step: int,
    *,
    num_classes: int | None = None,
) -> Outputs:
    """Opens what the run shows, from a global step on."""
    return Outputs(
        directory=directory,
        schedule=schedule,
        sampler=samples.Sampler(
            state.shown_generator,
            latent_dim=config.latent_dim,
            num_samples=config.num_samples,
            seed=config.seed,
            num_classes=num_classes,
        ),
        images_per_step=config.images_per_step,
        first_step=first_step,
    )
