"""The commit record of a checkpoint: what was written, by whom, for what.

`MANIFEST.json` is read from places that others may write to. Everything in it
is bounded and checked before it is used, and a plain `BadCheckpointError` says
what is wrong.
"""

import dataclasses
import hashlib
import json
import re
from typing import Any

FILE_NAME = "MANIFEST.json"
SCHEMA_VERSION = 1

# Bounds on what is believed before it is read, far above what is written.
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 1000
MAX_FILE_BYTES = 1 << 40
MAX_STEP = 10**18 - 1

# Neither a path separator nor a leading dot: no name leaves its directory.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_CRC32C = re.compile(r"[0-9a-f]{8}")
_CHECKPOINT_NAME = re.compile(r"step-([0-9]{9,18})")


class BadCheckpointError(Exception):
    """A stored checkpoint that cannot be trusted; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file: its plain name, its bytes and their crc32c in hexadecimal."""

    name: str
    size: int
    crc32c: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """One checkpoint: its global step, its writer, its run and its files."""

    step: int
    attempt: str
    config_digest: str
    files: tuple[FileRecord, ...]

    @property
    def name(self) -> str:
        """The name of the checkpoint, which follows from the step."""
        return checkpoint_name(self.step)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def to_bytes(self) -> bytes:
        """Writes the manifest with the digest of its own content."""
        body = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        record = {**body, "digest": _digest(body)}
        return json.dumps(record, indent=1).encode() + b"\n"


def checkpoint_name(step: int) -> str:
    """Names the checkpoint of a global step.

    Raises:
        ValueError: If the step is negative or beyond all reason.
    """
    if not 0 <= step <= MAX_STEP:
        raise ValueError(f"The step {step} must lie in [0, {MAX_STEP}].")
    return f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """Reads the global step from a name, None if it names no checkpoint."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    # One step has one name: the padded forms are not ours.
    if match is None or checkpoint_name(int(match[1])) != name:
        return None
    return int(match[1])


def is_plain_name(name: object) -> bool:
    """Tells whether this is a file name that stays in its directory."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def parse(data: bytes, *, name: str) -> Manifest:
    """Reads the bytes of a manifest, trusting none of them.

    Args:
        data: What stands in the file.
        name: The checkpoint that it was found in.

    Raises:
        BadCheckpointError: If it is not a manifest of that checkpoint.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadCheckpointError(
            f"{FILE_NAME} has more than {MAX_MANIFEST_BYTES} bytes"
        )
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"{FILE_NAME} is not JSON: {error}") from error
    _require(type(record) is dict, "it is not an object")
    version = record.get("schema_version")
    _require(
        type(version) is int and version == SCHEMA_VERSION,
        f"its schema version must be {SCHEMA_VERSION}, not {version!r:.40}",
    )
    try:
        found = record.pop("digest", None)
        _require(found == _digest(record), "its digest does not match it")
    except RecursionError as error:
        raise BadCheckpointError(f"{FILE_NAME} is nested too deep") from error
    manifest = _from_record(record)
    _require(manifest.name == name, f"it belongs to {manifest.name}")
    return manifest


def _from_record(record: dict[str, Any]) -> Manifest:
    _require(
        record.keys()
        == {"schema_version", "step", "attempt", "config_digest", "files"},
        "it has missing or unknown fields",
    )
    step, files = record["step"], record["files"]
    _require(_is_size(step, MAX_STEP), f"{step!r:.40} is no step")
    for field in ("attempt", "config_digest"):
        _require(is_plain_name(record[field]), f"{field} is no plain name")
    _require(type(files) is list, "files is no list")
    _require(len(files) <= MAX_FILES, f"it has more than {MAX_FILES} files")
    records = tuple(_file_from_record(file) for file in files)
    names = {file.name for file in records}
    _require(len(names) == len(records), "a file is listed twice")
    return Manifest(
        step=step,
        attempt=record["attempt"],
        config_digest=record["config_digest"],
        files=records,
    )


def _file_from_record(record: object) -> FileRecord:
    if type(record) is not dict or record.keys() != {"name", "size", "crc32c"}:
        raise BadCheckpointError(
            f"{FILE_NAME}: {record!r:.80} is no file record"
        )
    name, size, crc = record["name"], record["size"], record["crc32c"]
    _require(
        is_plain_name(name) and name != FILE_NAME,
        f"{name!r:.80} is no plain file name",
    )
    _require(
        _is_size(size, MAX_FILE_BYTES),
        f"the size {size!r:.40} of {name} is not in [0, {MAX_FILE_BYTES}]",
    )
    _require(
        isinstance(crc, str) and _CRC32C.fullmatch(crc) is not None,
        f"the crc32c {crc!r:.40} of {name} is not 8 hexadecimal digits",
    )
    return FileRecord(name=name, size=size, crc32c=crc)


def _is_size(value: object, largest: int) -> bool:
    # Not isinstance: True is an int.
    return type(value) is int and 0 <= value <= largest


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise BadCheckpointError(f"{FILE_NAME}: {rule}")


def _digest(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
