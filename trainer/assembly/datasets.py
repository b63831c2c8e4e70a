"""The data of a run, and of which classes they are."""

import pathlib

import numpy as np
from absl import logging

from trainer import data, errors, models, samples
from trainer.config import Config
from trainer.data.dataset import (
    Dataset,
    Wanted,
    examples_of,
    num_classes,
    spread,
)
from trainer.evaluation import extractors


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


def real_images(config: Config, dataset: Dataset) -> np.ndarray:
    """Returns real images to lay out like the samples, uint8 [B, H, W, C]."""
    if classes := conditional_classes(config, dataset):
        labels = samples.grid_labels(config.num_samples, classes)
        return examples_of(dataset, labels.reshape(-1))
    return spread(dataset, config.num_samples)


def preparation(config: Config) -> str:
    """Returns what is done to the data's images, empty if it is nothing."""
    if config.height_and_width is None and config.channels == "auto":
        return ""
    return f"{config.height_and_width} {config.channels} {config.resize}"
