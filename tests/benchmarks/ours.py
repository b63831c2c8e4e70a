"""This project's contestants, built from the parts that `trainer.main` runs.

They have a run's own defaults, and leave out what a run writes. On a machine
with GPUs, N replicas are on the first N of them; on another, on N logical CPUs,
which share the cores.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer import checkpoint, distribution, train
from trainer.assembly import datasets, networks, results, steps
from trainer.config import Config
from trainer.run_directory import RunDirectory
from trainer.storage.local import LocalStore
from trainer.team import Team
from trainer.train_step import TrainStep
from trainer.watchdog import Watchdog


def loop(*, num_replicas: int = 1, **settings: Any) -> Callable[[int], None]:
    """Returns what runs some steps, `steps_per_loop` of them a call.

    Args:
      num_replicas: that share the batch.
      **settings: of `Config`.
    """
    config = configure(num_replicas, **settings)
    return in_loops(config, build_step(config))


def loop_on_one_batch(**settings: Any) -> Callable[[int], None]:
    """Returns what trains on always the same batch, which costs nothing.

    Args:
      **settings: of `Config`.
    """
    config = configure(**settings)
    step = build_step(config)
    one_batch = tf.data.Dataset.from_tensors(next(step._batches))
    replace_batches(step, one_batch.repeat())
    return in_loops(config, step)


def loop_of_nothing(
    *, real_batches: bool, clocks: bool, **settings: Any
) -> Callable[[int], None]:
    """Returns what runs the loop around steps that compute nothing.

    What is left is what a step costs besides its arithmetic: the call from
    Python, the loop, the next batch, handing it to the replica, the step
    counter, and the metrics on their way back.

    Args:
      real_batches: whether the data pipeline makes the batches; or else it is
        always the same one, which costs nothing.
      clocks: whether the two clock readings of `data_wait_secs` are taken.
      **settings: of `Config`.
    """
    config = configure(**settings)
    step = build_step(config)
    make_idle(step)
    if not clocks:
        no_time = tf.zeros([], tf.float64)
        step._next_batch = lambda: (next(step._batches), no_time)
    if not real_batches:
        one_batch = tf.data.Dataset.from_tensors(next(step._batches))
        replace_batches(step, one_batch.repeat())
    return in_loops(config, step)


def run_of_nothing(**settings: Any) -> Callable[[int], None]:
    """Returns what runs a run's own loop, `train._train`, around such steps.

    With what it does beside training: progress lines, metrics, events and the
    workers' vote; without sample grids and checkpoints.
    """
    config = configure(**settings)
    strategy = start_devices(config)
    team = Team(strategy)
    dataset = datasets.load_data(config)
    state = networks.build_state(config, strategy, dataset.sample_shape)
    step = steps.build_step(config, team, dataset, state)
    make_idle(step)
    replace_batches(
        step, tf.data.Dataset.from_tensors(next(step._batches)).repeat()
    )
    schedule = dataclasses.replace(
        steps.make_schedule(config, strategy, dataset),
        epochs=10**6,
        sample_every_epochs=10**6,
        checkpoint_every_epochs=10**6,
    )
    directory = RunDirectory(Path(tempfile.mkdtemp()))
    outputs = results.open_outputs(config, directory, schedule, state, 0)
    done = 0

    def run(num_steps: int) -> None:
        nonlocal done
        done = train._train(
            step,
            schedule=dataclasses.replace(schedule, max_steps=done + num_steps),
            first_step=done,
            outputs=outputs,
            save=lambda step: None,
            next_vote=team.vote,
            watchdog=Watchdog(stall_timeout_secs=0),
        )

    return run


def checkpoint_save(**settings: Any) -> Callable[[int], None]:
    """Returns what saves the state some times; the newest are kept."""
    config = configure(**settings)
    strategy = start_devices(config)
    dataset = datasets.load_data(config)
    state = networks.build_state(config, strategy, dataset.sample_shape)
    checkpointer = checkpoint.Checkpointer(
        objects=state.as_checkpoint(),
        store=LocalStore(Path(tempfile.mkdtemp())),
        keep_checkpoints=config.keep_checkpoints,
        config_digest=config.digest(),
        attempt="benchmark",
    )

    def run(num_saves: int) -> None:
        for _ in range(num_saves):
            step = int(state.global_step.assign_add(1))
            checkpointer.save(step, host_state={"step": step})

    return run


def configure(num_replicas: int = 1, **settings: Any) -> Config:
    """Returns the resolved config of a run on so many replicas.

    Raises:
      UsageError: a value cannot be used.
      RuntimeError: there are GPUs, but not enough.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if len(gpus) < num_replicas:
            raise RuntimeError(f"{num_replicas} GPUs needed, {len(gpus)} found")
        tf.config.set_visible_devices(gpus[:num_replicas], "GPU")
    elif num_replicas > 1:
        settings["num_logical_cpus"] = num_replicas
    config = Config(**settings).resolve()
    config.validate()
    return config


def start_devices(config: Config) -> tf.distribute.Strategy:
    """Configures TensorFlow; returns the replicas."""
    distribution.prepare_devices(
        num_logical_cpus=config.num_logical_cpus,
        deterministic=config.deterministic,
    )
    return distribution.make_strategy(
        config.strategy, num_logical_cpus=config.num_logical_cpus
    )


def build_step(config: Config) -> TrainStep:
    """Starts TensorFlow; returns the train step, not yet traced."""
    strategy = start_devices(config)
    dataset = datasets.load_data(config)
    state = networks.build_state(config, strategy, dataset.sample_shape)
    return steps.build_step(config, Team(strategy), dataset, state)


def in_loops(config: Config, step: TrainStep) -> Callable[[int], None]:
    """Returns what runs some steps, `steps_per_loop` of them a call."""

    def run(num_steps: int) -> None:
        for start in range(0, num_steps, config.steps_per_loop):
            step.run(min(config.steps_per_loop, num_steps - start))

    return run


# The benchmarks look into a train step, so that what they measure is the loop
# that trains and no copy of it.


def make_idle(step: TrainStep) -> None:
    """Lets the steps compute nothing; call before the first one."""
    num_metrics = len(step._metric_names)
    step._replica_step = lambda batch, wait_secs: tf.zeros([num_metrics])


def replace_batches(step: TrainStep, batches: tf.data.Dataset) -> None:
    """Lets one replica have other batches; call before the first step."""
    step._batches = iter(
        step._strategy.distribute_datasets_from_function(lambda _: batches)
    )
