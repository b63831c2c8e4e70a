"""Trained classifiers on the disk, so that each is trained only once."""

import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from trainer import atomic_file
from trainer.evaluation.classifier import TrainedClassifier

_MAX_BYTES = 1 << 28


def get(
    directory: pathlib.Path,
    digest: str,
    train: Callable[[], TrainedClassifier],
) -> TrainedClassifier:
    """Reads a classifier from the cache, or trains and keeps it there.

    A file that is damaged is replaced. It holds plain arrays: nothing in it is
    executed.

    Args:
      directory: of the cache; made if there is none.
      digest: of what decides the weights.
      train: trains it.

    Raises:
      StorageError: the cache cannot be written.
    """
    path = directory / f"classifier-{digest}.npz"
    if path.exists():
        try:
            return _read(path)
        except (
            OSError,
            EOFError,
            KeyError,
            ValueError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            logging.warning("%s is made anew: %s", path, error)
    trained = train()
    buffer = io.BytesIO()
    facts = {
        "feature_scale": trained.feature_scale,
        "held_out_accuracy": trained.held_out_accuracy,
        "num_held_out": trained.num_held_out,
    }
    arrays: dict[str, Any] = {
        f"weight_{i:03d}": weight for i, weight in enumerate(trained.weights)
    }
    arrays["feature_mean"] = trained.feature_mean
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez(buffer, **arrays)
    atomic_file.make_directory(directory)
    atomic_file.write_bytes(path, buffer.getvalue())
    return trained


def _read(path: pathlib.Path) -> TrainedClassifier:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    with np.load(path, allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        names = sorted(n for n in arrays.files if n.startswith("weight_"))
        return TrainedClassifier(
            weights=[arrays[name] for name in names],
            feature_mean=arrays["feature_mean"],
            feature_scale=float(facts["feature_scale"]),
            held_out_accuracy=float(facts["held_out_accuracy"]),
            num_held_out=int(facts["num_held_out"]),
        )
