"""One of several workers, as `test_team` starts them; not a test itself.

usage: python -m tests.team_worker <scenario> <index> <directory> <address> ...

Writes what it learned to <directory>/worker<index>.json and .npz, and exits
with the code of the error that ended it, if one did.
"""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tests import tiny
from trainer import (
    augmentations,
    distribution,
    errors,
    models,
    penalties,
    train,
    train_step,
)
from trainer import team as team_lib
from trainer.config import Config
from trainer.heartbeat import Heartbeat
from trainer.regularizer import Regularizer
from trainer.team import Team

NUM_STEPS = 4


def _exchange(team: Team, index: int) -> dict[str, Any]:
    """Shares values and the chief's state."""
    distribution.check_all_reduce(team.strategy)
    state = tiny.build_state(
        team.strategy, seed=index, precision="mixed_float16"
    )
    if team.is_chief:
        for variable in state.variables:
            if variable.dtype.is_floating:
                # The one number that a sum with 0 would change.
                variable.assign(-tf.zeros_like(variable))
            else:
                variable.assign(tf.fill(variable.shape, tf.int64.max))
    team.take_over_from_chief(state.variables)
    values = tiny.values(state)
    return {
        "shared": team.share(2**62 - index),
        "from_chief": team.from_chief(7 + index),
        "local_replicas": list(team.local_replicas),
        "nobody_votes": [team.vote(), team.exit_code],
        "somebody_saves": [team.vote(wants_save=index == 1), team.exit_code],
        "somebody_stops": [
            team.vote(exit_code=143 if index == 1 else 0),
            team.exit_code,
        ],
        "num_taken_over": sum(
            bool(np.all((v == 0) & np.signbit(v)))
            if v.dtype.kind == "f"
            else bool(np.all(v == tf.int64.max))
            for v in values
        ),
        "num_variables": len(values),
    }


def _train(team: Team, directory: pathlib.Path, index: int) -> dict[str, Any]:
    """Trains some steps, with a batch in one part and in two."""
    metrics, arrays = {}, {}
    for num_parts in (1, 2):
        state = tiny.build_state(team.strategy, sync_batch_norm=True)
        step = tiny.build_step(state, team, num_accumulation_steps=num_parts)
        step.run(NUM_STEPS - 1)
        metrics[num_parts] = step.run(1)
        for number, value in enumerate(tiny.values(state)):
            arrays[f"{num_parts} {number}"] = value
    np.savez(directory / f"worker{index}.npz", **arrays)
    return {
        str(num_parts): {name: m[name] for name in train_step.METRIC_NAMES}
        for num_parts, m in metrics.items()
    }


def _count_reductions(team: Team) -> int:
    """Counts the collective operations in the loop's graph, a step's in it."""
    state = tiny.build_state(
        team.strategy,
        precision="mixed_float16",
        has_penalty=True,
        build_augment_probability=tiny.adaptive_probability(0.6),
    )
    step = tiny.build_step(
        state,
        team,
        regularizer=Regularizer(penalties.PENALTIES["r1"], weight=1.0),
        augment=augmentations.get("flip,colour,translate,cutout"),
    )
    step.run(1)
    graph = step._run_steps.get_concrete_function(
        tf.constant(1, tf.int32)
    ).graph.as_graph_def()
    nodes = [*graph.node]
    for function in graph.library.function:
        nodes += function.node_def
    return sum(node.op.startswith("Collective") for node in nodes)


def _fail(team: Team, index: int) -> None:
    """The last worker fails while the others go on."""
    if index == 1:
        raise errors.StorageError("The disk is full.")
    team.share(0)
    raise AssertionError("The others go on.")


def _fail_alone(index: int) -> None:
    """The last worker fails, and the others come too late to hear of it."""
    if index == 1:
        raise errors.DataError("There is none.")
    time.sleep(20)


def _differ(team: Team, index: int) -> None:
    team.check_same_data("the same")
    team.check_same_data(f"data of {min(index, 1)}")


def _leave_late(team: Team, index: int) -> dict[str, Any]:
    """The chief still saves when the other is done."""
    if team.is_chief:
        time.sleep(3)
    return {"left": time.time()}


def _come_apart(team: Team, index: int) -> None:
    """The last worker sees another number, and goes another way."""
    if index == 1:
        team.from_chief(0)
    else:
        team.vote()


def _diverge(
    index: int, directory: pathlib.Path, addresses: Sequence[str]
) -> int:
    """A whole run, in which all see a loss that is not finite, once."""
    models.MODELS["dcgan28"] = models.Model(
        tiny.build_generator, tiny.build_discriminator
    )
    cluster = {"worker": list(addresses)}
    task = {"type": "worker", "index": index}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    run, steps = train_step.TrainStep.run, []

    def run_and_diverge(self: train_step.TrainStep, num_steps: int) -> dict:
        metrics = run(self, num_steps)
        steps.append(int(self._state.global_step.numpy()))
        if steps.count(14) == 1 and steps[-1] == 14:
            metrics["d_loss"] = math.nan
        return metrics

    train_step.TrainStep.run = run_and_diverge
    config = Config(
        strategy="multi_worker",
        workdir=str(directory / "run"),
        batch_size=256,
        latent_dim=10,
        epochs=3,
        checkpoint_every_epochs=1,
        steps_per_loop=7,
    )
    heartbeat = Heartbeat(stall_timeout_secs=300)
    code = train.run(config.resolve(), heartbeat)
    result = json.dumps({"steps": steps})
    (directory / f"worker{index}.json").write_text(result)
    return code


def main(scenario: str, index: int, directory: str, *addresses: str) -> int:
    """Runs a scenario; returns the exit code."""
    if scenario == "diverge":
        return _diverge(index, pathlib.Path(directory), addresses)
    distribution.prepare_devices(num_logical_cpus=0, deterministic="auto")
    strategy = distribution.join_cluster(addresses, index)
    path = pathlib.Path(directory)
    result: Any = None
    code = 0
    try:
        with Team(strategy, index=index, num_workers=len(addresses)) as team:
            if scenario == "train":
                result = _train(team, path, index)
            elif scenario == "exchange":
                result = _exchange(team, index)
            elif scenario == "count_reductions":
                result = _count_reductions(team)
            elif scenario == "fail_alone":
                team_lib._LEAVE_SECS = 2.0
                _fail_alone(index)
            elif scenario == "leave_late":
                result = _leave_late(team, index)
            else:
                {
                    "fail": _fail,
                    "differ": _differ,
                    "come_apart": _come_apart,
                }[scenario](team, index)
        if scenario == "leave_late":
            result["after"] = time.time()
    except errors.TrainerError as error:
        result, code = str(error), error.exit_code
    (path / f"worker{index}.json").write_text(json.dumps(result))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
