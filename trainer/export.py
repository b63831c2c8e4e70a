"""Exports a generator: `python -m trainer.export --workdir=runs/one`."""

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer import atomic_file, command_line, errors, options

if TYPE_CHECKING:
    import keras

    from trainer.stored_run import StoredRun

_HELP = """\
Exports the generator of a run, for use without this package.

usage: python -m trainer.export --workdir=<directory> [--flag=value ...]

Writes saved_model/ (needs TensorFlow alone; its signature serving_default takes
latents, and labels if the model has classes, and returns samples in [-1, 1]),
generator.keras, and README.md, which says what it was made from and how good it
is. Both are loaded in a new process and compared before they are there.

{flags}

exit codes: 0 done, 2 usage, 4 no good checkpoint, 6 storage."""

_LISTED = "`python -m trainer.export --help` lists the flags."
_CHECK_TIMEOUT_SECS = 600
_NUM_COMPARED = 4


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line."""

    workdir: str | None = command_line.workdir_flag()
    step: str = command_line.step_flag()
    output: str | None = options.declare(
        False,
        "Run",
        None,
        "Directory to make; it must not exist.",
        "directory",
        default_text="export/<step> in the run's (local) directory",
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, program name first; returns its exit code.

    TensorFlow is imported only after the flags have turned out to be valid.
    """
    if command_line.wants_help(argv):
        command_line.print_help(_HELP.format(flags=options.help_text(Flags)))
        return 0
    return command_line.exit_code_of(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    given = Flags(**command_line.values(Flags, argv, _LISTED))
    workdir = command_line.require_workdir(given.workdir)
    command_line.configure_logging()
    from trainer import stored_run

    with contextlib.ExitStack() as stack:
        run = stored_run.open_run(workdir, given.step, stack)
        default = run.directory.root / "export" / run.checkpoint.name
        output = pathlib.Path(given.output or default)
        if output.exists():
            raise errors.UsageError(
                f"{output} exists already. Choose another --output, or remove"
                " it."
            )
        generator = run.build_generator()
        atomic_file.make_directory(output.parent)
        staging = output.with_name(f".{output.name}-{secrets.token_hex(4)}")
        try:
            _write(run, generator, staging)
            _check(staging)
            os.rename(staging, output)
        except OSError as error:
            raise atomic_file.storage_error("write", output, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    print(f"Wrote {output}: loaded in a new process, it makes the same.")
    return 0


def _serving_function(
    generator: "keras.Model", num_classes: int
) -> tuple[Any, dict[str, Any]]:
    """Returns the signature's function, and what it takes by name."""
    import tensorflow as tf

    names = ["latents", "labels"][: len(generator.inputs)]
    specs = {
        name: tf.TensorSpec([None, *i.shape[1:]], i.dtype, name=name)
        for name, i in zip(names, generator.inputs, strict=True)
    }

    @tf.function
    def serve(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        if "labels" in inputs:
            # Or an embedding would be of zeros, or of another class.
            labels = inputs["labels"]
            tf.debugging.Assert(
                tf.reduce_all((labels >= 0) & (labels < num_classes)),
                [f"labels must be in 0..{num_classes - 1}, not", labels],
            )
        values = [inputs[name] for name in names]
        samples = generator(
            values if len(values) > 1 else values[0], training=False
        )
        return {"samples": tf.cast(samples, tf.float32)}

    return serve, specs


def _write(
    run: "StoredRun", generator: "keras.Model", directory: pathlib.Path
) -> None:
    import tensorflow as tf

    from trainer import exported_check, generation

    serve, specs = _serving_function(generator, run.num_classes)
    module = tf.Module()
    module.generator = generator
    tf.saved_model.save(
        module,
        str(directory / exported_check.SAVED_MODEL),
        signatures=serve.get_concrete_function(**specs),
    )
    generator.save(directory / exported_check.KERAS_FILE)
    made = generation.Generation(generator)
    latents = made.latents(
        seed=run.config.seed, first=0, count=_NUM_COMPARED, purpose="export"
    )
    inputs: dict[str, Any] = {"latents": latents}
    if "labels" in specs:
        inputs["labels"] = np.arange(_NUM_COMPARED, dtype=np.int32) % (
            run.num_classes
        )
    np.savez(
        directory / exported_check.EXPECTED,
        samples=made.samples(latents, inputs.get("labels")),
        **inputs,
    )
    (directory / "README.md").write_text(_card(run, specs))


def _check(directory: pathlib.Path) -> None:
    from trainer import exported_check

    try:
        result = subprocess.run(
            [sys.executable, "-m", "trainer.exported_check", str(directory)],
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_SECS,
        )
    except subprocess.TimeoutExpired as error:
        raise errors.StalledError(
            "A new process has not loaded what was exported within"
            f" {_CHECK_TIMEOUT_SECS} s, and it is removed. Try again where the"
            " machine does less, or has more memory."
        ) from error
    if result.returncode:
        said = (result.stdout or result.stderr).strip().splitlines()
        raise errors.CheckpointError(
            "What was exported is not what was trained, and is removed:"
            f" {said[-1] if said else result.returncode}"
        )
    (directory / exported_check.EXPECTED).unlink()


def _card(run: "StoredRun", specs: dict) -> str:
    """Says what the generator is, made from, and worth."""
    config = run.config
    inputs = "\n".join(
        f"- `{name}`: {spec.dtype.name} {list(spec.shape)}"
        for name, spec in specs.items()
    )
    settings = json.dumps(dataclasses.asdict(config), indent=2)
    labels, call = "", "latents=latents"
    if "labels" in specs:
        labels = f"labels = tf.range(16) % {run.num_classes}\n"
        call += ", labels=labels"
    return f"""\
# Generator of {config.model}, trained on {config.dataset}

Step {run.checkpoint.step}, epoch {run.epoch}\
{" (the averaged weights)" if config.ema_half_life_images else ""}; \
{run.checkpoint.host_state["images_seen"]:,} images seen; seed {config.seed}; \
data {run.checkpoint.host_state["data_digest"]}.

## Use

`saved_model/` needs TensorFlow alone; `generator.keras` needs `import
trainer.models` first. Latents are drawn from N(0, 1); samples are in [-1, 1].\
{_classes(run) if labels else ""}

{inputs}

```
loaded = tf.saved_model.load("saved_model")
generator = loaded.signatures["serving_default"]
latents = tf.random.normal([16, {config.latent_dim}])
{labels}samples = generator({call})["samples"]
```

## How good it is

{_evaluations(run)}

## Settings

```
{settings}
```
"""


def _classes(run: "StoredRun") -> str:
    text = f" Labels\nare 0 to {run.num_classes - 1}"
    names = run.checkpoint.host_state.get("class_names")
    # Digits are called what they are.
    if names and names != [str(i) for i in range(len(names))]:
        listed = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        text += f": {listed}"
    return f"{text}."


def _evaluations(run: "StoredRun") -> str:
    """Returns what was measured of this step, as a table each."""
    texts = []
    measured = run.directory.evaluations
    for text in (
        run.read_metrics(),
        measured.read_text() if measured.exists() else "",
    ):
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # A torn last line.
                record = json.loads(line)
                if (
                    record.get("kind") == "evaluation"
                    and record["step"] == run.checkpoint.step
                ):
                    texts.append(_evaluation(record))
    return "\n\n".join(texts) or (
        "Not measured. `python -m trainer.evaluate` measures it."
    )


def _features(record: dict) -> str:
    """Returns what is known of the features; old records tell nothing."""
    description = record.get("features_description")
    return f" ({description})" if description else ""


def _evaluation(record: dict) -> str:
    rows = [
        f"| {name} | {value} | {record[f'{name}_floor']} |"
        for name, value in record.items()
        if f"{name}_floor" in record
    ]
    return "\n".join(
        [
            f"{record['num_fake']:,} fakes against {record['num_real']:,} real"
            f" samples ({record['split']}), features {record['features']}"
            f"{_features(record)}, seed {record['evaluation_seed']}; floor:"
            f" {record['num_floor']:,} real samples against as many others.",
            "",
            "| | value | floor |",
            "| --- | --- | --- |",
            *rows,
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
