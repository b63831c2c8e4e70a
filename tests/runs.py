"""What a run left behind, read back for comparisons to the last bit."""

import json
import pathlib

import numpy as np
import tensorflow as tf

_TIMES = ("images_per_sec", "data_wait_secs", "save_secs", "failed_uploads")


def checkpoint_names(workdir: pathlib.Path) -> list[str]:
    """The committed checkpoints, the oldest first."""
    names = (path.name for path in (workdir / "checkpoints").glob("step-*"))
    # What is being written has a suffix, which may end in a digit.
    return sorted(name for name in names if name[5:].isdecimal())


def newest_step(workdir: pathlib.Path) -> int:
    """The step of the newest checkpoint."""
    return int(checkpoint_names(workdir)[-1].removeprefix("step-"))


def durable_step(workdir: pathlib.Path) -> int:
    """The step that the same command must go on after; 0 for none."""
    return newest_step(workdir) if checkpoint_names(workdir) else 0


def bundle(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of the newest checkpoint, by name."""
    newest = checkpoint_names(workdir)[-1]
    reader = tf.train.load_checkpoint(
        str(workdir / "checkpoints" / newest / "state")
    )
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }


def records(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def files(workdir: pathlib.Path, pattern: str) -> dict[str, bytes]:
    """The content of the files that match, by relative path."""
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.glob(pattern))
        if path.is_file()
    }


def assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Weights, slots, step, metrics (but for times) and pictures agree."""
    tensors, other_tensors = bundle(one), bundle(other)
    assert tensors.keys() == other_tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(
            value, other_tensors[name], err_msg=name, strict=True
        )
    assert _timeless(records(one)) == _timeless(records(other))
    # Without what a kill has left of a file that was being written.
    pictures = "samples/[!.]*"
    assert files(one, pictures) == files(other, pictures)


def _timeless(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in _TIMES} for r in lines]
