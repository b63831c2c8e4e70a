"""The files that a run has not used, of all of its starts together.

While data are streamed, a start sees only a part of them; so the list that it
prints in the end would not be complete after a resume.
"""

import contextlib
import json
from collections.abc import Iterator

from absl import logging

from trainer import atomic_file, errors
from trainer.data.quarantine import Quarantine
from trainer.run_directory import RunDirectory


@contextlib.contextmanager
def listed(directory: RunDirectory, quarantine: Quarantine) -> Iterator[None]:
    """Adds to `directory.bad_files` what is found bad while it is entered."""
    try:
        yield
    finally:
        # Without a config, nothing has begun that the list could belong to.
        if quarantine.reasons and directory.config.exists():
            try:
                _add(directory, quarantine.reasons)
            except (OSError, errors.StorageError) as error:
                logging.warning("The bad files cannot be listed: %s", error)


def _add(directory: RunDirectory, reasons: dict[str, str]) -> None:
    known = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = json.loads(directory.bad_files.read_bytes())
    text = json.dumps(known | reasons, indent=2) + "\n"
    atomic_file.write_bytes(directory.bad_files, text.encode())
