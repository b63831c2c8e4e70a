"""What images are made of: exact versions with checksums, within the ranges."""

import importlib.metadata
import pathlib
import re
import runpy

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = pathlib.Path(__file__).parent.parent
_NAMES = ("build", "cpu", "gpu")
# An image's, whatever the tests run on.
_ENVIRONMENT = {
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "python_full_version": "3.11.9",
    "python_version": "3.11",
    "sys_platform": "linux",
}


def _entries(name: str) -> list[str]:
    """A lock's entries, each in one line, without comments."""
    text = (_ROOT / "locks" / f"{name}.txt").read_text()
    lines = [line for line in text.splitlines() if "#" not in line]
    return re.sub(r" \\\n +", " ", "\n".join(lines)).splitlines()


def _versions(name: str) -> dict[str, str]:
    return dict(entry.split()[0].split("==") for entry in _entries(name))


@pytest.fixture(name="setup_arguments")
def _setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict:
    captured: dict = {}
    monkeypatch.setattr(setuptools, "setup", captured.update)
    monkeypatch.chdir(_ROOT)
    runpy.run_path(str(_ROOT / "setup.py"))
    return captured


def _missing(requirements: list[str], locked: dict[str, str]) -> list[str]:
    """Those that an image needs and the lock does not have."""
    missing = []
    for text in requirements:
        requirement = Requirement(text)
        extras = {"extra": ""}
        marker = requirement.marker
        if marker and not marker.evaluate({**_ENVIRONMENT, **extras}):
            continue
        version = locked.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            missing.append(f"{text}: {version}")
    return missing


@pytest.mark.parametrize("name", _NAMES)
def test_every_entry_is_one_version_with_checksums_and_nothing_else(
    name: str,
) -> None:
    entries = _entries(name)
    assert entries
    checksum = r" --hash=sha256:[0-9a-f]{64}"
    for entry in entries:
        # No addresses, no options: those are the builder's.
        assert re.fullmatch(rf"[a-z0-9-]+==[\w.]+({checksum})+", entry), entry
    assert len(_versions(name)) == len(entries)


def test_the_locks_are_within_the_ranges(setup_arguments: dict) -> None:
    required = setup_arguments["install_requires"]
    cuda = setup_arguments["extras_require"]["cuda"]
    assert _missing(required, _versions("cpu")) == []
    assert _missing([*required, *cuda], _versions("gpu")) == []
    assert _missing(["tensorflow>=99"], _versions("cpu"))
    assert _missing(["no-such-package"], _versions("cpu"))


def test_the_gpus_lock_is_the_cpus_and_cuda() -> None:
    cpu, gpu = set(_entries("cpu")), set(_entries("gpu"))
    assert cpu <= gpu
    added = {entry.split("==")[0] for entry in gpu - cpu}
    assert {"nvidia-cudnn-cu12", "nvidia-nccl-cu12"} <= added
    # XLA needs its assembler.
    assert "nvidia-cuda-nvcc-cu12" in added
    assert all(name.startswith("nvidia-") for name in added)


def test_what_installs_is_what_is_installed() -> None:
    build, cpu = _versions("build"), _versions("cpu")
    assert {"pip", "setuptools", "wheel"} <= build.keys()
    for name in build.keys() & cpu.keys():
        assert build[name] == cpu[name]


def test_nothing_is_missing_that_a_locked_package_needs() -> None:
    """As far as the packages are installed here in the locked versions."""
    locked = _versions("cpu")
    known = 0
    for name, version in locked.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version != version:
            continue
        known += 1
        assert _missing(distribution.requires or [], locked) == [], name
    if known < len(locked) // 2:
        pytest.skip(f"only {known} of {len(locked)} are installed as locked")
