"""What README, BUILD.md, setup.py and CI say of each other is true."""

import dataclasses
import pathlib
import re
import runpy

import pytest
import setuptools

from launch import job_spec
from trainer import config, errors

_ROOT = pathlib.Path(__file__).parent.parent


def _read(name: str) -> str:
    return (_ROOT / name).read_text()


def _readme_command(marker: str) -> str:
    section = re.search(
        rf"<!-- {marker} -->\n```\n(.*)\n```\n", _read("README.md")
    )
    assert section, f"the README has no {marker} command"
    return section.group(1)


@pytest.fixture(name="setup_arguments")
def _setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict:
    captured: dict = {}
    monkeypatch.setattr(setuptools, "setup", captured.update)
    monkeypatch.chdir(_ROOT)
    runpy.run_path(str(_ROOT / "setup.py"))
    return captured


def _names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_-]+", r).group() for r in requirements}


def test_the_readme_has_its_two_commands() -> None:
    assert _readme_command("train").endswith(
        "-m trainer.main --strategy=mirrored"
    )
    assert _readme_command("test").endswith("-m pytest")


def test_ci_runs_the_readmes_test_command() -> None:
    assert "<!-- test -->" in _read(".ci/run")


def test_the_readme_names_only_flags_that_exist() -> None:
    known = {field.name for field in dataclasses.fields(config.Config)}
    known |= {"flagfile", "help", "logdir"}
    known |= {field.name for field in dataclasses.fields(job_spec.JobSpec)}
    known |= {"follow", "json"}  # Of the launcher.
    known |= {"output", "picture"}  # Those of data_tools.
    # Those of generate, evaluate and export.
    known |= {"format", "kind", "step"}
    known |= {"ntasks", "gpus", "signal"}  # Those of Slurm.
    for name in ("README.md", "trainer/recipes/mnist.flags"):
        used = set(re.findall(r"(?<![\w-])--([a-z0-9_]+)", _read(name)))
        assert used <= known, name


def test_the_readme_has_the_exit_codes() -> None:
    section = _read("README.md").split("## Exit codes")[1].split("##")[0]
    codes = {kind.exit_code for kind in errors.TrainerError.__subclasses__()}
    codes |= {0, errors.EXIT_INTERRUPTED, errors.EXIT_PREEMPTED}
    # What a peer's error passes on is one of the others.
    codes -= {errors.TrainerError.exit_code}
    assert {int(n) for n in re.findall(r"\d+", section)} == codes


def test_build_md_explains_every_dependency(setup_arguments: dict) -> None:
    required = _names(setup_arguments["install_requires"])
    required |= _names(setup_arguments["extras_require"]["dev"])
    rows = re.findall(r"^\| ([^|]+) \|", _read("BUILD.md"), re.MULTILINE)
    explained = {name for row in rows for name in row.split(", ")}
    assert required <= explained


def test_every_dependency_has_a_range(setup_arguments: dict) -> None:
    for requirement in setup_arguments["install_requires"]:
        assert ">=" in requirement, requirement


def test_recipes_are_in_the_package(setup_arguments: dict) -> None:
    [pattern] = setup_arguments["package_data"]["trainer"]
    packed = set((_ROOT / "trainer").glob(pattern))
    assert packed == set((_ROOT / "trainer" / "recipes").iterdir())
    assert _ROOT / "trainer" / "recipes" / "mnist.flags" in packed


def test_what_the_report_is_made_of_is_in_the_package(
    setup_arguments: dict,
) -> None:
    packed = setup_arguments["package_data"]["trainer.reporting"]
    files = (_ROOT / "trainer" / "reporting").iterdir()
    needed = {p.name for p in files if p.is_file() and p.suffix != ".py"}
    assert set(packed) == needed == {"page.css", "page.js"}


def test_no_placeholder_is_left() -> None:
    names = ["README.md", "BUILD.md", "trainer/recipes/digits.flags"]
    variables = {"BASE_DIGEST", "BASE_IMAGE", "GAN_TRAINER_IMAGE"}
    variables |= {"STORAGE_TESTBENCH"}
    for name in [*names, "trainer/recipes/mnist.flags"]:
        found = re.findall(r"[A-Z]{3,}_[A-Z_]{3,}", _read(name))
        assert set(found) <= variables, name


def test_the_readmes_pictures_exist() -> None:
    for name in re.findall(r'src="([^"]+)"', _read("README.md")):
        assert (_ROOT / name).read_bytes().startswith(b"\x89PNG"), name
