"""Finds numbers that are not finite, before they are kept for ever."""

from collections.abc import Iterator

import keras
import tensorflow as tf

from trainer import errors


class FiniteCheck:
    """Looks at the floating variables of some objects, on every replica here.

    The first look also traces a function, once: tenths of a second for some
    hundred variables. Then a look reads each variable once, in the memory of
    its own device, where it needs a quarter of the size of the largest float32
    variable on top, and brings one byte a variable to the host: 80 MB took 7 ms
    on two CPU cores, where it took 90 ms to write them.
    """

    def __init__(self, objects: tf.train.Checkpoint) -> None:
        """Looks for the variables, which must all exist by now.

        Args:
            objects: What holds them, at any depth.
        """
        copies = [
            (name, copy)
            for name, variable in _named_variables(objects)
            if variable.dtype.is_floating
            for copy in _copies(variable)
        ]
        self._names = [name for name, _ in copies]

        @tf.function(autograph=False)
        def are_finite() -> tf.Tensor:
            return tf.stack(
                [tf.reduce_all(tf.math.is_finite(copy)) for _, copy in copies]
            )

        self._are_finite = are_finite

    def check(self, step: int) -> None:
        """Refuses a state that must not be saved.

        Args:
            step: For the message.

        Raises:
            DivergedError: If a variable holds NaN or an infinity.
        """
        if (variable := self.first_bad()) is not None:
            raise errors.DivergedError(
                f"{variable} holds numbers that are not finite at step {step}"
            )

    def first_bad(self) -> str | None:
        """Names a variable that holds NaN or an infinity; None if none does.

        The name is the path that leads to it and, in brackets, its own.
        """
        results = self._are_finite().numpy()
        for name, is_finite in zip(self._names, results, strict=True):
            if not is_finite:
                return name
        return None


def _named_variables(
    objects: tf.train.Checkpoint,
) -> Iterator[tuple[str, tf.Variable]]:
    """Finds each variable once, by the shortest path that leads to it."""
    # By identity, with the objects themselves: some are made by this look and
    # would leave their number to the next one.
    seen: dict[int, object] = {id(objects): objects}
    queue: list[tuple[str, object]] = [("", objects)]
    for path, parent in queue:
        for child_name, child in tf.train.TrackableView.children(
            parent
        ).items():
            # A Keras variable is saved as its value, which is no child of it.
            if isinstance(child, keras.Variable):
                child = child.value
            if id(child) in seen:
                continue
            seen[id(child)] = child
            child_path = f"{path}/{child_name}".lstrip("/")
            queue.append((child_path, child))
            if isinstance(child, tf.Variable):
                yield f"{child_path} ({child.name})", child


def _copies(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    if isinstance(variable, tf.distribute.DistributedValues):
        return variable.values
    return (variable,)
