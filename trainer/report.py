"""Shows a run as one page: `python -m trainer.report --workdir=runs/one`."""

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from trainer import atomic_file, command_line, errors, options
from trainer.config import Config
from trainer.reporting import history, page
from trainer.reporting.facts import Facts, Setting
from trainer.run_directory import RunDirectory
from trainer.storage import CheckpointStore, finder
from trainer.storage.bucket import Bucket
from trainer.storage.local import LocalStore
from trainer.storage.mirror_files import MirrorFiles
from trainer.storage.remote import RemoteStore

_HELP = """\
Shows a run as one page: samples, measurements, curves, settings, environment.

usage: python -m trainer.report --workdir=<directory> [--flag=value ...]

Writes report.html, one file for any browser, without a network. Training writes
it at its end; this command does at any time, while it trains too. The same run
directory gives the same bytes.

{flags}

exit codes: 0 done, 2 usage, 6 storage."""

# Of metrics.jsonl: some 30,000 lines.
_QUICK_BYTES = 1 << 24
_LISTED = "`python -m trainer.report --help` lists the flags."


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line."""

    workdir: str | None = command_line.workdir_flag()
    output: str | None = options.declare(
        False,
        "Page",
        None,
        "File to write.",
        "file",
        default_text="report.html in the run's (local) directory",
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, program name first; returns its exit code.

    It needs no TensorFlow.
    """
    if command_line.wants_help(argv):
        command_line.print_help(_HELP.format(flags=options.help_text(Flags)))
        return 0
    return command_line.exit_code_of(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    given = Flags(**command_line.values(Flags, argv, _LISTED))
    workdir = command_line.require_workdir(given.workdir)
    command_line.configure_logging()
    place = Config(workdir=workdir).resolve()
    place.validate()
    with contextlib.ExitStack() as stack:
        directory = RunDirectory(Path(place.local_root))
        output = Path(given.output or directory.report)
        measured = directory.evaluations
        store: CheckpointStore = LocalStore(directory.checkpoints)
        if place.bucket:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            name, prefix = place.bucket
            bucket = Bucket(name, prefix=prefix)
            store = RemoteStore(bucket, cache=cache / "checkpoints")
            directory = _download(bucket, cache / "run")
        if not directory.config.exists():
            raise errors.UsageError(
                f"--workdir={workdir} holds no run: there is no config.json."
                " Name the directory that `python -m trainer.main` was given."
            )
        text = _collect_and_render(directory, measured=measured, store=store)
        atomic_file.make_directory(output.parent)
        atomic_file.write_bytes(output, text.encode())
    print(f"Wrote {output}.")
    return 0


def is_quick(directory: RunDirectory) -> bool:
    """Tells whether the page of a run takes a second or two, and no more."""
    path = directory.metrics
    return path.exists() and path.stat().st_size <= _QUICK_BYTES


def write_at_end(directory: RunDirectory, store: CheckpointStore) -> None:
    """Writes the page of a run that has ended; a failure is only a warning.

    Args:
      directory: of the run.
      store: its checkpoints.
    """
    try:
        text = _collect_and_render(
            directory, measured=directory.evaluations, store=store
        )
        atomic_file.write_bytes(directory.report, text.encode())
    # Whatever it is, a defect of ours too: the weights are what counts.
    except Exception as error:
        logging.warning(
            "%s is not written, which takes nothing from the run: %s. `python"
            " -m trainer.report` tries again.",
            directory.report,
            error,
        )


def _download(bucket: Bucket, root: Path) -> RunDirectory:
    """Brings what the page shows, but for checkpoints."""
    files = MirrorFiles(root, bucket, secs_between_uploads=0)
    files.download_config(bucket.list_objects(""))
    files.download(replace=False)
    return RunDirectory(root)


def _collect_and_render(
    directory: RunDirectory, *, measured: Path, store: CheckpointStore
) -> str:
    """Reads the files of a run, and makes the page of them.

    Args:
      directory: the files, or copies.
      measured: `evaluations.jsonl`, which no bucket has.
      store: its checkpoints.

    Raises:
      StorageError: they cannot be read.
    """
    try:
        config = Config.from_json(
            directory.config.read_bytes(), source=str(directory.config)
        )
        newest, problem = _find_newest(store, config.digest())
        facts = Facts(
            title=str(config.resolve().workdir).rstrip("/").rpartition("/")[2],
            subtitle=(
                f"{config.model} on {config.dataset}, batch"
                f" {config.global_batch_size}, seed {config.seed}"
            ),
            epochs=config.epochs,
            max_steps=config.max_steps,
            images_per_step=config.images_per_step,
            settings=_settings(config),
            environment=_read_object(directory.environment),
            history=history.read_history(directory.metrics),
            measured=list(history.read_lines(measured)),
            starts=list(history.read_lines(directory.starts)),
            checkpoint_step=newest.step if newest else None,
            host_state=newest.host_state if newest else {},
            problem=problem,
            samples=directory.samples,
        )
        return page.render(facts)
    except OSError as error:
        path = error.filename or directory.root
        raise atomic_file.storage_error("read", path, error) from error


def _find_newest(
    store: CheckpointStore, config_digest: str
) -> tuple[finder.StoredCheckpoint | None, str]:
    """Returns the newest good checkpoint, and why there is none."""
    try:
        return finder.find_newest(store, config_digest=config_digest), ""
    except errors.CheckpointError as error:
        return None, str(error)


def _settings(config: Config) -> list[Setting]:
    """Lists the flags beside what they would have been if not given."""
    # Other defaults follow from these two, which have their own.
    chosen = ("dataset", "model")
    defaults = Config(dataset=config.dataset, model=config.model).resolve()
    resolved = config.resolve()
    return [
        Setting(
            topic=option.topic,
            name=field.name,
            value=getattr(resolved, field.name),
            default=(
                field.default
                if field.name in chosen
                else getattr(defaults, field.name)
            ),
            help=option.help,
        )
        for field, option in options.fields(Config)
    ]


def _read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; what is none is as good as missing."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
