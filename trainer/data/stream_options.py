"""Options of tf.data, set on purpose."""

import tensorflow as tf


def ordered() -> tf.data.Options:
    """Returns options for elements whose places mean something."""
    options = tf.data.Options()
    # The elements are addressed to replicas already; sharding would have each
    # worker skip some.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    # How much runs in parallel is said where it does. And at exit each tuner's
    # thread is waited for, up to seconds a replica.
    options.autotune.enabled = False
    # An element's place in the stream says whose it is and of which step.
    options.deterministic = True
    return options
