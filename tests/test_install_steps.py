"""The Dockerfile's own steps, where images cannot be built: in a directory.

They are read from the Dockerfile and run by the shell as they stand there, but
for the places that they write to.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import dockerfile, runs
from tests.containers import missing_tools
from tests.processes import ROOT

_STAGES = dockerfile.parse((ROOT / "Dockerfile").read_text())
# The package's stage leaves the environment as it is, but needs pip.
_ORDER = ("builder", "package", "cpu-packages", "runtime", "cpu")
_PLACES = re.compile(r"(?<![\w./])/(opt|package|build|scratch)\b")
_VERSION = ".".join(map(str, sys.version_info[:2]))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class _Steps:
    """Follows the instructions of stages, all of them in one directory."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = root
        self._environment: dict[str, str] = {}

    def moved(self, text: str) -> str:
        """Returns a text whose places are below the directory."""
        return _PLACES.sub(rf"{self._root}/\1", text)

    def follow(self, stage: str) -> None:
        """Follows those of one stage."""
        directory = pathlib.Path(self.moved("/build"))
        directory.mkdir(exist_ok=True)
        self._environment |= dockerfile.pairs(_STAGES, stage, "ENV")
        for instruction, value in _STAGES[stage]:
            if instruction == "COPY":
                self._copy(value.split(), directory)
            elif instruction == "RUN":
                print(f"{stage}: {value}", flush=True)
                self.run("sh", "-ec", self.moved(value), cwd=directory)

    def run(
        self, *command: str, cwd: pathlib.Path
    ) -> subprocess.CompletedProcess:
        """Runs a command in the image's environment."""
        environment = os.environ | {
            name: self.moved(value).replace("$PATH", os.environ["PATH"])
            for name, value in self._environment.items()
        }
        environment.pop("PYTHONPATH", None)
        result = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    def _copy(self, words: list[str], directory: pathlib.Path) -> None:
        *sources, target = words
        if sources[0] == "--from=package":
            # It was installed for the place where it is to be.
            place = f"{self.moved('/package')}{self._root}"
            shutil.copytree(place, self._root, dirs_exist_ok=True)
        if sources[0].startswith("--from="):
            return  # It is there already.
        for source in sources:
            place = directory / target
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place)
            elif target.endswith("/"):
                place.mkdir(exist_ok=True)
                shutil.copy(ROOT / source, place)
            else:
                shutil.copy(ROOT / source, place)


@pytest.fixture(name="steps", scope="module")
def _steps(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[_Steps]:
    if not missing_tools():
        pytest.skip("the image itself is built here: test_image.py")
    default = dockerfile.values(_STAGES, "", "ARG")[0]
    if f"python:{_VERSION}-" not in default:
        pytest.skip(f"the locks are not for Python {_VERSION}")
    root = tmp_path_factory.mktemp("image")
    steps = _Steps(root)
    for stage in _ORDER:
        steps.follow(stage)
    yield steps
    shutil.rmtree(root)


def test_what_the_dockerfile_installs_on_cpu_trains(
    steps: _Steps, tmp_path: pathlib.Path
) -> None:
    entry = dockerfile.last(_STAGES, "cpu", "ENTRYPOINT")
    words = re.findall(r'"([^"]+)"', steps.moved(entry))
    workdir = tmp_path / "run"
    steps.run(
        *(*words, "--dataset=digits", "--max_steps=3"),
        f"--workdir={workdir}",
        cwd=tmp_path,
    )
    assert runs.newest_step(workdir) == 3
    # What ran is what was installed, not this repository.
    code = "import trainer, sys; print(trainer.__file__, sys.prefix)"
    found = steps.run(words[0], "-c", code, cwd=ROOT).stdout
    file, prefix = found.split()
    assert prefix == steps.moved("/opt/venv")
    assert file.startswith(prefix)
    assert not list(pathlib.Path(prefix).glob("lib/*/site-packages/pip"))
