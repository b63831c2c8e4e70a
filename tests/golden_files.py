"""Texts that must stay as they are until somebody looks at the difference.

To write what the code makes now, for `git diff` to show: run the tests that use
this module with GOLDENS=write, as BUILD.md says.
"""

import os
import pathlib

_DIRECTORY = pathlib.Path(__file__).with_name("goldens")


def check(name: str, text: str) -> None:
    """Fails unless the file `name` holds this text."""
    path = _DIRECTORY / name
    if os.environ.get("GOLDENS") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"see GOLDENS=write in {__file__}"
