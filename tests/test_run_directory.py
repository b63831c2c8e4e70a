import errno
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trainer import config as config_lib
from trainer import errors, run_directory


@pytest.fixture
def workdir(tmp_path) -> Path:
    return tmp_path / "runs" / "one"


def make_config(workdir: Path, **values: object) -> config_lib.Config:
    return config_lib.Config(workdir=str(workdir), **values).resolve()


def start(
    config: config_lib.Config, attempt: str
) -> run_directory.RunDirectory:
    """Starts a run in its directory, and ends it."""
    run_directory.check(config)
    with run_directory.claim(Path(config.workdir)):
        run_directory.record_start(config, attempt)
        return run_directory.RunDirectory(Path(config.workdir))


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_new_run_gets_its_config_and_environment(workdir):
    config = make_config(workdir)
    run = start(config, "first")
    assert run.root == workdir
    assert set(contents(workdir)) == {"config.json", "environment.json"}
    text = run.config.read_text()
    assert config_lib.Config.from_json(text, "config.json") == config


def test_each_start_adds_a_line(workdir):
    run = start(make_config(workdir), "first")
    for step, attempt in ((0, "first"), (40, "second")):
        run_directory.append_start(
            run, step=step, attempt=attempt, num_rollbacks=0
        )
    lines = [json.loads(text) for text in run.starts.read_text().splitlines()]
    assert [(line["step"], line["attempt"]) for line in lines] == [
        (0, "first"),
        (40, "second"),
    ]


def test_environment_describes_the_attempt_and_no_variables(
    workdir, monkeypatch
):
    monkeypatch.setenv("A_PASSWORD", "correct horse battery staple")
    run = start(make_config(workdir), "first")
    text = run.environment.read_text()
    assert "correct horse" not in text
    environment = json.loads(text)
    assert environment["attempt"] == "first"
    assert environment["tensorflow"].startswith("2.")
    assert environment["keras"].startswith("3.")
    assert environment["command"]
    start(make_config(workdir), "second")
    assert json.loads(run.environment.read_text())["attempt"] == "second"


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_git_revision_is_that_of_this_code_only(monkeypatch, tmp_path):
    commit = "-c user.name=a -c user.email=a@b commit -q --allow-empty -m a"
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, *commit.split()], check=True)
    module = tmp_path / "trainer" / "run_directory.py"
    module.parent.mkdir()
    monkeypatch.setattr(run_directory, "__file__", str(module))
    assert re.fullmatch("[0-9a-f]{40}", str(run_directory._git_revision()))

    # An installed copy that lies in somebody's repository.
    installed = tmp_path / "site-packages" / "trainer" / "run_directory.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(run_directory, "__file__", str(installed))
    assert run_directory._git_revision() is None


def test_missing_packages_and_git_are_no_obstacle(monkeypatch, workdir):
    monkeypatch.setattr(run_directory, "_PACKAGES", ("no-such-package",))
    monkeypatch.setenv("PATH", "")
    run = start(make_config(workdir), "first")
    environment = json.loads(run.environment.read_text())
    assert environment["no-such-package"] is None
    assert environment["git_revision"] is None


def test_an_image_tells_what_it_is(monkeypatch, workdir):
    image = "somewhere/gan-trainer@sha256:" + "0" * 64
    monkeypatch.setattr(run_directory, "_git_revision", lambda: None)
    monkeypatch.setenv("GAN_TRAINER_REVISION", "c0ffee")
    monkeypatch.setenv("GAN_TRAINER_IMAGE", image)
    run = start(make_config(workdir), "first")
    environment = json.loads(run.environment.read_text())
    assert environment["git_revision"] == "c0ffee"
    assert environment["image"] == image
    # Built without the arguments, and run without a launcher.
    monkeypatch.setenv("GAN_TRAINER_REVISION", "")
    monkeypatch.delenv("GAN_TRAINER_IMAGE")
    run = start(make_config(workdir), "second")
    environment = json.loads(run.environment.read_text())
    assert environment["git_revision"] is None
    assert environment["image"] is None


def test_a_run_may_go_on_with_what_leaves_the_result(workdir):
    start(make_config(workdir), "first")
    config = make_config(workdir, epochs=60, strategy="one_device")
    run = start(config, "second")
    assert json.loads(run.config.read_text())["epochs"] == 60


def test_other_hyperparameters_are_refused_with_a_difference(workdir):
    start(make_config(workdir), "first")
    before = contents(workdir)
    config = make_config(workdir, latent_dim=64, seed=3, epochs=60)
    with pytest.raises(errors.UsageError) as raised:
        start(config, "second")
    message = str(raised.value)
    assert "latent_dim: 100 -> 64" in message
    assert "seed: 0 -> 3" in message
    assert "epochs" not in message
    assert "--workdir" in message
    assert contents(workdir) == before


def test_never_refuses_a_run_and_leaves_it_alone(workdir):
    start(make_config(workdir, resume="never"), "first")
    before = contents(workdir)
    with pytest.raises(errors.UsageError, match="--resume=never"):
        start(make_config(workdir, resume="never"), "second")
    assert contents(workdir) == before


def test_must_refuses_where_there_is_no_run(workdir):
    with pytest.raises(errors.CheckpointError, match="holds no run"):
        start(make_config(workdir, resume="must"), "first")
    assert not workdir.parent.exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"epoch": 50}', b"[]"]
)
def test_a_corrupt_config_is_named(workdir, content):
    run = start(make_config(workdir), "first")
    run.config.write_bytes(content)
    with pytest.raises(errors.UsageError, match=str(run.config)):
        start(make_config(workdir), "second")
    assert run.config.read_bytes() == content


@pytest.mark.parametrize(
    "name", ["checkpoints", "metrics.jsonl", "samples", "events"]
)
def test_remains_of_a_run_without_its_config_are_refused(workdir, name):
    (workdir / name).mkdir(parents=True)
    with pytest.raises(errors.UsageError, match=f"{name} but no config.json"):
        start(make_config(workdir), "first")
    assert contents(workdir) == {}


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (None, "events"),
        ("gs://bucket/runs/one/logs/", "logs"),
        ("gs://bucket/runs/one/logs", "logs"),
    ],
)
def test_events_are_where_vertex_ai_looks_for_them(
    workdir, monkeypatch, wanted, name
):
    monkeypatch.delenv("AIP_TENSORBOARD_LOG_DIR", raising=False)
    if wanted:
        monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", wanted)
    run = run_directory.RunDirectory(workdir)
    assert run.events == workdir / name


def test_a_directory_with_other_things_is_accepted(workdir):
    workdir.mkdir(parents=True)
    (workdir / "notes.txt").write_text("mine")
    start(make_config(workdir), "first")
    assert contents(workdir)["notes.txt"] == b"mine"


@pytest.mark.parametrize("below", [(), ("runs", "one")])
def test_a_file_in_the_way_is_a_storage_error(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    workdir = file.joinpath(*below)
    with pytest.raises(errors.StorageError, match=f"{file} is a file"):
        start(make_config(workdir), "first")
    assert file.read_text() == "mine"


def test_a_directory_without_permission_is_a_storage_error(
    workdir, monkeypatch
):
    # Root may write everywhere, so the answer of the system is replaced.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(errors.StorageError, match="permit"):
        run_directory.check(make_config(workdir))


def test_a_disk_that_refuses_is_a_storage_error(workdir, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(errors.StorageError, match="No space left"):
        start(make_config(workdir), "first")


def test_an_unreadable_config_is_a_storage_error(workdir):
    (workdir / "config.json").mkdir(parents=True)
    with pytest.raises(errors.StorageError, match="config.json"):
        run_directory.check(make_config(workdir))


def test_check_writes_nothing(workdir):
    run = run_directory.check(make_config(workdir))
    assert run.checkpoints == workdir / "checkpoints"
    assert not workdir.parent.exists()


def test_a_claimed_directory_is_refused_to_others(workdir):
    config = make_config(workdir)
    with run_directory.claim(workdir):
        run_directory.record_start(config, "first")
        with pytest.raises(errors.StorageError, match="Another process"):
            start(config, "second")
        environment = (workdir / "environment.json").read_text()
        assert json.loads(environment)["attempt"] == "first"
    start(config, "third")


def test_a_directory_without_locks_can_be_used(workdir, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(run_directory.fcntl, "flock", refuse)
    start(make_config(workdir), "first")
