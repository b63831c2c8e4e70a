"""Batches for training, as a pure function of the seed and the global step.

No iterator state is ever saved: to resume, the pipeline is built anew with the
step to begin at, and costs nothing to get there.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from trainer import errors, randomness
from trainer.data import stream_options
from trainer.data.dataset import Dataset

# The third word of the shuffle's seed: with it, another use of the same cipher
# would not repeat the order of the data.
_PURPOSE = 0x6F726465
# tf.random.experimental.index_shuffle stops after 4 rounds of the cipher, which
# is too early: on 60,000 examples the orders of epochs 0 and 1 then correlate
# with 0.9. From 16 rounds on they pass for random permutations; 32 is what the
# authors of the cipher prescribe for its smallest block (Beaulieu et al., "The
# Simon and Speck families of lightweight block ciphers", 2013).
_NUM_CIPHER_ROUNDS = 32
_PREFETCHED_STEPS = 2
# While the last images of one are decoded, the next one begins.
_BATCHES_AT_ONCE = 2


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    """Returns the whole global batches in an epoch; what is left is dropped.

    Raises:
      DataError: not one global batch can be filled.
    """
    if num_examples < global_batch_size:
        raise errors.DataError(
            f"The data set has {num_examples} examples, fewer than one global"
            f" batch of {global_batch_size}. Choose a smaller --batch_size, or"
            " more data."
        )
    return num_examples // global_batch_size


def example_indices(
    step: tf.Tensor | int,
    positions: tf.Tensor,
    *,
    num_examples: int,
    global_batch_size: int,
    seed: int,
) -> tf.Tensor:
    """Tells which examples are at some positions of a step's global batch.

    An epoch's order is a permutation of all examples, fixed by (seed, epoch).
    The ones that its last, incomplete batch would hold sit out that epoch;
    which ones they are differs from epoch to epoch.

    Args:
      step: the global step, a scalar.
      positions: integers [B] in 0..global_batch_size - 1.
      num_examples: N, the size of the data set.
      global_batch_size: the examples in a step.
      seed: the run's seed, in 0..2**32 - 1.

    Returns:
      int64 [B], in 0..N - 1.

    Raises:
      DataError: not one global batch can be filled.
    """
    num_steps = steps_per_epoch(num_examples, global_batch_size)
    step = tf.cast(step, tf.int64)
    first_rank = step % num_steps * global_batch_size
    return tf.raw_ops.RandomIndexShuffle(
        index=first_rank + tf.cast(positions, tf.int64),
        seed=tf.stack(
            [
                tf.constant(seed, tf.uint32),
                tf.cast(step // num_steps, tf.uint32),
                tf.constant(_PURPOSE, tf.uint32),
            ]
        ),
        max_index=tf.constant(num_examples - 1, tf.int64),
        rounds=_NUM_CIPHER_ROUNDS,
    )


def training_batches(
    dataset: Dataset,
    *,
    global_batch_size: int,
    num_replicas: int,
    first_step: int,
    seed: int,
    local_replicas: range | None = None,
    num_parts: int = 1,
    random_flip: bool = False,
) -> tf.data.Dataset:
    """Returns the endless batches of one local replica after the other.

    With L local replicas, element k belongs to step first_step + k // L and to
    replica r = local_replicas[k % L]. This is the order in which
    `Strategy.distribute_datasets_from_function` deals elements out to the
    replicas of a process.

    A step's global batch is cut into num_parts * num_replicas blocks; block
    p * num_replicas + r is part p of replica r. So a part is, over all
    replicas, the same piece of the global batch, however many they are.

    Args:
      dataset: the examples, uint8, in host memory.
      global_batch_size: examples a step, over all replicas.
      num_replicas: replicas that share them, of all processes.
      first_step: the global step to begin with; beginning late costs nothing.
      seed: the run's seed, in 0..2**32 - 1.
      local_replicas: those of this process; None: all.
      num_parts: that each replica goes through its share in.
      random_flip: mirror half of the images, other ones in each epoch.

    Returns:
      A dataset of {"sample": uint8 [b, H, W, C], "label": int32 [b]}, of static
      shapes. `trainer.pixels` makes floats of the samples, on the device.

    Raises:
      DataError: not one global batch can be filled.
      ValueError: the global batch cannot be shared out evenly.
    """
    if global_batch_size % (num_replicas * num_parts):
        raise ValueError(
            f"{global_batch_size=} for {num_replicas=} and {num_parts=}"
        )
    steps_per_epoch(len(dataset.labels), global_batch_size)
    if local_replicas is None:
        local_replicas = range(num_replicas)
    # On a GPU, the labels would come back for each batch.
    with tf.device("CPU:0"):
        labels = tf.constant(dataset.labels)
    make_batch = functools.partial(
        _make_batch,
        read=dataset.reader(),
        labels=labels,
        global_batch_size=global_batch_size,
        num_replicas=num_replicas,
        num_parts=num_parts,
        seed=seed,
        local_replicas=local_replicas,
        random_flip=random_flip,
    )
    # Endless, so that no replica has to check at every step for the end.
    elements = tf.data.Dataset.counter(first_step * len(local_replicas))
    batches = elements.map(
        make_batch, num_parallel_calls=_BATCHES_AT_ONCE
    ).with_options(stream_options.ordered(num_threads=dataset.num_threads))
    return batches.prefetch(_PREFETCHED_STEPS * len(local_replicas))


def _make_batch(
    element: tf.Tensor,
    *,
    read: Callable[[tf.Tensor], tf.Tensor],
    labels: tf.Tensor,
    global_batch_size: int,
    num_replicas: int,
    num_parts: int,
    seed: int,
    local_replicas: range,
    random_flip: bool,
) -> dict[str, tf.Tensor]:
    size = global_batch_size // (num_replicas * num_parts)
    replica = local_replicas.start + element % len(local_replicas)
    blocks = tf.range(num_parts, dtype=tf.int64) * num_replicas + replica
    positions = blocks[:, tf.newaxis] * size + tf.range(size, dtype=tf.int64)
    positions = tf.reshape(positions, [num_parts * size])
    step = element // len(local_replicas)
    indices = example_indices(
        step,
        positions,
        num_examples=len(labels),
        global_batch_size=global_batch_size,
        seed=seed,
    )
    samples = read(indices)
    if random_flip:
        flips = _flips(step, global_batch_size, seed)
        samples = tf.where(
            tf.gather(flips, positions)[:, tf.newaxis, tf.newaxis, tf.newaxis],
            tf.reverse(samples, axis=[2]),
            samples,
        )
    return {"sample": samples, "label": tf.gather(labels, indices)}


def _flips(step: tf.Tensor, global_batch_size: int, seed: int) -> tf.Tensor:
    """Returns which positions of a step's global batch to mirror, bool [B]."""
    draws = randomness.Draws(seed=seed, purpose="random flip", step=step)
    return draws.uniform((global_batch_size,)) < 0.5
