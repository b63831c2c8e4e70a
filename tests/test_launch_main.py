"""The launcher's command line: verbs, help, and what is refused."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch import help_pages, main, platforms
from launch.job_spec import JobSpec, Place
from trainer import options

_ROOT = Path(main.__file__).parent.parent
_VERBS = ["submit", "render", "status", "logs", "cancel", "list"]


def _run(capsys, *arguments):
    capsys.readouterr()
    code = main.main(["main", *arguments])
    return code, *capsys.readouterr()


def test_the_help_of_all_names_verbs_platforms_and_codes(capsys):
    for flag in ("--help", "-h", "-help"):
        code, out, err = _run(capsys, flag)
        assert (code, err) == (0, "")
    for verb in _VERBS:
        assert f"\n  {verb} " in out
    for platform in platforms.MODULES:
        assert f"\n  {platform} " in out
    for code in ("0 done", "1 the platform", "2 usage", "130 Ctrl-C"):
        assert code in out


@pytest.mark.parametrize("verb", _VERBS)
def test_the_help_of_a_verb_has_its_flags_by_topic(capsys, verb):
    code, out, err = _run(capsys, verb, "--help", "--", "--no_such_flag")
    assert (code, err) == (0, "")
    assert f"python -m launch.main {verb}" in out
    of_job = verb in ("submit", "render")
    for field, option in options.fields(JobSpec if of_job else Place):
        assert f"\n  --{field.name}" in out
        assert f"\n{option.topic}:\n" in out
    assert ("--num_workers" in out) == of_job
    assert ("--follow" in out.split("Where:")[1]) == (verb == "logs")
    assert max(len(line) for line in out.splitlines()) <= 80


def _examples(page):
    """Returns the words of each command in a page, without their program."""
    text = page.replace("\\\n", " ")
    commands = re.findall(r"^  python -m launch.main (.*)$", text, re.MULTILINE)
    return [shlex.split(command) for command in commands]


@pytest.mark.parametrize("verb", _VERBS)
def test_the_help_of_a_verb_has_an_example_for_each_platform(capsys, verb):
    examples = _examples(help_pages.page(verb))
    expected = set(platforms.MODULES)
    if verb not in ("submit", "render"):
        expected.remove("local")  # Which is over when submit is.
    found = set()
    digest = f"sha256:{'0' * 64}"
    for words in examples:
        assert words[0] == verb
        [flag] = [word for word in words if word.startswith("--platform=")]
        found.add(flag.partition("=")[2])
        if verb in ("submit", "render"):
            words = [word.replace("sha256:...", digest) for word in words]
            code, out, err = _run(capsys, "render", *words[1:])
            assert code == 0, err
        else:
            start = 1 if verb == "list" else 2
            flags = [verb, *words[start:]]
            values = options.parse(help_pages.FLAGS[verb], flags, "")
            Place(**options.values_from_flags(Place, values)).validate()
    assert found == expected


def test_the_help_of_submit_has_the_flags_by_platform():
    section = help_pages.page("submit").split("Flags by platform:\n")[1]
    section = re.sub(r"\n {14}", " ", section)
    lines = dict(line.split(None, 1) for line in section.splitlines()[:6])
    assert "--workdir" in lines["all"] and "--name" in lines["all"]
    assert "--tensorboard" in lines["vertex"]
    assert "--tensorboard" not in lines["kubernetes"]
    assert "--queue" in lines["kubernetes"]
    assert "--partition" in lines["slurm"]
    assert lines["local"] == "--grace_secs"
    assert "--shm_gib" in lines["docker"]


def test_without_arguments_the_help_is_shown_as_misuse(capsys):
    assert _run(capsys)[:2] == (2, help_pages.page(None) + "\n")


def test_help_as_a_command():
    finished = subprocess.run(
        f"{sys.executable} -m launch.main submit --help | head -n 1",
        shell=True,
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.stdout.startswith("Starts a job")
    assert finished.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["start"], ["'start'", "submit, render, status"]),
        (["--platform=local"], ["--platform=local", "submit, render"]),
        (["submit", "--epochs=2"], ["epochs", "trainer's stand after `--`"]),
        (["submit", "digits"], ["'digits' is not a flag"]),
        (["submit", "--platform=local", "--", "digits"], ["'digits' is not"]),
        (["submit", "--platform=local", "--", "--epoch=2"], ["epochs"]),
        (["submit", "--platform=local", "--", "--epochs=0"], ["--epochs=0"]),
        (
            ["submit", "--platform=local", "--", "--flagfile=nowhere.flags"],
            ["nowhere.flags"],
        ),
        (
            ["submit", "--platform=local", "--", "--data_dir=x"],
            ["--data_dir=x has no use"],
        ),
        (
            ["render", "--platform=local", "--workdir=a", "--", "--workdir=b"],
            ["--workdir=a before", "--workdir=b"],
        ),
        (
            [*("render", "--platform=local", "--num_workers=2"), "--"]
            + ["--strategy=mirrored"],
            ["--strategy=mirrored", "--num_workers=2"],
        ),
        (
            ["render", "--platform=local", "--", "--strategy=multi_worker"],
            ["--num_workers"],
        ),
        (
            ["render", "--platform=local", "--num_workers=3"],
            ["--batch_size=32", "divide by 3", "30 or 33"],
        ),
        (
            [*("render", "--platform=local", "--num_accelerators=8"), "--"]
            + ["--batch_size=96", "--gradient_accumulation_steps=16"],
            ["divide by 128", "--batch_size=128"],
        ),
        (
            ["render", "--platform=kubernetes", "--machine=a2-highgpu-8g"]
            + ["--", "--batch_size=36"],
            ["divide by 8"],
        ),
        (
            ["render", "--platform=vertex", "--accelerator=l4"]
            + ["--num_accelerators=3"],
            ["no machine has 3 l4"],  # Not that the batch does not divide.
        ),
        (
            ["render", "--platform=slurm", "--accelerator=l4"]
            + ["--num_accelerators=0"],
            ["--num_accelerators=0 with --accelerator=l4"],
        ),
        (
            ["render", "--platform=vertex", "--machine=g2-standard-8"]
            + ["--num_accelerators=0"],
            ["--num_accelerators=0 does not go with --machine=g2-standard-8"],
        ),
        (
            [*("render", "--platform=local", "--num_accelerators=2"), "--"]
            + ["--num_logical_cpus=2"],
            ["--num_logical_cpus=2", "2 GPUs without work"],
        ),
        (["status", "--platform=local"], ["status of which job?"]),
        (["list", "--platform=local", "--", "--a"], ["'--a' after `--`"]),
        (["logs", "a", "--platform=docker", "--json"], ["json"]),
        (["list", "--platform=docker", "--region=x"], ["--region has no use"]),
        (["list"], ["--platform is missing"]),
    ],
)
def test_misuse_exits_2_with_the_value_and_the_remedy(capsys, arguments, texts):
    code, out, err = _run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    for text in texts:
        assert text in err


def test_one_device_with_several_gpus_is_refused(capsys):
    flags = ("render", "--platform=local", "--num_accelerators=3", "--")
    code, _, err = _run(capsys, *flags, "--strategy=one_device")
    assert code == 2
    assert "--strategy=one_device would use one of 3 GPUs" in err
    flags = ("render", "--platform=local", "--num_accelerators=1", "--")
    assert _run(capsys, *flags, "--strategy=one_device")[0] == 0


def test_flags_mean_the_same_where_their_file_is_not(capsys, tmp_path):
    path = tmp_path / "some.flags"
    path.write_text("--sync_batch_norm\n--epochs=3\n")
    flags = ("render", "--platform=local", "--")
    _, one, _ = _run(capsys, *flags, f"--flagfile={path}", "--epochs=4")
    _, other, _ = _run(capsys, *flags, "--epochs=4", "--sync_batch_norm")
    assert one == other
    assert one.endswith(" --epochs=4 --sync_batch_norm\n")


def test_a_secret_in_an_error_is_not_shown(capsys):
    secret = "ghp_" + "a1" * 18
    code, out, err = _run(
        capsys, "render", "--platform=local", f"--env={secret}"
    )
    assert code == 2
    assert secret not in out + err
    assert "[redacted]" in err


def test_a_tag_is_warned_of_and_rendered_all_the_same(capsys):
    code, out, err = _run(
        *(capsys, "render", "--platform=docker", "--image=r/i:latest"),
        "--workdir=run",
    )
    assert code == 0
    assert err.startswith("warning: --image=r/i:latest is a tag")
    assert "r/i:latest" in out


@pytest.mark.parametrize("name", platforms.MODULES)
def test_every_platform_has_all_functions(name):
    module = platforms.get(name)
    for function in ("render", "submit", "status", "logs", "cancel"):
        assert callable(getattr(module, function))
    assert callable(module.list_jobs)
