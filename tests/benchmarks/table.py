"""Training speed: images a second, and ratios to the tutorial's loop.

  python -m tests.benchmarks.table --dataset=mnist --data_dir=DIR

prints a Markdown table for each group of contestants as soon as it is measured;
`--groups` chooses among them. `tests.benchmarks.turns` says how it measures.
"""

import importlib.util
from collections.abc import Callable, Iterator

from absl import flags

from tests.benchmarks import command
from tests.benchmarks.command import contestant
from tests.benchmarks.turns import Contestant, Group

_BATCH_SIZES = (64, 256, 1024)
_STEPS_PER_LOOP = (1, 10, 100)
# In a turn, so many times --steps, of what takes so much less than a step.
_PIPELINE_FACTOR = 50
_NOTHING_FACTOR = 200


def precision() -> Iterator[Group]:
    """The precisions that layers may compute in."""
    yield _rates(
        "Precision",
        "Ours as `trainer.main` runs it.",
        _tutorial(),
        *[
            _ours(f"ours, {name}", precision=name)
            for name in ("float32", "mixed_bfloat16", "mixed_float16")
        ],
    )


def jit() -> Iterator[Group]:
    """With and without XLA."""
    yield _rates(
        "XLA",
        "`--jit_compile`, which is by default on for GPUs and off for CPUs.",
        _tutorial(),
        *[
            _ours(
                f"ours, {name}, XLA {choice}",
                precision=name,
                jit_compile=choice,
            )
            for name in ("float32", "mixed_bfloat16", "mixed_float16")
            for choice in ("off", "on")
        ],
    )


def steps_per_loop() -> Iterator[Group]:
    """How many steps run for one call from Python."""
    yield _rates(
        "Steps per loop",
        "Turns are of 100 steps or more.",
        _tutorial(num_steps=_long_turn()),
        *[
            _ours(f"ours, {number} a loop", _long_turn(), steps_per_loop=number)
            for number in _STEPS_PER_LOOP
        ],
    )


def augmentation() -> Iterator[Group]:
    """What it costs to augment all that the discriminator sees."""
    all_of_them = "flip,colour,translate,cutout"
    yield _rates(
        "Augmentation",
        "`--augment`, without a penalty, against a step without it.",
        _ours("none"),
        *[_ours(names, augment=names) for names in ("translate", all_of_them)],
        _ours(
            f"{all_of_them}, adaptive", augment=all_of_them, augment_target=0.6
        ),
    )


def best() -> Iterator[Group]:
    """What a GPU is fastest with: everything at once."""
    for size in _BATCH_SIZES:
        yield _rates(
            f"Everything at once, batch {size}",
            "XLA, 100 steps a loop, half precision.",
            _tutorial(num_steps=_long_turn(), batch_size=size),
            *[
                _ours(
                    f"ours, {name}",
                    _long_turn(),
                    batch_size=size,
                    precision=name,
                    jit_compile="on",
                    steps_per_loop=100,
                )
                for name in ("mixed_bfloat16", "mixed_float16")
            ],
            batch_size=size,
        )


def batch() -> Iterator[Group]:
    """Small and large batches, each against the tutorial's loop at that."""
    for size in _BATCH_SIZES:
        yield _rates(
            f"Batch {size}",
            "Both at this batch size.",
            _tutorial(batch_size=size),
            _ours("ours", batch_size=size),
            batch_size=size,
        )


def replicas() -> Iterator[Group]:
    """One and two replicas, at the same global batch."""
    yield _rates(
        "Replicas",
        "They share one global batch. Replicas are GPUs, or logical CPUs, which"
        " share the cores: those show what the distribution costs.",
        _ours("1 replica, mirrored"),
        _ours("1 replica, one_device", strategy="one_device"),
        _ours("2 replicas, mirrored", num_replicas=2),
    )


def pipeline() -> Iterator[Group]:
    """The input pipeline alone, as a multiple of the training rate."""
    num_steps = _PIPELINE_FACTOR * command.STEPS.value
    yield _rates(
        "Input pipeline alone",
        "Training, against the same loop around steps that fetch their batch"
        " (to the GPU, where there is one) and compute nothing.",
        _ours("our training"),
        contestant(
            "our batches alone",
            "ours.loop_of_nothing",
            num_steps,
            real_batches=True,
            clocks=False,
        ),
        contestant(
            "the tutorial's batches alone", "tutorial.batches_alone", num_steps
        ),
    )


def checkpoint() -> Iterator[Group]:
    """A checkpoint save, durable and verified, against TensorFlow's."""
    yield Group(
        "Checkpoint save",
        "Networks, optimizers and step, the newest three kept. Ours also syncs"
        " to the disk, takes checksums, and reads back what it wrote.",
        [
            Contestant(
                "TensorFlow's CheckpointManager",
                "tests.benchmarks.tutorial:checkpoint_save",
                {},
                command.STEPS.value,
            ),
            contestant("ours", "ours.checkpoint_save"),
        ],
    )


def pytorch() -> Iterator[Group]:
    """The same networks and update in PyTorch."""
    if not importlib.util.find_spec("torch"):
        print("\nPyTorch is not installed: nothing to compare with.")
        return

    def variant(
        name: str, *, channels_last: bool, compiled: bool
    ) -> Contestant:
        return contestant(
            f"PyTorch, {name}",
            "pytorch_loop.loop",
            channels_last=channels_last,
            compiled=compiled,
        )

    yield _rates(
        "PyTorch",
        "Same networks and update, float32, its data on the device already.",
        _tutorial(),
        _ours("ours"),
        variant("eager", channels_last=False, compiled=False),
        variant("channels-last", channels_last=True, compiled=False),
        variant("channels-last, compiled", channels_last=True, compiled=True),
    )


def host() -> Iterator[Group]:
    """What the loop costs the host, as a share of the step."""
    loops_of_nothing = [
        contestant(
            f"nothing, {number} a loop{'' if clocks else ', no clocks'}",
            "ours.loop_of_nothing",
            _NOTHING_FACTOR * command.STEPS.value,
            steps_per_loop=number,
            real_batches=False,
            clocks=clocks,
        )
        for number, clocks in (
            *((n, True) for n in _STEPS_PER_LOOP),
            (100, False),
        )
    ]
    yield Group(
        "Host overhead",
        "Milliseconds a step. The rows with nothing run the very loop that"
        " trains, with batches that cost nothing and steps that compute"
        " nothing: their ratios are the loop's share of a step. The two clocks"
        " are those of `data_wait_secs`. What it costs to launch the step's own"
        " ops is not in it; a GPU that is not busy all the time shows that."
        " The last row adds what a run does around its calls into TensorFlow:"
        " progress, metrics and events.",
        [
            _ours("step, 100 a loop", _long_turn(), steps_per_loop=100),
            _ours("step, 1 a loop", _long_turn(), steps_per_loop=1),
            *loops_of_nothing,
            contestant(
                "nothing, 10 a loop, in a whole run",
                "ours.run_of_nothing",
                _NOTHING_FACTOR * command.STEPS.value,
                steps_per_loop=10,
            ),
        ],
    )


def _rates(
    title: str,
    note: str,
    *contestants: Contestant,
    batch_size: int | None = None,
) -> Group:
    return Group(
        title, note, contestants, batch_size or command.BATCH_SIZE.value
    )


def _tutorial(**arguments: int) -> Contestant:
    return contestant("tutorial", "tutorial.loop", **arguments)


def _ours(
    name: str, num_steps: int | None = None, **settings: object
) -> Contestant:
    return contestant(name, "ours.loop", num_steps, **settings)


def _long_turn() -> int:
    return max(command.STEPS.value, *_STEPS_PER_LOOP)


_GROUPS: dict[str, Callable[[], Iterator[Group]]] = {
    group.__name__: group
    for group in (
        precision,
        jit,
        steps_per_loop,
        batch,
        replicas,
        pipeline,
        checkpoint,
        pytorch,
        host,
        augmentation,
        best,
    )
}
_CHOSEN = flags.DEFINE_list(
    "groups",
    # On CPUs, XLA makes the last one pointless and very slow.
    [name for name in _GROUPS if name != "best"],
    "Which tables to print.",
)
flags.register_validator(
    "groups",
    lambda names: set(names) <= _GROUPS.keys(),
    f"Choose among {', '.join(_GROUPS)}.",
)


def _make_groups() -> Iterator[Group]:
    for name in _CHOSEN.value:
        yield from _GROUPS[name]()


if __name__ == "__main__":
    command.run("Training speed", _make_groups)
