"""The life of a job in Docker, with a `docker` of ours on the PATH."""

import json
import os
import pathlib
import sys

import pytest

from launch import docker, main, platforms
from tests import fake_docker

_DOCKER = "--platform=docker"
_IMAGE = f"--image=registry.example.com/gan-trainer@sha256:{'0' * 64}"


@pytest.fixture(name="home", autouse=True)
def _home(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """Where the program `docker` and what it keeps are."""
    home = tmp_path / "bin"
    home.mkdir()
    program = home / "docker"
    source = pathlib.Path(fake_docker.__file__).read_text()
    program.write_text(f"#!{sys.executable} -SE\n{source}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platforms, "_LOOK_AGAIN_SECS", (0.0,))
    monkeypatch.setattr(docker, "_RECONNECT_SECS", 0.0)
    return home


def _containers(home: pathlib.Path) -> dict:
    path = home / "containers.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _set_state(home: pathlib.Path, name: str, **state: object) -> None:
    containers = _containers(home)
    containers[name]["State"].update(state)
    (home / "containers.json").write_text(json.dumps(containers))


def _run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple:
    capsys.readouterr()
    code = main.main(["main", *arguments])
    return code, *capsys.readouterr()


def _submit(capsys: pytest.CaptureFixture, *flags: str) -> dict:
    code, out, err = _run(
        capsys, "submit", _DOCKER, _IMAGE, "--workdir=my run", "--json", *flags
    )
    assert code == 0, err
    return json.loads(out)


def test_the_container_gets_the_directory_the_user_and_the_flags(
    capsys: pytest.CaptureFixture, home: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "mnist").mkdir()
    flags = ["--num_accelerators=2", "--env=A=b c", "--grace_secs=90", "--"]
    job = _submit(capsys, *flags, "--dataset=mnist", "--data_dir=mnist")
    [container] = _containers(home).values()
    options = container["Options"]
    assert container["Config"]["Cmd"] == [
        "--dataset=mnist",
        "--data_dir=/data",
        "--workdir=/workdir",
    ]
    assert options["mount"] == [
        f"type=bind,source={tmp_path}/my run,target=/workdir",
        f"type=bind,source={tmp_path}/mnist,target=/data,readonly",
    ]
    assert (tmp_path / "my run").is_dir()
    assert options["user"] == [f"{os.getuid()}:{os.getgid()}"]
    assert options["gpus"] == ["2"]
    assert options["stop-timeout"] == ["90"]
    assert "A=b c" in options["env"]
    assert job["state"] == "running"
    assert container["Name"] == f"/{job['name']}"


def test_a_run_in_a_bucket_gets_the_credentials_that_there_are(
    capsys: pytest.CaptureFixture, home: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    flags = ("submit", _DOCKER, _IMAGE, "--workdir=gs://bucket/run")
    assert _run(capsys, *flags)[0] == 0
    config = tmp_path / ".config/gcloud"
    config.mkdir(parents=True)
    path = config / "application_default_credentials.json"
    path.write_text("{}")
    assert _run(capsys, *flags, "--name=other")[0] == 0
    without, having = _containers(home).values()
    assert "mount" not in without["Options"]
    assert having["Options"]["mount"] == [
        f"type=bind,source={path},target=/run/credentials.json,readonly"
    ]
    assert (
        "GOOGLE_APPLICATION_CREDENTIALS=/run/credentials.json"
        in having["Options"]["env"]
    )
    assert having["Config"]["Cmd"][-1] == "--local_dir=/scratch/run"


@pytest.mark.parametrize(
    "dataset", ["folder:{}", "tfrecord:{}/part-*.tfrecord"]
)
def test_data_are_where_the_flag_says_and_cannot_be_changed(
    capsys: pytest.CaptureFixture,
    home: pathlib.Path,
    tmp_path: pathlib.Path,
    dataset: str,
) -> None:
    place = tmp_path / "my cats"
    place.mkdir()
    flag = f"--dataset={dataset.format(place)}"
    _submit(capsys, "--", flag, "--image_size=32")
    [container] = _containers(home).values()
    assert flag in container["Config"]["Cmd"]
    assert container["Options"]["mount"][1:] == [
        f"type=bind,source={place},target={place},readonly"
    ]


def test_data_below_the_data_directory_are_mounted_with_it(
    capsys: pytest.CaptureFixture, home: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "all").mkdir()
    _submit(capsys, "--", "--dataset=folder:cats", "--data_dir=all")
    [container] = _containers(home).values()
    assert container["Config"]["Cmd"][:2] == [
        "--dataset=folder:cats",
        "--data_dir=/data",
    ]
    assert len(container["Options"]["mount"]) == 2


def test_data_that_is_not_there_is_told_before_docker_is_asked(
    capsys: pytest.CaptureFixture, home: pathlib.Path
) -> None:
    code, _, err = _run(
        *(capsys, "submit", _DOCKER, _IMAGE, "--workdir=run"),
        *("--", "--dataset=mnist", "--data_dir=nowhere/mnist"),
    )
    assert code == 1
    assert "nowhere/mnist" in err
    assert not _containers(home)


@pytest.mark.parametrize(
    ("state", "expected", "detail"),
    [
        ({"Status": "created"}, "queued", "created"),
        (
            {"Status": "created", "Error": "no such runtime"},
            "failed",
            "no such runtime",
        ),
        ({"Status": "running"}, "running", "running"),
        ({"Status": "exited", "ExitCode": 0}, "succeeded", "exited, code 0"),
        ({"Status": "exited", "ExitCode": 3}, "failed", "exited, code 3"),
        ({"Status": "exited", "ExitCode": 143}, "cancelled", "code 143"),
        (
            {"Status": "exited", "ExitCode": 137, "OOMKilled": True},
            "failed",
            "exited, code 137, out of memory",
        ),
    ],
)
def test_states(
    capsys: pytest.CaptureFixture,
    home: pathlib.Path,
    state: dict,
    expected: str,
    detail: str,
) -> None:
    name = _submit(capsys)["name"]
    _set_state(home, name, **state)
    code, out, _ = _run(capsys, "status", name, _DOCKER, "--json")
    assert code == 0
    assert json.loads(out)["state"] == expected
    assert detail in json.loads(out)["detail"]


def test_the_same_job_runs_once_and_again_after_a_failure(
    capsys: pytest.CaptureFixture, home: pathlib.Path
) -> None:
    first = _submit(capsys)
    assert _submit(capsys)["resource"] == first["resource"]
    _set_state(home, first["name"], Status="exited", ExitCode=6)
    second = _submit(capsys)
    assert second["name"] == f"{first['name']}-2"
    assert [c["Name"] for c in _containers(home).values()] == [
        f"/{first['name']}",
        f"/{second['name']}",
    ]
    code, out, _ = _run(capsys, "list", _DOCKER)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        [second["name"], "running"],
        [first["name"], "failed"],
    ]


@pytest.mark.parametrize(
    ("ended", "words", "created"),
    [
        (None, "already there; nothing was started\n", False),
        (0, "has succeeded; nothing was started. To run it anew,", False),
        (6, "started: attempt 2, after one that failed or was", True),
    ],
)
def test_submitting_again_says_what_was_done(
    capsys: pytest.CaptureFixture,
    home: pathlib.Path,
    ended: int | None,
    words: str,
    created: bool,
) -> None:
    first = _submit(capsys)
    assert first["created"] is True
    if ended is not None:
        _set_state(home, first["name"], Status="exited", ExitCode=ended)
    code, out, err = _run(
        *(capsys, "submit", _DOCKER, _IMAGE, "--workdir=my run", "--json")
    )
    assert code == 0
    assert f"\n{words}" in f"\n{err}"
    assert json.loads(out)["created"] is created
    # Which is nothing that a job has later.
    _, out, _ = _run(capsys, "status", first["name"], _DOCKER, "--json")
    assert "created" not in json.loads(out)


def test_of_two_who_submit_at_once_one_finds_the_others(
    capsys: pytest.CaptureFixture, home: pathlib.Path
) -> None:
    conflict = 'Conflict. The container name "/x" is already in use\ndone'
    (home / "fail").write_text(conflict)
    assert _submit(capsys)["state"] == "running"
    assert len(_containers(home)) == 1


def test_what_docker_refuses_is_told(
    capsys: pytest.CaptureFixture,
    home: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (home / "fail").write_text("could not select device driver")
    flags = ("submit", _DOCKER, _IMAGE, "--workdir=run")
    code, _, err = _run(capsys, *flags)
    assert code == 1
    assert "could not select device driver" in err
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = _run(capsys, *flags)
    assert code == 2
    assert "not on the PATH" in err


def test_logs_come_once_each_over_lost_connections(
    capsys: pytest.CaptureFixture, home: pathlib.Path
) -> None:
    name = _submit(capsys)["name"]
    running: dict = {}
    ended = {"Status": "exited", "ExitCode": 0}
    steps = [
        [["1.0 one", "1.1 two"], running],
        [["1.1 at the same time"], running],
        [[], running],
        [["1.3 three four"], ended],
        [["1.4 last"], running],
    ]
    (home / "script").write_text(json.dumps(steps))
    code, out, err = _run(capsys, "logs", name, _DOCKER, "--follow")
    assert out.splitlines() == [
        *("one", "two", "at the same time", "three four", "last"),
    ]
    assert code == 0
    assert "succeeded" in err
    code, out, _ = _run(capsys, "logs", name, _DOCKER)
    assert (code, len(out.splitlines())) == (0, 5)


def test_cancel_stops_the_container(
    capsys: pytest.CaptureFixture, home: pathlib.Path
) -> None:
    name = _submit(capsys)["name"]
    code, _, err = _run(capsys, "cancel", name, _DOCKER)
    assert code == 0
    assert err == f"{name}: cancelled\n"
    assert _containers(home)[name]["State"]["ExitCode"] == 143


def test_names_that_are_not_there(capsys: pytest.CaptureFixture) -> None:
    for verb in ("status", "logs", "cancel"):
        code, _, err = _run(capsys, verb, "train-0", _DOCKER)
        assert code == 2
        assert "There is no job 'train-0' in Docker" in err
