"""Builds and runs the Dockerfile's images without a container engine.

`buildah` builds, on a base that `debootstrap` makes, since a registry may be
out of reach; namespaces run what was built as Docker would: read-only, without
a network, as the image's user. All of it needs root.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.processes import ROOT, TIMEOUT_SECS

_BASE = "localhost/base"
_PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"
# Debian's with the Python that the locks are for.
_SUITE = "bookworm"
_TOOLS = ("buildah", "debootstrap", "unshare", "nsenter", "chroot")
# In a mount namespace of its own: the root read-only, and a volume.
_ENTER = """
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
mount --bind "$2" "$1/scratch"
shift 2
exec "$@"
"""
_NAMESPACES = ("--mount", "--pid", "--net", "--ipc", "--uts")


def missing_tools() -> str:
    """Returns what this machine lacks for building images, or ""."""
    missing = [name for name in _TOOLS if not shutil.which(name)]
    if os.getuid():
        missing.append("root")
    # Root of a container often may not.
    probe = ["unshare", *_NAMESPACES, "--fork", "true"]
    if not missing and subprocess.run(probe, capture_output=True).returncode:
        missing.append("the right to make namespaces")
    return ", ".join(missing)


class Builder:
    """A store of images of its own, in a directory that is removed again."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._buildah = [
            *("buildah", f"--root={directory}/root"),
            *(f"--runroot={directory}/run", f"--storage-driver={_driver()}"),
        ]

    def run(self, *arguments: str) -> str:
        """Runs a buildah command; returns what it prints."""
        return _run([*self._buildah, *arguments]).strip()

    def make_base(self) -> None:
        """Makes a base of Debian's packages."""
        root = self._directory / "base"
        _run(
            [
                *("debootstrap", "--variant=minbase"),
                *(f"--include={_PACKAGES}", _SUITE, str(root)),
            ]
        )
        container = self.run("from", "scratch")
        self.run("add", "--quiet", container, str(root), "/")
        self.run("commit", "--quiet", "--rm", container, _BASE)
        shutil.rmtree(root)

    def build(self, target: str) -> None:
        """Runs the build command of BUILD.md, for one of its targets."""
        section = re.search(
            r"<!-- image -->\n```\n(.*?)\n```\n",
            (ROOT / "BUILD.md").read_text(),
            re.DOTALL,
        )
        assert section, "BUILD.md has no build command"
        command = section[1].replace("in cpu gpu;", f"in {target};")
        assert command != section[1]
        stand_in = self._directory / "docker"
        buildah = " ".join(self._buildah)
        mounts = " ".join(f"--volume={path}:ro" for path in self._mounts())
        stand_in.write_text(
            "#!/bin/sh\n"
            'test "$1" = build && shift\n'
            f"exec {buildah} build --isolation=chroot --format=docker"
            f' --network=host {mounts} --build-arg=BASE_IMAGE={_BASE} "$@"\n'
        )
        stand_in.chmod(0o755)
        path = f"{self._directory}:{os.environ['PATH']}"
        _run(["bash", "-ec", command], env=os.environ | {"PATH": path})

    def _mounts(self) -> Iterator[str]:
        """What the build needs of this machine to reach a package index."""
        for path in ("/etc/resolv.conf", "/etc/hosts"):
            yield f"{path}:{path}"
        if certificates := os.environ.get("PIP_CERT"):
            place = "/etc/ssl/certs/ca-certificates.crt"
            settings = self._directory / "pip.conf"
            settings.write_text(f"[global]\ncert={place}\n")
            yield f"{settings}:/etc/pip.conf"
            yield f"{certificates}:{place}"

    @contextmanager
    def image(self, target: str) -> Iterator["Image"]:
        """Mounts a built image while entered."""
        name = f"gan-trainer:{target}"
        inspected = json.loads(self.run("inspect", "--type=image", name))
        container = self.run("from", name)
        root = self.run("mount", container)
        yield Image(pathlib.Path(root), inspected["Docker"]["config"])
        self.run("umount", container)
        self.run("rm", container)

    def clean(self) -> None:
        """Removes all images."""
        self.run("rm", "--all")
        self.run("rmi", "--all", "--force")
        shutil.rmtree(self._directory)


class Image:
    """What was built: its files, and how it wants to be run."""

    def __init__(self, root: pathlib.Path, config: dict[str, Any]) -> None:
        self.root = root
        self.config = config

    def command(
        self, volume: pathlib.Path, *arguments: str, user: str = ""
    ) -> list[str]:
        """Returns what runs the image, as process 1, without a network.

        Args:
          volume: the directory for its volume.
          arguments: after its entry point.
          user: numbers, "user:group", in place of the image's.
        """
        assert list(self.config["Volumes"]) == ["/scratch"]
        return [
            *("unshare", *_NAMESPACES, "--fork", "--kill-child"),
            *("bash", "-ec", _ENTER, "bash", str(self.root), str(volume)),
            *("chroot", f"--userspec={user or self.config['User']}"),
            *(str(self.root), *self._as_user()),
            *(*self.config["Entrypoint"], *arguments),
        ]

    def run(
        self, volume: pathlib.Path, *arguments: str, user: str = ""
    ) -> subprocess.CompletedProcess:
        """Runs the image to its end."""
        return subprocess.run(
            self.command(volume, *arguments, user=user),
            capture_output=True,
            text=True,
            timeout=600,
        )

    def exec(self, pid: int, *command: str) -> subprocess.CompletedProcess:
        """Runs a command in a running container, as `docker exec` does."""
        user, group = self.config["User"].split(":")
        return subprocess.run(
            [
                *("nsenter", f"--target={pid}", "--all", "--root", "--wd"),
                *(f"--setuid={user}", f"--setgid={group}"),
                *(*self._as_user(), *command),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )

    def _as_user(self) -> list[str]:
        directory = self.config["WorkingDir"]
        return ["env", "-i", f"--chdir={directory}", *self.config["Env"]]


class Container:
    """A running image; its run's directory is `run` in its volume."""

    def __init__(
        self, image: Image, volume: pathlib.Path, *flags: str, user: str = ""
    ) -> None:
        self.workdir = volume / "run"
        self._log = volume / "stderr"
        flags = (*flags, "--workdir=/scratch/run")
        with open(self._log, "w") as stderr:
            self._process = subprocess.Popen(
                image.command(volume, *flags, user=user),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Process 1's number outside."""
        outer = self._process.pid
        path = pathlib.Path(f"/proc/{outer}/task/{outer}/children")
        return int(path.read_text())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition, while it runs."""
        deadline = time.monotonic() + TIMEOUT_SECS
        while not condition():
            assert self._process.poll() is None, self.stderr
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.02)

    def finish(self) -> int:
        """Waits for the end; returns the exit code."""
        return self._process.wait(timeout=TIMEOUT_SECS)


def _driver() -> str:
    """Returns the storage driver that works here; vfs copies every layer."""
    result = subprocess.run(
        ["buildah", "--storage-driver=overlay", "info"], capture_output=True
    )
    return "vfs" if result.returncode else "overlay"


def _run(command: list[str], **kwargs: Any) -> str:
    result = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        **kwargs,
    )
    if result.returncode:
        sys.stderr.write(result.stdout[-5000:] + result.stderr[-5000:])
    result.check_returncode()
    return result.stdout
