"""Options of tf.data, set on purpose."""

import tensorflow as tf


def ordered(*, num_threads: int | None = None) -> tf.data.Options:
    """Returns options for elements whose places mean something.

    Args:
      num_threads: for an outermost data set, whose functions and the data sets
        within these share them; None: TensorFlow's, as many as processors,
        which is the limit of what runs at once whatever `num_parallel_calls`
        says.
    """
    options = tf.data.Options()
    if num_threads is not None:
        options.threading.private_threadpool_size = num_threads
    # The elements are addressed to replicas already; sharding would have each
    # worker skip some.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    # How much runs in parallel is said where it does. And at exit each tuner's
    # thread is waited for, up to seconds a replica.
    options.autotune.enabled = False
    # To rewrite the graph, TensorFlow copies what its functions hold: a data
    # set in memory would be there twice. There is nothing left to improve.
    options.experimental_optimization.apply_default_optimizations = False
    # An element's place in the stream says whose it is and of which step.
    options.deterministic = True
    return options
