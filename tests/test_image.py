"""The images, built for real and run as clusters run them."""

import importlib.metadata
import json
import os
import pathlib
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator

import pytest

from tests import containers, runs
from tests.containers import Builder, Container, Image

_MISSING = containers.missing_tools()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(_MISSING), reason=f"needs {_MISSING}"),
]
# As measured, and a little more: growth is to be noticed.
_MAX_BYTES = {"cpu": 2_900_000_000, "gpu": 8_000_000_000}
_GRACE_SECS = 10.0
_VERSION = importlib.metadata.version("gan-trainer")
_LOAD_CUDA = """
import ctypes, glob, os, sys
import nvidia
[root] = nvidia.__path__
for path in sorted(glob.glob(f"{root}/*/lib/*.so*")):
    try:
        ctypes.CDLL(path)
    except OSError as error:
        if "libcuda.so.1: cannot open" not in str(error):
            raise
        continue  # It needs a driver.
    print(os.path.basename(path))
assert os.access(f"{root}/cuda_nvcc/bin/ptxas", os.X_OK)
assert os.path.exists(f"{root}/cuda_nvcc/nvvm/libdevice/libdevice.10.bc")
"""


@pytest.fixture(name="builder", scope="module")
def _builder() -> Iterator[Builder]:
    # Not in pytest's directory, which keeps the last three.
    directory = pathlib.Path(tempfile.mkdtemp(dir="/var/tmp"))
    builder = Builder(directory)
    builder.make_base()
    yield builder
    builder.clean()


@pytest.fixture(name="image", params=["cpu", "gpu"], scope="module")
def _image(builder: Builder, request: pytest.FixtureRequest) -> Iterator[Image]:
    start_secs = time.monotonic()
    builder.build(request.param)
    secs = time.monotonic() - start_secs
    with builder.image(request.param) as image:
        image.target = request.param
        size = _num_bytes(image.root / "opt")
        print(f"{request.param}: {size:,} bytes over the base in {secs:.0f} s")
        assert size < _MAX_BYTES[request.param]
        yield image


@pytest.fixture(name="volume")
def _volume() -> Iterator[pathlib.Path]:
    # The image's user cannot pass through pytest's directories.
    directory = pathlib.Path(tempfile.mkdtemp(dir="/var/tmp"))
    directory.chmod(0o1777)
    yield directory
    shutil.rmtree(directory)


def _files(directory: pathlib.Path) -> Iterator[os.DirEntry]:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(pathlib.Path(entry.path))
        else:
            yield entry


def _num_bytes(directory: pathlib.Path) -> int:
    return sum(
        entry.stat(follow_symlinks=False).st_size for entry in _files(directory)
    )


def _python(image: Image, *arguments: str) -> Image:
    """The same image with Python as its entry point."""
    config = {**image.config, "Entrypoint": ["python", *arguments]}
    return Image(image.root, config)


def test_the_root_holds_no_tools_and_nothing_its_user_may_change(image):
    root = image.root
    for name in ("gcc", "cc", "g++", "make", "git", "curl"):
        assert not list(root.glob(f"usr/*bin/{name}")), name
    [packages] = root.glob("opt/venv/lib/python3.*/site-packages")
    assert not (packages / "pip").exists()
    for name in ("build", "package", "root/.cache", "scratch/.cache"):
        assert not (root / name).exists(), name
    for entry in _files(root / "opt"):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            continue
        assert status.st_uid == 0 and not status.st_mode & 0o022, entry.path
        assert status.st_mode & 0o004, entry.path
        # A read-only root keeps no bytecode that is compiled later.
        if entry.name.endswith(".py"):
            module = pathlib.Path(entry.path)
            cache = module.parent / "__pycache__"
            assert list(cache.glob(f"{module.stem}.*.pyc")), entry.path


def test_it_trains_as_its_user_on_a_read_only_root_offline(image, volume):
    who = "import os; print(os.getuid(), os.getpid()); open('/x', 'w')"
    result = _python(image, "-c", who).run(volume)
    assert result.stdout == "10001 1\n"
    assert "Read-only file system: '/x'" in result.stderr
    start_secs = time.monotonic()
    result = image.run(volume, "--dataset=digits", "--max_steps=20")
    print(f"20 steps from nothing: {time.monotonic() - start_secs:.1f} s")
    print(result.stderr)
    assert result.returncode == 0, result.stderr
    workdir = volume / "runs" / "digits-dcgan28"
    assert runs.newest_step(workdir) == 20
    environment = json.loads((workdir / "environment.json").read_text())
    labels = image.config["Labels"]
    revision = labels["org.opencontainers.image.revision"]
    assert environment["git_revision"] == revision
    assert len(revision.removesuffix("-dirty")) == 40
    assert labels["org.opencontainers.image.version"] == _VERSION


def test_it_answers_sigterm_and_tells_its_health(image, volume):
    # Any user will do: some clusters choose.
    container = Container(image, volume, user="65532:65532")
    container.wait_until(lambda: (volume / "gan-trainer-65532").exists())
    config = {**image.config, "User": "65532:65532"}
    image = Image(image.root, config)
    check = image.config["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    result = image.exec(container.pid, *check[1:])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("alive: starting, process 1, "), result
    metrics = container.workdir / "metrics.jsonl"
    container.wait_until(
        lambda: metrics.exists() and "\n" in metrics.read_text()
    )
    time.sleep(6)  # For the next heartbeat.
    result = image.exec(container.pid, *check[1:])
    print(result.stdout)
    assert result.stdout.startswith("alive: training after step "), result
    start_secs = time.monotonic()
    os.kill(container.pid, signal.SIGTERM)
    assert container.finish() == 143, container.stderr
    secs = time.monotonic() - start_secs
    print(f"SIGTERM to the end: {secs:.1f} s")
    assert secs < _GRACE_SECS
    assert runs.newest_step(container.workdir) > 0


def test_it_has_all_of_cuda(image, volume):
    if image.target != "gpu":
        pytest.skip("there is no CUDA in it")
    result = _python(image, "-c", _LOAD_CUDA).run(volume)
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.split()
    for name in ("libcudart.so.12", "libcudnn.so.9", "libnccl.so.2"):
        assert name in loaded
