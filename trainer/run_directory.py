"""The directory that is the identity of a run: what is in it, who may use it.

Running the same command again continues the run in its directory. A command
whose hyperparameters would give other weights is refused, because its
checkpoints would belong to neither of the two.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer import atomic_file, errors
from trainer import config as config_lib

_PACKAGES = ("tensorflow", "keras", "numpy")
_GIT_TIMEOUT_SECS = 5
# What the Dockerfile and the launcher know: the commit that the image was built
# from, and the image's own name, best with its digest.
_REVISION_VARIABLE = "GAN_TRAINER_REVISION"
_IMAGE_VARIABLE = "GAN_TRAINER_IMAGE"


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The paths of a run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config; a directory without it holds no run."""
        return self.root / "config.json"

    @property
    def environment(self) -> Path:
        """Versions, machine and command line of the latest attempt."""
        return self.root / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object for each logged step."""
        return self.root / "metrics.jsonl"

    @property
    def starts(self) -> Path:
        """One JSON object for each time that training went on from a step."""
        return self.root / "starts.jsonl"

    @property
    def report(self) -> Path:
        """The page that shows all of this."""
        return self.root / "report.html"

    @property
    def evaluations(self) -> Path:
        """One JSON object for each `python -m trainer.evaluate`."""
        return self.root / "evaluations.jsonl"

    @property
    def bad_files(self) -> Path:
        """The names of the files that were not used, each with the reason."""
        return self.root / "bad_files.json"

    @property
    def events(self) -> Path:
        """TensorBoard's directory."""
        # Vertex AI shows what is in `logs` of a job's output directory, which
        # launch/ makes the run directory, and says so in this variable.
        wanted = os.environ.get("AIP_TENSORBOARD_LOG_DIR", "").rstrip("/")
        return self.root / (wanted.rpartition("/")[2] or "events")

    @property
    def samples(self) -> Path:
        """The directory of the pictures."""
        return self.root / "samples"

    @property
    def checkpoints(self) -> Path:
        """The directory with one directory for each saved step."""
        return self.root / "checkpoints"


def check(config: config_lib.Config) -> RunDirectory:
    """Returns the directory of a resolved config; writes nothing.

    Raises:
        UsageError: The directory holds what this config cannot continue.
        CheckpointError: There is nothing to continue and `resume` is "must".
        StorageError: The directory cannot be read or written.
    """
    run = RunDirectory(Path(config.local_root))
    try:
        _check_writable(run.root)
        if run.config.exists():
            _check_continues(run, config)
        else:
            _check_starts(run, config)
    except OSError as error:
        path = error.filename or run.root
        raise atomic_file.storage_error("read", path, error) from error
    return run


@contextlib.contextmanager
def claim(root: Path) -> Iterator[None]:
    """Makes a directory this process's while entered, and exist.

    Two processes that train in one directory would take the files from under
    each other. The lock goes with the process, however that ends; on a file
    system that knows no locks there is none.

    Raises:
        StorageError: The directory cannot be written, or another process is
            training in it.
    """
    atomic_file.make_directory(root)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor, root)
        yield
    finally:
        os.close(descriptor)


def record_start(
    config: config_lib.Config, attempt: str, *, devices: str | None = None
) -> None:
    """Writes what the run is, and where and how it runs.

    Args:
        config: What `config.json` will hold.
        attempt: Name of this start of the run, new each time.
        devices: What it trains on, in words.

    Raises:
        UsageError: The directory holds what this config cannot continue.
        StorageError: The directory cannot be written.
    """
    run = check(config)
    atomic_file.write_bytes(run.config, config.to_json().encode())
    text = json.dumps(_environment(attempt, devices), indent=2) + "\n"
    atomic_file.write_bytes(run.environment, text.encode())


def append_start(
    run: RunDirectory, *, step: int, attempt: str, num_rollbacks: int
) -> None:
    """Adds a line to `starts.jsonl`: training goes on after a step.

    Args:
        run: The run.
        step: The global step, 0 at its beginning.
        attempt: Name of this start of the run.
        num_rollbacks: How often it has gone back because it diverged.

    Raises:
        StorageError: The file cannot be read or written.
    """
    line = {
        "step": step,
        "attempt": attempt,
        "num_rollbacks": num_rollbacks,
        "time": _now(),
    }
    try:
        before = run.starts.read_bytes() if run.starts.exists() else b""
    except OSError as error:
        raise atomic_file.storage_error("read", run.starts, error) from error
    # As a whole, so that no kill leaves half a line.
    atomic_file.write_bytes(
        run.starts, before + json.dumps(line).encode() + b"\n"
    )


def _lock(descriptor: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise errors.StorageError(
            f"Another process is training in {root}, and two would destroy each"
            " other's files. Wait for it or stop it, or choose another"
            " --workdir."
        ) from error
    except OSError:
        pass  # No locks here: some network file systems.


def _check_writable(root: Path) -> None:
    existing = root.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise errors.StorageError(
            f"--workdir={root} cannot be a directory: {existing} is a file."
            " Choose another --workdir."
        )
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        raise errors.StorageError(
            f"--workdir={root} cannot be written: {existing} does not permit"
            " it. Change its permissions or choose another --workdir."
        )


def _check_continues(run: RunDirectory, config: config_lib.Config) -> None:
    if config.resume == "never":
        raise errors.UsageError(
            f"--resume=never, but {run.root} holds a run. Choose another"
            " --workdir, or leave --resume out to continue that run."
        )
    try:
        old_config = config_lib.Config.from_json(
            run.config.read_bytes(), source=str(run.config)
        )
    except errors.UsageError as error:
        raise errors.UsageError(
            f"The run in {run.root} cannot be continued. {error}. Repair the"
            " file, or choose another --workdir; nothing was changed."
        ) from error
    if changes := config_lib.difference(old_config, config):
        raise errors.UsageError(
            f"The run in {run.root} has other settings, and to continue it"
            " with these would give the weights of neither:\n  "
            + "\n  ".join(changes)
            + "\nChoose another --workdir, or go back to the old values."
        )


def _check_starts(run: RunDirectory, config: config_lib.Config) -> None:
    for path in (run.checkpoints, run.metrics, run.samples, run.events):
        if path.exists():
            raise errors.UsageError(
                f"{run.root} holds {path.name} but no {run.config.name}, so"
                " nothing tells which run that is. Put the file back, or"
                " choose another --workdir; nothing was changed."
            )
    if config.resume == "must":
        raise errors.CheckpointError(
            f"--resume=must, but {run.root} holds no run. Correct --workdir,"
            " or leave --resume out to start one."
        )


def _now() -> str:
    now = datetime.datetime.now(datetime.timezone.utc)
    return now.isoformat(timespec="seconds")


def _environment(attempt: str, devices: str | None) -> dict[str, Any]:
    """Describes where the run runs, without most environment variables.

    They hold people's passwords and keys, and run directories get shared.
    """
    return {
        "attempt": attempt,
        "started": _now(),
        "command": sys.orig_argv,
        "git_revision": _git_revision()
        or os.environ.get(_REVISION_VARIABLE)
        or None,
        "image": os.environ.get(_IMAGE_VARIABLE) or None,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "devices": devices,
        "num_cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    # The same modules also come in packages of other names (tensorflow-cpu).
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Returns the commit of this code, with "-dirty" if files differ from it.

    None in an installed package: a repository around that is another project.
    """
    source = Path(__file__).parent.parent
    if not (source / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(
            [*command, "--exclude=*"],
            cwd=source,
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_SECS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
