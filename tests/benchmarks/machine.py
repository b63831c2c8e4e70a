"""What the figures were taken on, and how busy its GPU is."""

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

_PACKAGES = ("tensorflow", "keras", "numpy", "torch")
_SECS_BETWEEN_POLLS = 0.2


def describe() -> list[str]:
    """Returns the CPU, the GPUs and the versions, a line each."""
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return [
        f"CPU: {_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        f"GPU: {', '.join(gpu_names()) or 'none'}",
        f"Versions: {', '.join(versions)}",
    ]


def gpu_names() -> list[str]:
    """Returns the names of this machine's NVIDIA GPUs."""
    return _ask_gpus("name")


@contextlib.contextmanager
def busy_percentages() -> Iterator[list[int]]:
    """Fills the list, as long as it is entered, with the first GPU's."""
    values: list[int] = []
    done = threading.Event()

    def poll() -> None:
        # The first that this process sees.
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        while not done.wait(_SECS_BETWEEN_POLLS):
            # A GPU that does not tell answers in words.
            values.extend(
                int(answer)
                for answer in _ask_gpus("utilization.gpu", f"--id={gpu}")
                if answer.isdigit()
            )

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield values
    finally:
        done.set()
        thread.join()


def _ask_gpus(field: str, *options: str) -> list[str]:
    """Returns a line for each GPU; nothing if there is no driver to ask."""
    try:
        result = subprocess.run(
            [
                "nvidia-smi",
                f"--query-gpu={field}",
                "--format=csv,noheader,nounits",
                *options,
            ],
            capture_output=True,
            text=True,
        )
    except OSError:
        return []
    return [] if result.returncode else result.stdout.splitlines()


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        if match := re.search(r"^model name\s*: (.+)$", text, re.MULTILINE):
            return match[1]
    return platform.processor() or platform.machine()
