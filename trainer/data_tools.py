"""Looks at data, and packs them: `python -m trainer.data_tools inspect`.

The flags of the data are those of `trainer.main`, and mean the same.
"""

import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import command_line, config, errors, options

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset
    from trainer.data.quarantine import Quarantine

_HELP = """\
Looks at a data set, or packs it.

usage: python -m trainer.data_tools inspect [--flag=value ...]
       python -m trainer.data_tools prepare --output=<folder> [--flag=value ...]

inspect
  Reads and decodes all of it; prints counts, sizes, classes and values, what is
  wrong with which file, and how fast it decodes; draws 64 samples as the
  network will see them. Exits 3 if too much of it is bad, as training would.
prepare
  Packs it into TFRecord files, to be used as
  --dataset=tfrecord:<folder>/*.tfrecord. With --image_size or --channels the
  resized images are kept, or else the original files. The same command again
  goes on where it was stopped.

examples:
  python -m trainer.data_tools inspect --dataset=folder:cats --image_size=64
  python -m trainer.data_tools prepare --dataset=folder:cats --output=packed

{flags}

exit codes: 0 done, 2 usage, 3 data, 6 storage."""

_INSPECT = "inspect"
_PREPARE = "prepare"
_NUM_SAMPLES = 64
_MIB = 2**20
_TRIAL_SIZE = (32, 32)


@dataclasses.dataclass(frozen=True)
class _Inspect:
    """The flags of `inspect` besides those of the data."""

    picture: str = options.declare(
        False,
        _INSPECT,
        "inspect.png",
        "Where the picture of 64 samples goes.",
        "file",
    )


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """The flags of `prepare` besides those of the data."""

    output: str | None = options.declare(
        False,
        _PREPARE,
        None,
        "Folder for the shards, new or begun by the same command.",
        "folder",
        default_text="none, it must be given",
    )
    shard_mib: int = options.declare(
        False,
        _PREPARE,
        128,
        "How large a shard should be.",
        "MiB",
        minimum=1,
    )


_DATA_FLAGS = options.subset(config.Config, config.DATA)
_COMMANDS = {_INSPECT: _Inspect, _PREPARE: _Prepare}


def run(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, program name first; returns its exit code.

    Raises:
      TrainerError: see `trainer.errors`.
    """
    if {"--help", "-help", "-h"}.intersection(argv[1:]):
        kinds = [_DATA_FLAGS, *_COMMANDS.values()]
        texts = [options.help_text(kind) for kind in kinds]
        command_line.print_help(_HELP.format(flags="\n\n".join(texts)))
        return 0
    command = argv[1] if len(argv) > 1 else ""
    if command not in _COMMANDS:
        raise errors.UsageError(
            f"{command!r} is no command. Choose one of: {', '.join(_COMMANDS)}."
            " `python -m trainer.data_tools --help` explains them."
        )
    kind = _COMMANDS[command]
    flag_values = options.parse(
        [_DATA_FLAGS, kind],
        argv[1:],
        "`python -m trainer.data_tools --help` lists the flags.",
    )
    data_config = config.Config(
        **options.values_from_flags(_DATA_FLAGS, flag_values)
    )
    data_config.validate()
    command_line.configure_logging()
    given = kind(**options.values_from_flags(kind, flag_values))
    if isinstance(given, _Inspect):
        return _inspect(data_config.resolve(), Path(given.picture))
    return _prepare(data_config.resolve(), given)


def _check_picture(picture: Path) -> None:
    """Refuses now what cannot be written after all has been decoded."""
    if not os.access(picture.parent, os.W_OK) or picture.is_dir():
        raise errors.UsageError(
            f"--picture={picture} cannot be written: it must be a file in a"
            " folder that exists. Make the folder, or choose another one."
        )


def _inspect(data_config: config.Config, picture: Path) -> int:
    _check_picture(picture)
    # Here, because the imports take seconds.
    from trainer import data
    from trainer.assembly import datasets
    from trainer.data import inspection
    from trainer.data.quarantine import NothingUsable

    # All that is wrong is wanted, however much it is.
    wanted = dataclasses.replace(
        datasets.wanted_data(data_config), max_bad_fraction=1.0
    )
    name, data_dir = data_config.dataset, data_config.data_dir
    _print([("data set", name)])
    if name in data.ARRAYS:
        dataset: Dataset = data.load(name, data_dir=data_dir, wanted=wanted)
        _print(inspection.describe_classes(dataset))
    else:
        try:
            images = data.list_images(name, data_dir=data_dir, wanted=wanted)
        except NothingUsable as error:
            _print_bad(error.quarantine)
            raise
        _print(inspection.describe_images(images))
        _print(inspection.describe_classes(images))
        try:
            dataset = data.as_stream(images, wanted)
        except errors.DataError:
            # No size for the samples yet; what is damaged is wanted all the
            # same.
            trial = dataclasses.replace(wanted, image_size=_TRIAL_SIZE)
            for _ in data.as_stream(images, trial).in_order():
                pass
            _print_bad(images.quarantine)
            raise
    _print(inspection.describe_samples(dataset))
    _draw(dataset, data_config, picture)
    _print_bad(dataset.quarantine)
    if dataset.quarantine.bad_fraction > data_config.max_bad_fraction:
        print(
            "\nThat is more than"
            f" --max_bad_fraction={data_config.max_bad_fraction:g}: training"
            " would exit with code 3."
        )
        return errors.DataError.exit_code
    return 0


def _draw(
    dataset: "Dataset", data_config: config.Config, picture: Path
) -> None:
    """Draws the first samples of the first epoch."""
    from trainer import atomic_file, samples
    from trainer.data import pipeline

    batches = pipeline.training_batches(
        dataset,
        global_batch_size=min(_NUM_SAMPLES, len(dataset.labels)),
        num_replicas=1,
        first_step=0,
        seed=data_config.seed,
        random_flip=data_config.random_flip,
    )
    images = next(iter(batches))["sample"].numpy()
    png = samples.to_png(samples.make_grid(images))
    atomic_file.write_bytes(picture, png)
    _print([("picture", f"{picture}, {len(images)} samples, shuffled")])


def _prepare(data_config: config.Config, given: _Prepare) -> int:
    if given.output is None:
        raise errors.UsageError(
            "--output is missing: the folder to write the shards to."
        )
    from trainer import data
    from trainer.assembly import datasets
    from trainer.data import files, packing

    if files.is_remote(given.output):
        raise errors.UsageError(
            f"--output={given.output} is a URL; `prepare` writes to a folder of"
            " this machine. Choose one, and copy it to the bucket afterwards."
        )
    _check_output(Path(given.output), data_config)
    if data_config.dataset in data.ARRAYS:
        raise errors.UsageError(
            f"--dataset={data_config.dataset} is in memory at once anyway."
            " Prepare a folder:, tfrecord: or tfds: data set."
        )
    wanted = datasets.wanted_data(data_config)
    images = data.list_images(
        data_config.dataset, data_dir=data_config.data_dir, wanted=wanted
    )
    as_samples = bool(wanted.image_size or wanted.channels)
    if not as_samples:
        # They are decoded to see whether they can be; to what is all the same.
        wanted = dataclasses.replace(wanted, image_size=_TRIAL_SIZE)
    try:
        result = packing.pack(
            data.as_stream(images, wanted),
            Path(given.output),
            shard_bytes=given.shard_mib * _MIB,
            as_samples=as_samples,
        )
    except errors.DataError:
        _print_bad(images.quarantine, "left out")
        raise
    _print_bad(images.quarantine, "left out")
    print(
        f"{result.num_images:,} images in {result.num_shards} shard(s),"
        f" {result.num_written} of them new. Use them with\n"
        f"  --dataset='tfrecord:{given.output}/*.tfrecord'"
    )
    return 0


def _check_output(output: Path, data_config: config.Config) -> None:
    """Refuses to write into the data: the next start would find it there."""
    from trainer.data import files

    kind, _, path = data_config.dataset.partition(":")
    if kind != "folder":
        return
    source = Path(files.locate(path, data_config.data_dir)).resolve()
    if output.resolve().is_relative_to(source):
        raise errors.UsageError(
            f"--output={output} is in the folder that it packs, of whose"
            " images it would become a class. Choose one outside."
        )


def _print(pairs: Iterable[tuple[str, str]]) -> None:
    for what, value in pairs:
        print(f"{what:<10} {value}", flush=True)


def _print_bad(quarantine: "Quarantine", title: str = "not used") -> None:
    from trainer.data.quarantine import printable

    reasons = quarantine.reasons
    print(f"{title:<10} {len(reasons):,}")
    for name, reason in reasons.items():
        print(f"  {printable(name)}: {reason}")


if __name__ == "__main__":
    sys.exit(command_line.exit_code_of(lambda: run(sys.argv)))
