"""Where a trainer on another machine may read its data, and may write.

A path of the machine that one submits from means nothing there, which would be
found out only once GPUs are paid for.
"""

import posixpath
import re
from collections.abc import Iterator, Sequence

from launch.job_spec import SCRATCH_DIR, VOLUME_DIR, JobSpec
from trainer import config, errors

# Sources that are read from a bucket as well as from a directory.
_READ_BY_TENSORFLOW = ("folder", "tfrecord")
# Vertex AI shows all buckets there.
_READABLE = {"vertex": "/gcs", "kubernetes": VOLUME_DIR}
# What a directory of this machine must not hide in a container.
_OF_THE_IMAGE = {
    *("/", "//", "/bin", "/data", "/dev", "/etc", "/lib", "/lib64", "/opt"),
    *("/opt/venv", "/proc", "/run", "/sbin", "/scratch", "/sys", "/tmp"),
    *("/usr", "/usr/bin", "/usr/lib", "/usr/local", "/workdir"),
}
_WRITABLE = {
    "docker": (SCRATCH_DIR,),
    "kubernetes": (SCRATCH_DIR, VOLUME_DIR),
}


def check(spec: JobSpec, settings: config.Config) -> None:
    """Refuses paths that cannot be there.

    Raises:
        UsageError: The message says the value, the rule and the remedy.
    """
    kind = settings.dataset.partition(":")[0]
    if _is_remote(settings.data_dir or "") and ":" not in settings.dataset:
        raise errors.UsageError(
            f"--data_dir={settings.data_dir}: --dataset={kind} is read from a"
            " directory. On Vertex AI, name /gcs/bucket/prefix; elsewhere,"
            " mount the bucket, or take folder:gs://... or tfrecord:gs://..."
        )
    platform = str(spec.platform)
    if platform == "docker":
        _check_mountable(settings)
    if root := _READABLE.get(platform):
        for flag, path in _data(settings):
            if not _is_remote(path) and not _is_below(path, (root,)):
                raise errors.UsageError(_unreadable(flag, path, spec, root))
            if root == VOLUME_DIR and not _is_remote(path):
                _check_volume(f"{flag} of {path}", spec)
    local_dir = settings.local_dir
    roots = _WRITABLE.get(platform)
    if local_dir and roots:
        if not _is_below(local_dir, roots):
            raise errors.UsageError(
                f"--local_dir={local_dir} cannot be written with"
                f" --platform={platform}, where it must be below"
                f" {' or '.join(roots)}. Leave it out."
            )
        if _is_below(local_dir, (VOLUME_DIR,)):
            _check_volume(f"--local_dir={local_dir}", spec)


def data_directory(dataset: str) -> str | None:
    """Returns the directory of this machine that a --dataset names, if any.

    Of a glob it is what comes before the first name that may vary.
    """
    kind, _, path = dataset.partition(":")
    if kind not in _READ_BY_TENSORFLOW or _is_remote(path):
        return None
    if kind == "tfrecord":
        path = posixpath.dirname(re.split(r"[*?\[]", path)[0])
    return path


def _check_mountable(settings: config.Config) -> None:
    directory = data_directory(settings.dataset)
    if directory is None:
        return
    if directory.startswith("~") or not (
        posixpath.isabs(directory) or settings.data_dir
    ):
        raise errors.UsageError(
            f"--dataset={settings.dataset}: a container has another home and"
            " another directory to start in. Name the whole path, from / on,"
            " or add the --data_dir that the rest is below."
        )
    if posixpath.normpath(directory) in _OF_THE_IMAGE:
        raise errors.UsageError(
            f"--dataset={settings.dataset} would be mounted at"
            f" {posixpath.normpath(directory)}, over the image's own files."
            " Put the data into a directory of their own."
        )


def _data(settings: config.Config) -> Iterator[tuple[str, str]]:
    """Yields flags and the paths that they name, as the trainer finds them."""
    if settings.data_dir:
        yield f"--data_dir={settings.data_dir}", settings.data_dir
    kind, _, path = settings.dataset.partition(":")
    if kind in _READ_BY_TENSORFLOW:
        if settings.data_dir and not _is_remote(path):
            path = posixpath.join(settings.data_dir, path)
        yield f"--dataset={settings.dataset}", path


def _unreadable(flag: str, path: str, spec: JobSpec, root: str) -> str:
    mounted = (
        "/gcs/bucket/prefix, where the job sees all buckets"
        if spec.platform == "vertex"
        else f"a path below {root}, where --volume_claim is mounted"
    )
    where = "" if flag.endswith(path) else f", so {path or 'no path'},"
    return (
        f"{flag}{where} is not on the machines of --platform={spec.platform}."
        f" Take {mounted}; folder:gs://... or tfrecord:gs://... is read from"
        " the bucket itself."
    )


def _check_volume(what: str, spec: JobSpec) -> None:
    if not spec.volume_claim:
        raise errors.UsageError(
            f"{what} is below {VOLUME_DIR}, where nothing is without"
            " --volume_claim. Add it, or take another path."
        )


def _is_remote(path: str) -> bool:
    return "://" in path


def _is_below(path: str, roots: Sequence[str]) -> bool:
    normal = posixpath.normpath(path) if path else ""
    return any(f"{normal}/".startswith(f"{root}/") for root in roots)
