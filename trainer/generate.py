"""Makes samples with a run: `python -m trainer.generate --workdir=runs/one`."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer import atomic_file, command_line, errors, options, video

if TYPE_CHECKING:
    from trainer.drawing import Selection
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
      A GIF that goes from one image to the next; --format=mp4 for a film.

Image number n is the same in every grid and however many there are: it depends
on the seed, its class and the truncation alone.

{flags}

exit codes: 0 done, 2 usage, 4 no good checkpoint, 6 storage."""

_LISTED = "`python -m trainer.generate --help` lists the flags."
# So many fit into one picture, or one GIF, and into memory.
_MAX_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line."""

    workdir: str | None = command_line.workdir_flag()
    step: str = command_line.step_flag()
    output: str | None = options.declare(
        False,
        "Samples",
        None,
        "Directory for the images.",
        "directory",
        default_text="generated/<step> in the run's (local) directory",
    )
    kind: str = options.declare(
        False,
        "Samples",
        "grid",
        "grid: one picture of all; files: one for each; interpolation: a film"
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
    format: str = options.declare(
        False,
        "Samples",
        "gif",
        "Of the interpolation; mp4 is smaller, has all colours, and needs"
        " imageio-ffmpeg (the extra video).",
        choices=("gif", "mp4"),
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
    if given.format == "mp4":
        _check_video(given)
    from trainer import drawing, generation, stored_run

    with contextlib.ExitStack() as stack:
        run = stored_run.open_run(workdir, given.step, stack)
        generator = run.build_generator()
        _check_images(generator.output_shape)
        labels = _labels(given, run, generation.takes_labels(generator))
        _check_count(given, labels)
        selection = drawing.Selection(
            generation.Generation(generator),
            seed=given.seed,
            num_samples=given.num_samples,
            truncation=given.truncation,
            labels=labels,
        )
        # Of each step its own, so that they can be looked at side by side.
        default = run.directory.root / "generated" / run.checkpoint.name
        output = pathlib.Path(given.output or default)
        atomic_file.make_directory(output)
        print(_write(given, selection, output))
    return 0


def _write(given: Flags, selection: "Selection", output: pathlib.Path) -> str:
    from trainer import drawing

    if given.kind == "grid":
        return drawing.write_grid(selection, output)
    if given.kind == "files":
        return drawing.write_files(selection, output)
    return drawing.write_interpolation(
        selection, output, num_frames=given.num_frames, format=given.format
    )


def _check_video(given: Flags) -> None:
    if given.kind != "interpolation":
        raise errors.UsageError(
            f"--format=mp4 has no use: --kind={given.kind} is no film. Leave it"
            " out, or take --kind=interpolation."
        )
    video.check_available()


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
    if given.kind == "files" or given.format == "mp4":
        return
    count = given.num_samples * max(len(labels), 1)
    what, remedy = "images in a grid", "--kind=files"
    if given.kind == "interpolation":
        count *= given.num_frames
        what, remedy = "frames in a GIF", "--format=mp4"
    if count > _MAX_AT_ONCE:
        raise errors.UsageError(
            f"{count:,} {what} are more than {_MAX_AT_ONCE:,}. Lower"
            f" --num_samples, {'choose --labels, ' if len(labels) > 1 else ''}"
            f"or take {remedy}."
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
