"""Many saves of one run in a bucket leave nothing behind."""

import collections
import json
import pathlib
import subprocess
import sys

import pytest

from tests import runs
from tests.processes import ROOT
from tests.soak import Use

_LIMIT_SECS = 3600
_MAX_GROWTH_BYTES = 32e6
# The threads that ask the bucket: the main one, the lease's, the uploader's and
# the checkpoints'. Each keeps a connection once two have asked at one time.
_MAX_CONNECTIONS = 4


@pytest.mark.timeout(_LIMIT_SECS)
@pytest.mark.parametrize(
    "num_saves", [20, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_saves_leave_nothing_behind(
    tmp_path: pathlib.Path, num_saves: int
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.soak", str(tmp_path), str(num_saves)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECS,
    )
    assert result.returncode == 0, result.stderr
    assert runs.newest_step(tmp_path / "run") == num_saves
    uses = [Use(**json.loads(line)) for line in result.stdout.splitlines()]
    print(*uses, sep="\n")
    first, *later = uses
    assert [use.num_saves for use in later] == [num_saves // 2, num_saves - 1]
    for use in later:
        assert use.memory_bytes - first.memory_bytes < _MAX_GROWTH_BYTES
        new = collections.Counter(use.descriptors)
        new -= collections.Counter(first.descriptors)
        assert set(new) <= {"socket"}, new
        assert new["socket"] < _MAX_CONNECTIONS, new
        assert _counts(use) == _counts(first)


def _counts(use: Use) -> tuple[int, ...]:
    """What neither grows nor shrinks."""
    return (
        use.threads,
        use.checkpoint_files,
        use.temporary_files,
        use.objects,
    )
