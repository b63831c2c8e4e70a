"""Configures this process's devices, and joins the other workers' ones."""

import dataclasses
import os
import platform

import keras
import tensorflow as tf
from absl import logging

from trainer import cluster, distribution, rendezvous
from trainer.config import Config
from trainer.interruption import Interruption
from trainer.team import Team

_OF_THE_MACHINE = {
    "cache_dir",
    "data_dir",
    "inception_weights",
    "local_dir",
    "workdir",
}


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
