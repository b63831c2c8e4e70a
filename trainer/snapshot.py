"""Takes a state in a moment, and writes it to a file while it changes.

`tf.train.Checkpoint.write` does both at once: four times longer than a copy
takes it walks over the objects and formats bytes, and the training stands still
for all of it. Here the walk is done once, beforehand, and the bytes are written
by whoever holds the copy.
"""

import secrets
from typing import NamedTuple

import keras
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import (
    TrackableObjectGraph,
)

# TensorFlow's names for what a checkpoint holds.
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"


class Snapshot(NamedTuple):
    """The values of all variables at one moment, in the host's memory.

    Attributes:
      keys: their names in a checkpoint, and that of the object graph.
      tensors: one for each key.
    """

    keys: list[str]
    tensors: list[tf.Tensor]

    def write(self, prefix: str) -> None:
        """Writes the bundle that `tf.train.Checkpoint.read` reads.

        Raises:
          OpError: it cannot be written.
        """
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=self.keys,
            shape_and_slices=[""] * len(self.keys),
            tensors=self.tensors,
        )


class Snapshots:
    """Takes snapshots of the variables of some objects."""

    def __init__(self, objects: tf.train.Checkpoint) -> None:
        """Looks for the variables, which must all exist by now.

        For that, TensorFlow writes a checkpoint to the host's memory, which
        needs the room of two for that moment.

        Args:
          objects: what holds them, at any depth.

        Raises:
          ValueError: there is something to be saved that is no variable with
            one value on all replicas.
        """
        graph = _object_graph(objects)
        message = TrackableObjectGraph.FromString(graph.numpy())
        variables = _variables_by_key(objects, message)
        self._keys = [*variables, _GRAPH_KEY]
        self._variables = list(variables.values())
        self._graph = graph

    def take(self) -> Snapshot:
        """Copies the values to the host; afterwards the variables may change.

        From the host's own memory nothing is copied here: whoever changes a
        variable whose value is held elsewhere makes a new buffer for it.
        """
        with tf.device("CPU:0"):
            values = [tf.identity(variable) for variable in self._variables]
        return Snapshot(self._keys, [*values, self._graph])


def _object_graph(objects: tf.train.Checkpoint) -> tf.Tensor:
    """Returns what a checkpoint says of its objects, a string."""
    directory = f"ram://{secrets.token_hex(8)}"
    try:
        objects.write(f"{directory}/state")
        (graph,) = tf.raw_ops.RestoreV2(
            prefix=f"{directory}/state",
            tensor_names=[_GRAPH_KEY],
            shape_and_slices=[""],
            dtypes=[tf.string],
        )
    finally:
        tf.io.gfile.rmtree(directory)
    return graph


def _variables_by_key(
    objects: tf.train.Checkpoint, graph: TrackableObjectGraph
) -> dict[str, tf.Variable]:
    """Finds the variable whose value each key of a checkpoint stands for."""
    variables = {}
    found: dict[int, object] = {0: objects}
    queue = [0]
    for number in queue:
        node, owner = graph.nodes[number], found[number]
        for attribute in node.attributes:
            variables[attribute.checkpoint_key] = _variable(
                owner, attribute.name
            )
        children = tf.train.TrackableView.children(owner)
        for child in node.children:
            if child.node_id not in found:
                found[child.node_id] = children[child.local_name]
                queue.append(child.node_id)
    return variables


def _variable(owner: object, attribute: str) -> tf.Variable:
    if isinstance(owner, keras.Variable):
        owner = owner.value
    if isinstance(owner, tf.distribute.DistributedValues):
        if owner.synchronization == tf.VariableSynchronization.ON_READ:
            raise ValueError(f"{owner.name} has another value on each replica.")
        owner = owner.values[0]
    if attribute != _VALUE or not isinstance(owner, tf.Variable):
        raise ValueError(f"{attribute} of {owner} is no variable's value.")
    return owner
