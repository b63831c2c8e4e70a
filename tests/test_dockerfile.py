"""Rules that the Dockerfile keeps, each of them broken once to see it hold."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests import dockerfile
from tests.dockerfile import Stages

_ROOT = pathlib.Path(__file__).parent.parent
_TEXT = (_ROOT / "Dockerfile").read_text()
_TARGETS = ("cpu", "gpu")
_BASE = "${BASE_IMAGE}${BASE_DIGEST:+@$BASE_DIGEST}"
_SOURCES = {
    *("LICENSE", "README.md", "pyproject.toml", "setup.py"),
    *("launch", "trainer"),
    *("locks/build.txt", "locks/cpu.txt", "locks/gpu.txt"),
}
_HASHED = {"--require-hashes", "--no-deps", "--only-binary=:all:"}
_OFFLINE = {"--no-index", "--no-deps", "--no-build-isolation"}
_FOREIGN = r"\b(apt|apt-get|apk|dnf|yum|curl|wget|git|gcc|make|sudo|conda|sh)\b"
_VARIABLES = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONUNBUFFERED": "1",
}


def _is_exec_form(command: str) -> bool:
    try:
        words = json.loads(command)
    except ValueError:
        return False
    return words[0].startswith("/") and "-c" not in words


def _base_is_an_argument(stages: Stages) -> Iterator[str]:
    arguments = dict(a.split("=") for a in dockerfile.values(stages, "", "ARG"))
    image, _, tag = arguments.get("BASE_IMAGE", "").partition(":")
    if not image or not tag or "latest" in tag:
        yield "BASE_IMAGE needs a default with a tag that means one version"
    for name in [name for name in stages if name]:
        base = dockerfile.values(stages, name, "FROM")[0].split()[0]
        if base != _BASE and base not in stages:
            yield f"{name} has a base of its own, {base}"


def _python_is_that_of_the_locks(stages: Stages) -> Iterator[str]:
    locked = re.search(
        r"--python-version=([\d.]+)", (_ROOT / "locks/refresh").read_text()
    )
    assert locked
    if f"python:{locked[1]}-" not in dockerfile.values(stages, "", "ARG")[0]:
        yield f"the base's Python is not the locks' {locked[1]}"


def _targets_exist(stages: Stages) -> Iterator[str]:
    for target in _TARGETS:
        if target not in stages:
            yield f"there is no target {target}"


def _targets_leave_the_builders_behind(stages: Stages) -> Iterator[str]:
    for target in _TARGETS:
        if any(name == "RUN" for name, _ in stages[target]):
            yield f"{target} runs commands of its own"
        if (
            "FROM runtime"
            not in f"FROM {dockerfile.values(stages, target, 'FROM')[0]}"
        ):
            yield f"{target} holds what was only needed to build it"
        for value in dockerfile.values(stages, target, "COPY"):
            allowed = (f"--from={target}-packages ", "--from=package ")
            if not value.startswith(allowed):
                yield f"{target} copies {value}"


def _user_is_a_number(stages: Stages) -> Iterator[str]:
    for target in _TARGETS:
        user = dockerfile.last(stages, target, "USER")
        # Kubernetes' runAsNonRoot cannot judge a name.
        if not re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user):
            yield f"{target} runs as {user or 'root'}"


def _commands_need_no_shell(stages: Stages) -> Iterator[str]:
    for target in _TARGETS:
        entry = dockerfile.last(stages, target, "ENTRYPOINT")
        if not _is_exec_form(entry) or "trainer.main" not in entry:
            yield f"{target}: a shell would take the trainer's signals"
        check = dockerfile.last(stages, target, "HEALTHCHECK").partition(
            "CMD "
        )[2]
        if not _is_exec_form(check) or "trainer.health" not in check:
            yield f"{target} has no health check without a shell"
        if command := dockerfile.last(stages, target, "CMD"):
            yield f"{target} has flags that one cannot see: CMD {command}"


def _packages_are_locked(stages: Stages) -> Iterator[str]:
    for stage in stages:
        for run in dockerfile.values(stages, stage, "RUN"):
            for command in run.split("&&"):
                if "pip install" not in command:
                    continue
                words = set(command.split())
                locked = any(w.startswith("--requirement=") for w in words)
                if missing := (_HASHED if locked else _OFFLINE) - words:
                    yield f"{stage}: pip without {', '.join(sorted(missing))}"
                if re.search(r"index-url|://|find-links|-host", command):
                    yield f"{stage}: pip with an index of its own"


def _nothing_else_is_installed(stages: Stages) -> Iterator[str]:
    for stage in stages:
        for run in dockerfile.values(stages, stage, "RUN"):
            if found := re.search(_FOREIGN, run):
                yield f"{stage} needs {found[0]}"


def _only_what_is_needed_is_copied(stages: Stages) -> Iterator[str]:
    ignored = (_ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in ignored if line[:1] != "#"][0] == "*"
    for stage in stages:
        if dockerfile.values(stages, stage, "ADD"):
            yield f"{stage} has ADD, which downloads and unpacks"
        for value in dockerfile.values(stages, stage, "COPY"):
            if value.startswith("--from="):
                continue
            for source in value.split()[:-1]:
                if source not in _SOURCES or not (_ROOT / source).exists():
                    yield f"{stage} copies {source}"
                pattern = re.sub(r"locks/\w+", "locks/*", source)
                if f"!{pattern}" not in ignored:
                    yield f".dockerignore keeps {source} back"


def _pip_and_caches_do_not_stay(stages: Stages) -> Iterator[str]:
    if "PIP_NO_CACHE_DIR=1" not in " ".join(
        dockerfile.values(stages, "builder", "ENV")
    ):
        yield "pip keeps a cache"
    for target in _TARGETS:
        runs = " ".join(dockerfile.values(stages, f"{target}-packages", "RUN"))
        if "pip uninstall --yes pip" not in runs:
            yield f"{target} keeps pip"
        if "compileall" not in runs:
            yield f"{target} compiles at every start, since it cannot keep it"


def _both_are_made_alike(stages: Stages) -> Iterator[str]:
    cpu, gpu = (str(stages[f"{t}-packages"]) for t in _TARGETS)
    if cpu.replace("cpu", "gpu") != gpu:
        yield "cpu-packages and gpu-packages differ in more than the name"


def _a_read_only_root_works(stages: Stages) -> Iterator[str]:
    for target in _TARGETS:
        variables = dockerfile.pairs(stages, target, "ENV")
        volume = json.loads(
            dockerfile.last(stages, target, "VOLUME") or '["none"]'
        )[0]
        for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
            if not variables.get(name, "").startswith(volume):
                yield f"{target}: {name} is not in the volume"
        if dockerfile.last(stages, target, "WORKDIR") != volume:
            yield f"{target}: ./runs is not in the volume"
        for name, value in _VARIABLES.items():
            if variables.get(name) != value:
                yield f"{target}: {name} is not {value}"


def _labels_say_what_it_is(stages: Stages) -> Iterator[str]:
    for target in _TARGETS:
        labels = dockerfile.pairs(stages, target, "LABEL")
        for name, argument in (
            ("revision", "REVISION"),
            ("version", "VERSION"),
            ("base.name", "BASE_IMAGE"),
            ("base.digest", "BASE_DIGEST"),
        ):
            label = labels.get(f"org.opencontainers.image.{name}")
            known = argument in dockerfile.values(stages, target, "ARG")
            if label != f"${{{argument}}}" or not known:
                yield f"{target} does not tell its {name}"
        revision = dockerfile.pairs(stages, target, "ENV").get(
            "GAN_TRAINER_REVISION"
        )
        if revision != "${REVISION}":
            yield f"{target} does not tell the trainer its revision"


def _there_are_no_secrets(stages: Stages) -> Iterator[str]:
    for stage in stages:
        for name, value in stages[stage]:
            if name in ("ARG", "ENV") and re.search(
                r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY", value
            ):
                yield f"{stage} keeps {value} in its history"


_RULES: list[Callable[[Stages], Iterator[str]]] = [
    _base_is_an_argument,
    _python_is_that_of_the_locks,
    _targets_exist,
    _targets_leave_the_builders_behind,
    _user_is_a_number,
    _commands_need_no_shell,
    _packages_are_locked,
    _nothing_else_is_installed,
    _only_what_is_needed_is_copied,
    _pip_and_caches_do_not_stay,
    _both_are_made_alike,
    _a_read_only_root_works,
    _labels_say_what_it_is,
    _there_are_no_secrets,
]


def _complaints(text: str) -> list[str]:
    stages = dockerfile.parse(text)
    if missing := list(_targets_exist(stages)):
        return missing
    return [complaint for rule in _RULES for complaint in rule(stages)]


def test_the_dockerfile_keeps_the_rules() -> None:
    assert _complaints(_TEXT) == []


_PYTHON = '"/opt/venv/bin/python", "-m", '


# What is replaced by what, and a part of the complaint that follows.
_BREACHES = [
    ("python:3.11-slim-bookworm", "python", "BASE_IMAGE needs a default"),
    ("python:3.11-slim-bookworm", "python:latest", "BASE_IMAGE needs a"),
    ("python:3.11-slim", "python:3.12-slim", "is not the locks' 3.11"),
    (f"FROM {_BASE} AS runtime", "FROM a:b AS runtime", "of its own"),
    (f"FROM {_BASE} AS runtime", "FROM ${BASE_IMAGE} AS runtime", "its own"),
    ("AS gpu\n", "AS cuda\n", "there is no target gpu"),
    ("FROM runtime AS cpu", "FROM builder AS cpu", "only needed to build"),
    ("COPY --from=package ", "COPY --from=builder ", "copies --from"),
    ("USER 10001:10001\n", "", "runs as root"),
    ("USER 10001:10001", "USER 0:0", "runs as 0:0"),
    ("USER 10001:10001", "USER trainer", "runs as trainer"),
    (f'[{_PYTHON}"trainer.main"]', "python -m trainer.main", "signals"),
    (f'[{_PYTHON}"trainer.main"]', '["/bin/sh", "-c", "a"]', "signals"),
    (f'[{_PYTHON}"trainer.health"]', "python -m trainer.health", "health"),
    ("HEALTHCHECK ", "# ", "no health check"),
    ("WORKDIR /scratch\n", 'WORKDIR /scratch\nCMD ["--epochs=1"]\n', "CMD"),
    ("--require-hashes ", "", "pip without --require-hashes"),
    ("--only-binary=:all: ", "", "pip without --only-binary=:all:"),
    ("--no-index ", "", "pip without --no-index"),
    ("--no-compile --root", "--index-url=x --root", "index of its own"),
    ("RUN mkdir", "RUN apt-get install tini && mkdir", "needs apt"),
    ("COPY trainer trainer", "COPY . .", "copies ."),
    ("COPY trainer trainer", "COPY tests tests", "copies tests"),
    ("COPY trainer trainer", "ADD trainer trainer", "has ADD"),
    ("    PIP_NO_CACHE_DIR=1 \\\n", "", "keeps a cache"),
    ("pip uninstall --yes pip", "true", "keeps pip"),
    ("-m compileall -q -j 0", "-V", "compiles at every start"),
    ("requirement=locks/gpu.txt", "requirement=locks/cpu.txt", "differ"),
    ("ENV HOME=/scratch", "ENV HOME=/root", "HOME is not in the volume"),
    ("TMPDIR=/scratch", "TMPDIR=/tmp", "TMPDIR is not in the volume"),
    ("/scratch/.cache", "/.cache", "XDG_CACHE_HOME is not in the volume"),
    ('VOLUME ["/scratch"]\n', "", "HOME is not in the volume"),
    ("WORKDIR /scratch", "WORKDIR /", "./runs is not in the volume"),
    ("    PYTHONUNBUFFERED=1\n", "    A=1\n", "PYTHONUNBUFFERED is not 1"),
    ("ARG VERSION\n", "", "does not tell its version"),
    ('base.digest="${BASE_DIGEST}"', 'a="b"', "not tell its base.digest"),
    ('image.revision="${REVISION}"', 'image.revision="1"', "its revision"),
    (
        "ENV GAN_TRAINER_REVISION",
        "ENV REVISION",
        "the trainer its revision",
    ),
    ("ARG REVISION\n", "ARG REVISION\nARG NPM_TOKEN\n", "its history"),
]


@pytest.mark.parametrize(("old", "new", "complaint"), _BREACHES)
def test_each_rule_is_seen_to_be_broken(
    old: str, new: str, complaint: str
) -> None:
    assert old in _TEXT
    complaints = _complaints(_TEXT.replace(old, new))
    assert any(complaint in text for text in complaints), complaints


def test_every_rule_is_broken_above() -> None:
    texts = [_TEXT.replace(old, new) for old, new, _ in _BREACHES]
    for rule in _RULES:
        found = [
            complaint
            for stages in map(dockerfile.parse, texts)
            if stages.keys() >= set(_TARGETS) or rule is _targets_exist
            for complaint in rule(stages)
        ]
        assert found, rule.__name__


def test_hadolint_has_nothing_to_say() -> None:
    beside_python = str(pathlib.Path(sys.executable).parent)
    hadolint = shutil.which("hadolint", path=beside_python)
    if not hadolint:
        pytest.skip("there is no hadolint for this machine")
    result = subprocess.run(
        [hadolint, "--no-color", str(_ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, "")
