"""A set that is larger than the budget streams in memory that has a bound."""

import json
import pathlib
import subprocess
import sys

from tests import image_files
from tests.processes import ROOT, TIMEOUT_SECS

_SIDE = 256
_NUM_IMAGES = 1024  # 192 MiB when all are decoded.
_BATCH_SIZE = 16
_BATCHES_A_EPOCH = _NUM_IMAGES // _BATCH_SIZE


def test_two_epochs_take_a_part_of_the_decoded_size(
    tmp_path: pathlib.Path,
) -> None:
    contents = [
        image_files.encode(image_files.pixels(seed, _SIDE, _SIDE), "JPEG")
        for seed in range(4)
    ]
    (tmp_path / "class").mkdir()
    for number in range(_NUM_IMAGES):
        path = tmp_path / "class" / f"{number}.jpg"
        path.write_bytes(contents[number % len(contents)])
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tests.memory_watch", str(tmp_path)),
            *(str(_SIDE), "1", str(_BATCH_SIZE)),
            *(str(_BATCHES_A_EPOCH), str(2 * _BATCHES_A_EPOCH)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECS,
    )
    assert result.returncode == 0, result.stderr
    before, first_epoch, second_epoch, _ = map(
        json.loads, result.stdout.splitlines()
    )
    assert "streamed" in first_epoch["dataset"]
    # Of 192 MiB; 33 were measured, which is eleven batches of 3 MiB.
    taken = second_epoch["peak_mib"] - before["resident_mib"]
    assert taken < 64
    # 1 was measured; what each batch leaves behind would be 64 times as much.
    grown = second_epoch["resident_mib"] - first_epoch["resident_mib"]
    assert grown < 24
