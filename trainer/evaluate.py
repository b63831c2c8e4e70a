"""Measures a run: `python -m trainer.evaluate --workdir=runs/one`."""

import contextlib
import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer import atomic_file, command_line, options

if TYPE_CHECKING:
    from trainer.evaluation.evaluator import Evaluation, Evaluator
    from trainer.stored_run import StoredRun

_HELP = """\
Measures how good the samples of a run are, beside what real ones get.

usage: python -m trainer.evaluate --workdir=<directory> [--flag=value ...]

Each value stands beside the floor: what two halves of the real data give in
place of fake and real samples. Values can be compared where features, split,
counts and seed agree. The result is also appended to evaluations.jsonl in the
run directory (for a run in a bucket, in its local directory).

{flags}

exit codes: 0 done, 2 usage, 3 data, 4 no good checkpoint, 6 storage."""

_LISTED = "`python -m trainer.evaluate --help` lists the flags."


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line."""

    workdir: str | None = command_line.workdir_flag()
    step: str = command_line.step_flag()
    data_dir: str | None = options.declare(
        False,
        "Data",
        None,
        "Where the data are on this machine.",
        "directory",
        default_text="as in training",
    )
    split: str | None = options.declare(
        False,
        "Data",
        None,
        "Part of the data to compare with, such as test.",
        "part",
        default_text="what was trained on",
    )
    num_samples: int = options.declare(
        False,
        "Measuring",
        10_000,
        "Fakes to make, and at most so many real samples.",
        "samples",
        minimum=20,
        maximum=10_000_000,
    )
    metrics: str = options.declare(
        False,
        "Measuring",
        "frechet_distance,kernel_distance,precision_recall,density_coverage,"
        "classifier_score,diversity",
        "What to measure, with commas between.",
        "metrics",
        rule="names of metrics, with commas between",
    )
    seed: int | None = options.declare(
        False,
        "Measuring",
        None,
        "Decides the latents and which real samples are taken.",
        "seed",
        minimum=0,
        maximum=2**31 - 1,
        default_text="that of the run",
    )
    inception_weights: str | None = options.declare(
        False,
        "Measuring",
        None,
        "Local file inception_v3_weights_tf_dim_ordering_tf_kernels.h5: take"
        " the features of InceptionV3 instead of a classifier that is trained"
        " on the data's labels.",
        "file",
        default_text="the classifier",
    )
    cache_dir: str | None = options.declare(
        False,
        "Measuring",
        None,
        "Where trained classifiers are kept.",
        "directory",
        default_text="~/.cache/gan-trainer",
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
        generator = run.build_generator()
        evaluator = _make_evaluator(given, run)
        evaluation = evaluator.evaluate(generator)
        _record(run, evaluation)
        print(_table(run, evaluation))
    return 0


def _make_evaluator(given: Flags, run: "StoredRun") -> "Evaluator":
    from trainer.assembly import datasets
    from trainer.evaluation import extractors
    from trainer.evaluation import metrics as metrics_lib
    from trainer.evaluation.evaluator import Evaluator, check_count

    names = given.metrics.split(",")
    metrics_lib.check_names(names)
    config = dataclasses.replace(
        run.config, data_dir=given.data_dir or run.config.data_dir
    )
    trained_on = dataset = datasets.load_data(config)
    extractors.check(trained_on, inception_weights=given.inception_weights)
    # Before a classifier learns, which would be in vain if there is no such.
    if given.split is not None and given.split != config.split:
        config = dataclasses.replace(config, split=given.split)
        dataset = datasets.load_data(config)
        datasets.check_same_classes(config, trained_on, dataset)
    check_count(dataset)
    extractor = extractors.make(
        trained_on,
        preparation=datasets.preparation(config),
        inception_weights=given.inception_weights,
        cache_dir=given.cache_dir,
    )
    print(f"Features: {extractor.description}.")
    return Evaluator(
        extractor,
        dataset=dataset,
        split=datasets.split_name(config),
        num_samples=given.num_samples,
        metric_names=names,
        seed=run.config.seed if given.seed is None else given.seed,
    )


def _record(run: "StoredRun", evaluation: "Evaluation") -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    line = json.dumps(
        {
            "step": run.checkpoint.step,
            "epoch": run.epoch,
            "kind": "evaluation",
            "time": now.isoformat(timespec="seconds"),
            **evaluation.to_json(),
        }
    )
    path = run.directory.evaluations
    atomic_file.make_directory(path.parent)
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise atomic_file.storage_error("write", path, error) from error


def _table(run: "StoredRun", evaluation: "Evaluation") -> str:
    """Lays out the values and their floors, and says how they were made."""
    protocol = evaluation.protocol
    lines = [
        f"Step {run.checkpoint.step}, epoch {run.epoch}:"
        f" {protocol['num_fake']:,} fakes against {protocol['num_real']:,} real"
        f" samples ({protocol['split']}), seed {protocol['evaluation_seed']}."
        f" Floor: {protocol['num_floor']:,} real samples against as many"
        " others.",
        f"{'':32}{'value':>12}{'floor':>12}",
    ]
    for name, value in evaluation.values.items():
        floor = evaluation.floor[name]
        lines.append(f"{name:32}{value:12.5g}{floor:12.5g}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
