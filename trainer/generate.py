"""Makes samples with a run: `python -m trainer.generate --workdir=runs/one`."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer import atomic_file, command_line, errors, options

if TYPE_CHECKING:
    from trainer.generation import Generation
    from trainer.stored_run import StoredRun

_HELP = """\
Draws what the generator of a run makes.

usage: python -m trainer.generate --workdir=<directory> [--flag=value ...]

examples:
  python -m trainer.generate --workdir=runs/one --num_samples=64
      One grid of 64 images.
  python -m trainer.generate --workdir=runs/one --kind=files --num_samples=10000
      As many single files, sample_000000.png and so on.
  python -m trainer.generate --workdir=runs/one --kind=interpolation
      A GIF that goes from one image to the next.

Image number n is the same in every grid and however many there are: it depends
on the seed, its class and the truncation alone.

{flags}

exit codes: 0 done, 2 usage, 4 no good checkpoint, 6 storage."""

_LISTED = "`python -m trainer.generate --help` lists the flags."
_PURPOSE = "generated samples"
_MAX_IN_GRID = 4096
_PER_CALL = 64
_FRAME_MSECS = 50


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line."""

    workdir: str | None = options.declare(
        False,
        "Run",
        None,
        "Directory of the run, or gs://bucket/prefix; it is only read.",
        "directory",
        default_text="none, it must be given",
    )
    step: str = options.declare(
        False,
        "Run",
        "newest",
        "Which checkpoint: newest; best, of the evaluations during training; or"
        " a step.",
        "step",
        pattern=r"newest|best|\d{1,12}",
        rule="newest, best or a step",
    )
    output: str | None = options.declare(
        False,
        "Samples",
        None,
        "Directory for the images.",
        "directory",
        default_text="generated/ in the run's (local) directory",
    )
    kind: str = options.declare(
        False,
        "Samples",
        "grid",
        "grid: one picture of all; files: one for each; interpolation: a GIF"
        " that goes round from each sample to the next.",
        choices=("grid", "files", "interpolation"),
    )
    num_samples: int = options.declare(
        False,
        "Samples",
        16,
        "How many; of each class, if --labels names some.",
        "samples",
        minimum=1,
        maximum=10_000_000,
    )
    seed: int = options.declare(
        False,
        "Samples",
        0,
        "Decides the latents.",
        "seed",
        minimum=0,
        maximum=2**31 - 1,
    )
    truncation: float | None = options.declare(
        False,
        "Samples",
        None,
        "Draw latents from a normal distribution that is cut off so far from"
        " 0: less variety, often cleaner samples.",
        "bound",
        minimum=0.05,
        maximum=10,
        default_text="none",
    )
    labels: str | None = options.declare(
        False,
        "Samples",
        None,
        "Classes of a class-conditional model, as numbers with commas between,"
        " or all.",
        "classes",
        pattern=r"all|\d{1,6}(,\d{1,6})*",
        rule="all, or numbers with commas between",
        default_text="all, for such a model",
    )
    num_frames: int = options.declare(
        False,
        "Samples",
        16,
        "From one sample of the interpolation to the next.",
        "frames",
        minimum=1,
        maximum=1000,
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
    from trainer import generation, stored_run

    with contextlib.ExitStack() as stack:
        run = stored_run.open_run(workdir, given.step, stack)
        generator = run.build_generator()
        _check_images(generator.output_shape)
        labels = _labels(given, run, generation.takes_labels(generator))
        _check_count(given, labels)
        made = generation.Generation(generator)
        output = pathlib.Path(given.output or run.directory.root / "generated")
        atomic_file.make_directory(output)
        write = {
            "grid": _write_grid,
            "files": _write_files,
            "interpolation": _write_interpolation,
        }[given.kind]
        print(write(given, made, labels, output))
    return 0


def _check_images(shape: tuple[int | None, ...]) -> None:
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise errors.UsageError(
            f"This run makes samples of shape {list(shape[1:])}, which are no"
            " images. Export its generator instead."
        )


def _labels(given: Flags, run: "StoredRun", takes_labels: bool) -> list[int]:
    """Returns the classes to draw; none for a model that knows none."""
    if not takes_labels:
        if given.labels is not None:
            raise errors.UsageError(
                f"--labels={given.labels} has no use: --model="
                f"{run.config.model} was not trained with classes. Leave it"
                " out."
            )
        return []
    if given.labels in (None, "all"):
        return list(range(run.num_classes))
    labels = [int(label) for label in str(given.labels).split(",")]
    if max(labels) >= run.num_classes:
        raise errors.UsageError(
            f"--labels={given.labels}: the classes are 0 to"
            f" {run.num_classes - 1}. Choose among them."
        )
    return labels


def _check_count(given: Flags, labels: list[int]) -> None:
    """Refuses what would not fit into one picture, or into memory."""
    count, what = given.num_samples * max(len(labels), 1), "images in a grid"
    if given.kind == "interpolation":
        count, what = count * given.num_frames, "frames in a GIF"
    if given.kind != "files" and count > _MAX_IN_GRID:
        raise errors.UsageError(
            f"{count:,} {what} are more than {_MAX_IN_GRID:,}. Lower"
            " --num_samples, or take --kind=files."
        )


def _images(
    given: Flags, made: "Generation", label: int | None
) -> Iterator[np.ndarray]:
    """Yields the images of one class, some at a time: uint8 [b, H, W, C]."""
    from trainer import samples

    for start in range(0, given.num_samples, _PER_CALL):
        count = min(_PER_CALL, given.num_samples - start)
        latents = _latents(given, made, start, count)
        labels = None if label is None else np.full(count, label, np.int32)
        yield samples.to_uint8(made.samples(latents, labels))


def _latents(
    given: Flags, made: "Generation", first: int, count: int
) -> np.ndarray:
    from trainer import generation

    latents = made.latents(
        seed=given.seed, first=first, count=count, purpose=_PURPOSE
    )
    if given.truncation is None:
        return latents
    return generation.truncate(latents, given.truncation)


def _write_grid(
    given: Flags, made: "Generation", labels: list[int], output: pathlib.Path
) -> str:
    from trainer import samples

    classes: list[int | None] = [*labels] or [None]
    images = [
        batch for label in classes for batch in _images(given, made, label)
    ]
    path = output / f"grid_seed_{given.seed}.png"
    # Classes are rows.
    grid = samples.make_grid(
        np.concatenate(images), columns=given.num_samples if labels else None
    )
    atomic_file.write_bytes(path, samples.to_png(grid))
    return f"Wrote {path}."


def _write_files(
    given: Flags, made: "Generation", labels: list[int], output: pathlib.Path
) -> str:
    from trainer import samples

    classes: list[int | None] = [*labels] or [None]
    for label in classes:
        prefix = "sample" if label is None else f"class_{label}"
        number = 0
        for batch in _images(given, made, label):
            for image in batch:
                path = output / f"{prefix}_{number:06d}.png"
                try:
                    path.write_bytes(samples.to_png(image))
                except OSError as error:
                    raise atomic_file.storage_error(
                        "write", path, error
                    ) from error
                number += 1
    return f"Wrote {given.num_samples * len(classes):,} files in {output}."


def _write_interpolation(
    given: Flags, made: "Generation", labels: list[int], output: pathlib.Path
) -> str:
    from trainer import generation, samples

    anchors = _latents(given, made, 0, given.num_samples)
    paths = []
    classes: list[int | None] = [*labels] or [None]
    for label in classes:
        frames = []
        for one, other in zip(
            anchors, np.roll(anchors, -1, axis=0), strict=True
        ):
            latents = generation.interpolate(one, other, given.num_frames)
            chosen = None
            if label is not None:
                chosen = np.full(given.num_frames, label, np.int32)
            images = samples.to_uint8(made.samples(latents, chosen))
            frames += [samples.make_grid(image[np.newaxis]) for image in images]
        suffix = "" if label is None else f"_class_{label}"
        path = output / f"interpolation_seed_{given.seed}{suffix}.gif"
        gif = samples.to_gif(frames, frame_msecs=_FRAME_MSECS)
        atomic_file.write_bytes(path, gif)
        paths.append(str(path))
    return f"Wrote {', '.join(paths)}."


if __name__ == "__main__":
    sys.exit(main(sys.argv))
