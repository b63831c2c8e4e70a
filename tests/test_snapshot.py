"""A snapshot is what the variables were, whatever becomes of them."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from trainer import distribution
from trainer.snapshot import Snapshots


def _contents(prefix: str) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(prefix)
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
    }


def _assert_same(one: str, other: str) -> None:
    left, right = _contents(one), _contents(other)
    assert left.keys() == right.keys()
    for key, value in left.items():
        np.testing.assert_array_equal(value, right[key], key, strict=True)


def _state_and_step(num_replicas: int, **settings: object) -> tuple:
    """Networks, optimizers, scales, an average and a penalty: all there is."""
    return tiny.make_micro(
        num_replicas,
        state_settings={"precision": "mixed_float16"},
        penalty="r1",
        ema_half_life_images=100,
        **settings,
    )


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_it_is_written_as_tensorflow_writes_the_state_itself(
    tmp_path: pathlib.Path, num_replicas: int
) -> None:
    state, step = _state_and_step(num_replicas)
    step.run(1)
    objects = state.as_checkpoint()
    Snapshots(objects).take().write(str(tmp_path / "ours"))
    objects.write(str(tmp_path / "theirs"))
    _assert_same(str(tmp_path / "ours"), str(tmp_path / "theirs"))
    assert len(_contents(str(tmp_path / "ours"))) > len(state.variables) // 2
    resumed, _ = _state_and_step(num_replicas)
    resumed.as_checkpoint().read(str(tmp_path / "ours")).assert_consumed()
    for value, other in zip(
        tiny.values(resumed), tiny.values(state), strict=True
    ):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("num_replicas", [1, 2])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_training_does_not_change_what_was_taken(
    tmp_path: pathlib.Path, num_replicas: int, jit_compile: bool
) -> None:
    state, step = _state_and_step(num_replicas, jit_compile=jit_compile)
    objects = state.as_checkpoint()
    snapshots = Snapshots(objects)
    step.run(1)
    objects.write(str(tmp_path / "then"))
    taken = snapshots.take()
    step.run(3)
    for variable in state.variables:
        variable.assign(tf.zeros_like(variable))
    taken.write(str(tmp_path / "taken"))
    _assert_same(str(tmp_path / "taken"), str(tmp_path / "then"))


def test_what_differs_between_replicas_is_refused() -> None:
    strategy = distribution.make_strategy("mirrored", num_logical_cpus=2)
    with strategy.scope():
        variable = tf.Variable(
            1.0,
            trainable=False,
            name="metric",
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
    with pytest.raises(ValueError, match="metric"):
        Snapshots(tf.train.Checkpoint(metric=variable))


def test_nothing_is_left_in_memory_of_the_look_at_the_objects() -> None:
    def num_files() -> int:
        return len(tf.io.gfile.listdir("ram://"))

    tf.io.gfile.makedirs("ram://")
    before = num_files()
    Snapshots(tf.train.Checkpoint(value=tf.Variable([1.0])))
    assert num_files() == before
