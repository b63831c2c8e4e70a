"""What is durable where, in words for the first and last lines of a run."""

import pathlib
from collections.abc import Sequence

from trainer.storage.manifest import step_of


def sentence(
    *,
    location: str,
    root: pathlib.Path,
    newest_local: str | None,
    newest_remote: str | None,
    changed_files: Sequence[str],
    lost: str | None,
) -> str:
    """Says what a bucket holds of a run, and what only the local disk does.

    Args:
        location: The bucket and prefix.
        root: The local run directory.
        newest_local: The newest good checkpoint there, None for none.
        newest_remote: The newest that was verified in the bucket.
        changed_files: Those that the bucket does not have as they are now.
        lost: Who else writes to the bucket now, as a sentence; None for
            nobody.
    """
    here, there = _describe(newest_local), _describe(newest_remote)
    remedy = "the same command uploads it."
    if lost is not None:
        return f"{lost} It got {there} of this run; {here} is in {root}."
    if newest_local != newest_remote:
        return f"{location} holds {there}; {here} is only in {root}: {remedy}"
    if changed_files:
        more = f" and {len(changed_files) - 1} more" * (len(changed_files) > 1)
        return (
            f"{location} holds {there}; the newest state of "
            f"{changed_files[0]}{more} is only in {root}: {remedy}"
        )
    if newest_local is None:
        return f"{location} holds everything; there is no checkpoint yet."
    return f"{location} holds everything up to {there}."


def beginning(
    *,
    location: str,
    root: pathlib.Path,
    downloaded: str | None,
    num_files: int,
    uploads: str | None,
) -> str | None:
    """Says what the start of a run has found; None if that is nothing.

    Args:
        location: The bucket and prefix.
        root: The local run directory.
        downloaded: The checkpoint that came from the bucket, if one did.
        num_files: How many other files came.
        uploads: The local checkpoint that is newer than the bucket's, if any.
    """
    parts = []
    if downloaded is not None:
        parts.append(f"{downloaded} came from {location}.")
    if num_files:
        parts.append(f"Files that came from {location}: {num_files}.")
    if uploads is not None:
        parts.append(
            f"{uploads} in {root} is newer than what {location} holds, and is "
            "uploaded."
        )
    return " ".join(parts) or None


def _describe(name: str | None) -> str:
    return "no checkpoint" if name is None else f"step {step_of(name)}"
