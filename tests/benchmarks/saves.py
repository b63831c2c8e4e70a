"""What a save costs: how long training stands still, and until it is durable.

  python -m tests.benchmarks.saves --dataset=mnist --data_dir=DIR

is a whole run in a bucket, `trainer.train` itself, that saves every --steps
steps while it trains on. The bucket is the tests' own server, in a process of
its own, with a network's latency. Every other save is TensorFlow's
CheckpointManager's, of the same variables.
"""

import collections
import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import tensorflow as tf
from absl import flags

from tests.benchmarks import bucket_server, command, turns
from trainer import train
from trainer.assembly import networks, steps
from trainer.background import BackgroundSaver
from trainer.config import Config
from trainer.heartbeat import Heartbeat
from trainer.outputs import Outputs
from trainer.storage.local import LocalStore
from trainer.storage.mirror import Mirror
from trainer.storage.remote import RemoteStore
from trainer.train_state import TrainState

_LATENCY_MS = flags.DEFINE_float(
    "latency_ms", 20.0, "Before each answer of the bucket.", 0.0
)
# In a run, uploads are a minute apart; here each save must not wait for that.
_SECS_BETWEEN_ROUNDS = 0.1


class _Watch:
    """Notes the seconds of each save, and lets TensorFlow do every other one.

    Attributes:
        secs: A list for each thing that is measured.
    """

    def __init__(self, directory: Path, num_kept: int) -> None:
        self.secs: dict[str, list[float]] = collections.defaultdict(list)
        self._directory = directory
        self._num_kept = num_kept
        self._num_saves = 0
        self._flush_secs = 0.0
        self._start_secs: dict[str, float] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Looks at the parts of every run while this is entered."""
        with contextlib.ExitStack() as stack:
            for owner, name, watched in (
                (networks, "build_state", self._build_state),
                (Outputs, "flush", self._flush),
                (BackgroundSaver, "save", self._save),
                (LocalStore, "commit", self._commit("here")),
                (RemoteStore, "commit", self._commit("bucket")),
            ):
                wrapped = _wrapped(getattr(owner, name), watched)
                stack.enter_context(mock.patch.object(owner, name, wrapped))
            yield

    def _build_state(
        self, build: Callable[..., TrainState], *args: Any, **kwargs: Any
    ) -> TrainState:
        state = build(*args, **kwargs)
        self._manager = tf.train.CheckpointManager(
            state.as_checkpoint(), str(self._directory), self._num_kept
        )
        return state

    def _flush(self, flush: Callable[..., None], outputs: Outputs) -> None:
        # What a save begins with.
        self._flush_secs = time.monotonic()
        flush(outputs)

    def _save(
        self,
        save: Callable[..., None],
        saver: BackgroundSaver,
        step: int,
        host_state: dict[str, Any],
    ) -> None:
        self._num_saves += 1
        if self._num_saves % 2:
            start_secs = time.monotonic()
            self._manager.save(checkpoint_number=step)
            secs = time.monotonic() - start_secs
            self.secs["theirs"].append(secs)
            saver.standstill_secs = secs
            return
        self._start_secs[f"step-{step:09d}"] = self._flush_secs
        save(saver, step, host_state)
        self.secs["ours"].append(time.monotonic() - self._flush_secs)

    def _commit(self, place: str) -> Callable[..., None]:
        def watched(
            commit: Callable[..., None], store: object, *args: Any
        ) -> None:
            commit(store, *args)
            # Others are trials, at the start.
            if start_secs := self._start_secs.get(args[1].name):
                self.secs[place].append(time.monotonic() - start_secs)

        return watched


def _wrapped(
    function: Callable[..., Any], watched: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns a function, or method, that calls another one with itself."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return watched(function, *args, **kwargs)

    return wrapper


def _measure(config: Config) -> dict[str, list[float]]:
    """Trains, and returns the seconds of each save."""
    root = Path(config.local_root)
    watch = _Watch(root.with_name("theirs"), config.keep_checkpoints)
    make_schedule = steps.make_schedule

    def make_short_epochs(*args: Any) -> Any:
        return dataclasses.replace(
            make_schedule(*args), steps_per_epoch=command.STEPS.value
        )

    pause = {"seconds_between_file_uploads": _SECS_BETWEEN_ROUNDS}
    with (
        watch.watching(),
        mock.patch.object(steps, "make_schedule", make_short_epochs),
        mock.patch.dict(Mirror.__init__.__kwdefaults__, pause),
        Heartbeat(stall_timeout_secs=config.stall_timeout_secs) as heartbeat,
    ):
        train.run(config, heartbeat)
    lines = (root / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line)["save_secs"] for line in lines]
    watch.secs["logged"] = [secs for secs in logged if secs][1::2]
    return watch.secs


def _table(secs: dict[str, list[float]]) -> list[str]:
    """Returns a table in milliseconds, with the ratios of neighbours."""
    header = ["", "median", "min to max", "of TensorFlow's", "first save"]
    lines = [_line(header), _line(["---"] * len(header))]
    for key, name in (
        ("theirs", "stands still for TensorFlow's CheckpointManager.save"),
        ("ours", "stands still for ours"),
        ("logged", "the same as `save_secs` in metrics.jsonl"),
        ("here", "until ours is durable on the disk"),
        ("bucket", "until ours is durable in the bucket"),
    ):
        first, *rest = secs[key][: len(secs["ours"])]
        baseline = secs["theirs"][1:]
        ratios = turns.ratios(rest, baseline, more_is_better=False)
        cells = [name, *_median_and_spread([1e3 * s for s in rest])]
        cells += [f"{statistics.median(ratios):.3g}", f"{1e3 * first:.3g}"]
        lines.append(_line(cells))
    return lines


def _median_and_spread(values: Sequence[float]) -> list[str]:
    median = f"{statistics.median(values):.4g}"
    return [median, f"{min(values):.4g} to {max(values):.4g}"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _print_table() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        bucket_server.start(_LATENCY_MS.value / 1e3) as url,
    ):
        os.environ["STORAGE_EMULATOR_HOST"] = url
        config = Config(
            workdir="gs://bucket/run",
            local_dir=f"{directory}/ours",
            dataset=command.DATASET.value,
            data_dir=command.DATA_DIR.value,
            batch_size=command.BATCH_SIZE.value,
            # Each of both once more, for the first save is apart, and one that
            # no record follows.
            epochs=2 * (command.ROUNDS.value + 1) + 1,
            checkpoint_every_epochs=1,
            # Ours are the even ones; what is to be kept is uploaded even if a
            # newer one is there by then.
            keep_every_epochs=2,
            sample_every_epochs=10**6,
            steps_per_loop=command.STEPS.value,
        ).resolve()
        config.validate()
        secs = _measure(config)
    print(
        "\n## Saves\n\n"
        f"Milliseconds, of {command.ROUNDS.value} saves each after the first. "
        f"Training goes on beside them, {command.STEPS.value} steps from one "
        f"to the next. The bucket answers after {_LATENCY_MS.value:g} ms. "
        "TensorFlow's is not durable by then: it does not sync.\n",
        *_table(secs),
        sep="\n",
        flush=True,
    )


if __name__ == "__main__":
    command.run_body("Saves beside training", _print_table)
