"""Chooses what makes the features, and makes it ready."""

import os
import pathlib
from collections.abc import Callable

from absl import logging

from trainer import errors
from trainer.data import dataset as dataset_lib
from trainer.evaluation import classifier, classifier_cache, inception
from trainer.evaluation.extractor import Extractor


def check(
    dataset: dataset_lib.Dataset, *, inception_weights: str | None
) -> None:
    """Refuses what `make` could not make features with; takes no time.

    Args:
      dataset: what the GAN is trained on.
      inception_weights: a file; None for the classifier of the data's labels.

    Raises:
      DataError: there are too few images for a classifier.
      UsageError: there is no such file; or there are no classes.
    """
    if inception_weights is not None:
        inception.check(inception_weights)
        return
    if dataset_lib.num_classes(dataset) < 2:
        raise errors.UsageError(
            "The data have no classes that a classifier could learn, whose"
            " features samples are compared by. Give --inception_weights=<file>"
            " instead."
        )
    if len(dataset.labels) < classifier.MIN_IMAGES:
        raise errors.DataError(
            f"{len(dataset.labels)} images are too few to train the classifier"
            f" that samples are compared by; {classifier.MIN_IMAGES} are"
            " needed. Add images, or give --inception_weights=<file> instead."
        )


def make(
    dataset: dataset_lib.Dataset,
    *,
    preparation: str = "",
    inception_weights: str | None,
    cache_dir: str | None,
    on_progress: Callable[[], object] = lambda: None,
) -> Extractor:
    """Loads Inception, or gets the classifier of a data set.

    The classifier is taken from the cache, or trained (1,500 steps, some ten
    seconds for small images) and kept there.

    Args:
      dataset: what the GAN is trained on; its labels are the classes.
      preparation: how its images were brought to size and channels, which its
        digest does not tell; empty if they are as they were.
      inception_weights: a file, see `inception`; None for the classifier.
      cache_dir: of the cache; None for `default_cache`.
      on_progress: is called again and again, and may raise to end this.

    Raises:
      DataError: there are too few images for a classifier.
      UsageError: the file is not what it should be; or there are no classes.
      StorageError: the cache cannot be written.
    """
    check(dataset, inception_weights=inception_weights)
    if inception_weights is not None:
        return inception.load(inception_weights)
    num_classes = dataset_lib.num_classes(dataset)
    digest = classifier.digest(dataset.digest(), preparation)

    def train() -> classifier.TrainedClassifier:
        logging.info("Training the classifier that samples are measured by.")
        return classifier.train(
            dataset.at,
            dataset.labels,
            num_classes=num_classes,
            on_progress=on_progress,
        )

    directory = pathlib.Path(cache_dir) if cache_dir else default_cache()
    return classifier.as_extractor(
        classifier_cache.get(directory, digest, train),
        sample_shape=dataset.sample_shape,
        num_classes=num_classes,
        name=f"classifier-{digest}",
    )


def default_cache() -> pathlib.Path:
    """Where the desktop's rules put what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "gan-trainer"
