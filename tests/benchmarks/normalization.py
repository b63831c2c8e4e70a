"""Where to normalize images: on the host, or in the compiled step.

  python -m tests.benchmarks.normalization --dataset=mnist --data_dir=DIR

The data set is uint8 in memory. As it is, tf.data gathers a batch on the host,
which reaches the device as uint8 and becomes floats in the step. Against that:
batches that are floats from the beginning, four times the size; and a data set
that lies on the device, where the step gathers by index.
"""

import types
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tests.benchmarks import command, ours
from tests.benchmarks.turns import Group
from trainer import accumulation, data, pixels
from trainer.config import Config
from trainer.data import pipeline, stream_options
from trainer.train_step import TrainStep

# In a turn, so many times --steps, of steps that compute nothing.
_NOTHING_FACTOR = 50


def loop(
    *, place: str, idle: bool, **settings: object
) -> Callable[[int], None]:
    """Returns what runs some steps.

    Args:
      place: where images are normalized: a key of `_PLACES`.
      idle: whether the steps only fetch their batch and compute nothing.
      **settings: of `ours.configure`.
    """
    config = ours.configure(**settings)
    step = ours.build_step(config)
    samples = data.load(config.dataset, data_dir=config.data_dir).samples
    _PLACES[place](config, step, samples)
    if idle:
        ours.make_idle(step)
    return ours.in_loops(config, step)


def _in_step(config: Config, step: TrainStep, samples: np.ndarray) -> None:
    """Leaves the step as it is."""


def _on_host(config: Config, step: TrainStep, samples: np.ndarray) -> None:
    with tf.device("CPU:0"):
        host_samples = tf.constant(samples)
    to_float = pixels.to_float
    batches = _indices(config, len(samples)).map(
        lambda indices: {"sample": to_float(tf.gather(host_samples, indices))}
    )
    ours.replace_batches(step, _as_in_training(batches))
    _make_real_by(lambda floats: floats)


def _from_device(config: Config, step: TrainStep, samples: np.ndarray) -> None:
    device_samples = tf.identity(tf.constant(samples))  # On the GPU, if any.
    batches = _indices(config, len(samples)).map(
        lambda indices: {"sample": indices}
    )
    ours.replace_batches(step, _as_in_training(batches))
    to_float = pixels.to_float
    _make_real_by(lambda indices: to_float(tf.gather(device_samples, indices)))


_PLACES = {
    "uint8 from the host": _in_step,
    "floats from the host": _on_host,
    "indices from the host": _from_device,
}


def _indices(config: Config, num_examples: int) -> tf.data.Dataset:
    """Returns each step's examples, in the pipeline's order."""
    positions = tf.range(config.global_batch_size, dtype=tf.int64)
    return tf.data.Dataset.counter().map(
        lambda step: pipeline.example_indices(
            step,
            positions,
            num_examples=num_examples,
            global_batch_size=config.global_batch_size,
            seed=config.seed,
        )
    )


def _as_in_training(batches: tf.data.Dataset) -> tf.data.Dataset:
    batches = batches.with_options(stream_options.ordered())
    return batches.prefetch(pipeline._PREFETCHED_STEPS)


def _make_real_by(function: Callable[[tf.Tensor], tf.Tensor]) -> None:
    """Has the step, not yet traced, make its real samples in another way."""
    accumulation.pixels = types.SimpleNamespace(to_float=function)


def _make_groups() -> Iterator[Group]:
    for title, idle, factor in (
        ("Training", False, 1),
        ("Batches alone, up to the device", True, _NOTHING_FACTOR),
    ):
        yield Group(
            title,
            "What the host sends; the rest is done in the step."
            if not idle
            else "The same loops around steps that compute nothing.",
            [
                command.contestant(
                    place,
                    "normalization.loop",
                    factor * command.STEPS.value,
                    place=place,
                    idle=idle,
                )
                for place in _PLACES
            ],
            images_per_step=command.BATCH_SIZE.value,
        )


if __name__ == "__main__":
    command.run("Where images are normalized", _make_groups)
