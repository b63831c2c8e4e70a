"""Loads what was exported in a process of its own, as its user would.

Run as `python -m trainer.exported_check DIRECTORY`, with `expected.npz` there.
"""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

# Registers the layers of the generators, which a .keras file only names.
import trainer.models  # noqa: F401

SAVED_MODEL = "saved_model"
KERAS_FILE = "generator.keras"
EXPECTED = "expected.npz"
# Another process may fuse operations otherwise.
_TOLERANCE = 1e-4


def main(directory: pathlib.Path) -> int:
    """Compares both forms with what the generator made; 0 if they agree."""
    with np.load(directory / EXPECTED, allow_pickle=False) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    expected = inputs.pop("samples")
    serve = tf.saved_model.load(str(directory / SAVED_MODEL)).signatures[
        "serving_default"
    ]
    served = serve(**{k: tf.constant(v) for k, v in inputs.items()})["samples"]
    model = keras.saving.load_model(directory / KERAS_FILE)
    values = list(inputs.values())
    called = model(values if len(values) > 1 else values[0], training=False)
    for name, made in ((SAVED_MODEL, served), (KERAS_FILE, called)):
        difference = float(np.abs(np.asarray(made) - expected).max())
        if not difference < _TOLERANCE:
            print(f"{name} makes other samples: off by {difference:.3g}.")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
