"""How to apply Adam: by Keras, by TensorFlow's fused op, or written out.

  python -m tests.benchmarks.optimizers

measures one update of both networks of the DCGAN, on one replica and on two,
called in replica context as the train step does. Keras' optimizer then sums the
gradients over the replicas by itself, which is counted: it cannot be had
without. The others take gradients that are summed already; a packed sum, as in
the train step, is a row of its own.
"""

from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from tests.benchmarks import command, ours
from tests.benchmarks.turns import Group
from trainer import optimizers
from trainer.assembly import datasets, networks

# An update takes so much less than a step.
_STEPS_FACTOR = 10
_ADAM = {
    "learning_rate": 1e-4,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-7,
}

# Applies gradients to the variables that it was made for.
Update = Callable[[Sequence[tf.Tensor]], None]


def loop(*, kind: str, **settings: object) -> Callable[[int], None]:
    """Returns what updates both networks some times.

    Args:
      kind: a key of `_KINDS`.
      **settings: of `ours.configure`.
    """
    config = ours.configure(**settings)
    strategy = ours.start_devices(config)
    shape = datasets.load_data(config).sample_shape
    state = networks.build_state(config, strategy, shape)
    both = [
        [v.value for v in network.trainable_variables]
        for network in (state.generator, state.discriminator)
    ]
    with strategy.scope():
        updates = [_KINDS[kind](variables) for variables in both]
        # Variables: what follows from constants would be computed only once.
        gradients = [
            [tf.Variable(0.01 * tf.ones(v.shape)) for v in variables]
            for variables in both
        ]

    def update_replica() -> None:
        for update, values in zip(updates, gradients, strict=True):
            # With their device, which a variable's value does not tell.
            update([tf.identity(v) for v in values])

    @tf.function
    def run_updates(num_updates: tf.Tensor) -> None:
        for _ in tf.range(num_updates):
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            strategy.run(update_replica)

    def run(num_updates: int) -> None:
        run_updates(tf.constant(num_updates))
        for variables in both:
            variables[-1].numpy()  # Waits for the GPU.

    return run


def _keras(variables: Sequence[tf.Variable]) -> Update:
    optimizer = keras.optimizers.Adam(**_ADAM)
    optimizer.build(variables)
    return optimizer.apply


def _fused(variables: Sequence[tf.Variable]) -> Update:
    return optimizers.Adam(variables, **_ADAM).apply


def _written_out(variables: Sequence[tf.Variable]) -> Update:
    count = tf.Variable(0, dtype=tf.int64, trainable=False)
    slots = [
        [tf.Variable(tf.zeros(v.shape), trainable=False) for _ in range(2)]
        for v in variables
    ]
    beta_1, beta_2 = _ADAM["beta_1"], _ADAM["beta_2"]

    def update(gradients: Sequence[tf.Tensor]) -> None:
        power = tf.cast(count.assign_add(1), tf.float32)
        rate = _ADAM["learning_rate"] * tf.sqrt(1.0 - tf.pow(beta_2, power))
        rate /= 1.0 - tf.pow(beta_1, power)
        for variable, (m, v), gradient in zip(
            variables, slots, gradients, strict=True
        ):
            new_m = beta_1 * m + (1.0 - beta_1) * gradient
            new_v = beta_2 * v + (1.0 - beta_2) * tf.square(gradient)
            m.assign(new_m)
            v.assign(new_v)
            variable.assign_sub(
                rate * new_m / (tf.sqrt(new_v) + _ADAM["epsilon"])
            )

    return update


def _packed_sum(variables: Sequence[tf.Variable]) -> Update:
    sums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]

    def update(gradients: Sequence[tf.Tensor]) -> None:
        replica = tf.distribute.get_replica_context()
        values = replica.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
        for total, value in zip(sums, values, strict=True):
            total.assign(value)  # Or nobody would need it.

    return update


_KINDS: dict[str, Callable[[Sequence[tf.Variable]], Update]] = {
    "Keras": _keras,
    "fused": _fused,
    "written out": _written_out,
    "sum over the replicas": _packed_sum,
}


def _make_groups() -> Iterator[Group]:
    for num_replicas in (1, 2):
        yield Group(
            f"One update, replicas: {num_replicas}",
            "Milliseconds for both networks. Keras sums the gradients over the"
            " replicas as well; to the others, add the sum's row.",
            [
                command.contestant(
                    kind,
                    "optimizers.loop",
                    _STEPS_FACTOR * command.STEPS.value,
                    kind=kind,
                    num_replicas=num_replicas,
                )
                for kind in _KINDS
            ],
        )


if __name__ == "__main__":
    command.run("Applying Adam", _make_groups)
