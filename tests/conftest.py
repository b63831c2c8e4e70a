"""Devices and seeds for all tests: four replicas' worth of logical CPUs."""

import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf

from tests.fake_gcs import FakeGcs

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4,
)
# Starts TensorFlow, so that no test can split the CPU otherwise.
tf.config.list_logical_devices("CPU")


class _FreshKeys:
    """Gives each strategy collective keys of its own.

    TensorFlow numbers the groups of every strategy from 1, and a group keeps
    its size for the life of the process: strategies of two sizes would abort
    each other. A training process has one strategy; the tests have many.
    """

    _bases = itertools.count(start=1000, step=1000)

    def __get__(self, instance: object, owner: type) -> int:
        return next(self._bases)


tf.distribute.MirroredStrategy._collective_key_base = _FreshKeys()


@pytest.fixture(autouse=True)
def _seed() -> None:
    # With op determinism on, TensorFlow refuses unseeded draws.
    keras.utils.set_random_seed(1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGcs]:
    """A fake of Cloud Storage with an empty bucket named "bucket"."""
    with FakeGcs() as server:
        server.objects.add_bucket("bucket")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of one megabyte, where the machine permits to mount it."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"Nothing can be mounted here: {error}")
    yield path
    # Lazily: a failed test may have left a file open.
    subprocess.run(["umount", "-l", str(path)], check=True, timeout=20)


_exit_code = 0


def pytest_sessionfinish(exitstatus: int) -> None:
    """Keeps the exit code for `pytest_unconfigure`."""
    global _exit_code
    _exit_code = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Leaves without TensorFlow's clean-up.

    It waits a second or more for each data iterator that the process ever had:
    minutes, after all these tests. Everything is reported by now.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_exit_code)
