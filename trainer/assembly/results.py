"""What is shown of a run, and what its samples are measured with."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from trainer import errors, samples
from trainer.assembly import datasets
from trainer.config import Config
from trainer.data.dataset import Dataset
from trainer.evaluation import evaluator, extractors, metrics
from trainer.outputs import Outputs
from trainer.quality import Quality
from trainer.run_directory import RunDirectory
from trainer.schedule import Schedule
from trainer.train_state import TrainState


def load_real(config: Config, dataset: Dataset) -> Dataset:
    """Loads what samples are compared with, and checks that they can be.

    That is done before anything is written or learned, which would be in vain.

    Args:
      config: of the run; it measures itself.
      dataset: what it is trained on.

    Raises:
      DataError: there are too few real samples, or they have other classes.
      UsageError: there is no such part of the data, or no features of them.
    """
    extractors.check(dataset, inception_weights=config.inception_weights)
    real = dataset
    if config.evaluation_split not in (None, config.split):
        other = _evaluation_config(config)
        try:
            real = datasets.load_data(other)
        except errors.UsageError as error:
            raise errors.UsageError(
                f"--evaluation_split={config.evaluation_split}: {error}"
            ) from error
        datasets.check_same_classes(other, dataset, real)
    evaluator.check_count(real)
    return real


def _evaluation_config(config: Config) -> Config:
    """Returns the config with the part of the data that is compared with."""
    return dataclasses.replace(
        config, split=config.evaluation_split or config.split
    )


def make_quality(
    config: Config,
    dataset: Dataset,
    real: Dataset,
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
      real: of `load_real`.
      state: whose generator is measured: the averaged one, if there is one.
      host_state: of the checkpoint that the run goes on from.
      is_saved: see `Quality`.
      on_progress: is called again and again, and may raise to end this.

    Raises:
      DataError: the images are all the same.
      StorageError: the cache cannot be written.
      UsageError: the file of Inception's weights is none.
    """
    extractor = extractors.make(
        dataset,
        preparation=datasets.preparation(config),
        inception_weights=config.inception_weights,
        cache_dir=config.cache_dir,
        on_progress=on_progress,
    )
    logging.info("Samples are measured by %s.", extractor.description)
    measure = evaluator.Evaluator(
        extractor,
        dataset=real,
        split=datasets.split_name(_evaluation_config(config)),
        num_samples=config.num_evaluation_samples,
        metric_names=list(metrics.METRICS),
        seed=config.seed,
    )
    generator = state.shown_generator
    return Quality(measure, generator, host_state=host_state, is_saved=is_saved)


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
