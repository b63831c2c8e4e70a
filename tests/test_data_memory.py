"""What data take of memory: streamed a part, decoded their size and no more."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from tests import image_files
from tests.processes import ROOT, TIMEOUT_SECS

_SIDE = 256
_NUM_IMAGES = 1024
_DECODED_MIB = 192
_BATCH_SIZE = 16
_BATCHES_A_EPOCH = _NUM_IMAGES // _BATCH_SIZE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a folder of more images than fit into a small budget."""
    contents = [
        image_files.encode(image_files.pixels(seed, _SIDE, _SIDE), "JPEG")
        for seed in range(4)
    ]
    folder = tmp_path_factory.mktemp("images")
    (folder / "class").mkdir()
    for number in range(_NUM_IMAGES):
        path = folder / "class" / f"{number}.jpg"
        path.write_bytes(contents[number % len(contents)])
    return folder


def _watch(
    folder: pathlib.Path, budget_mib: int, *num_batches: int
) -> list[dict[str, Any]]:
    """Returns what a process of its own said of its memory."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tests.memory_watch", str(folder)),
            *(str(_SIDE), str(budget_mib), str(_BATCH_SIZE)),
            *map(str, num_batches),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECS,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_two_epochs_take_a_part_of_the_decoded_size(
    folder: pathlib.Path,
) -> None:
    before, first_epoch, second_epoch, _ = _watch(
        folder, 1, _BATCHES_A_EPOCH, 2 * _BATCHES_A_EPOCH
    )
    assert "streamed" in first_epoch["dataset"]
    # Of 192 MiB; 33 were measured, which is eleven batches of 3 MiB.
    taken = second_epoch["peak_mib"] - before["resident_mib"]
    assert taken < 64
    # 1 was measured; what each batch leaves behind would be 64 times as much.
    grown = second_epoch["resident_mib"] - first_epoch["resident_mib"]
    assert grown < 24


def test_what_is_decoded_is_in_memory_once(folder: pathlib.Path) -> None:
    before, after, _ = _watch(folder, _DECODED_MIB, _BATCHES_A_EPOCH)
    assert "in memory" in after["dataset"]
    # 225 were measured; a copy would be 192 more.
    taken = after["peak_mib"] - before["resident_mib"]
    assert taken < _DECODED_MIB + 72
