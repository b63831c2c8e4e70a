import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tensorflow as tf
from absl import logging

from trainer import config, errors, main
from trainer.heartbeat import Heartbeat

ROOT = Path(main.__file__).parent.parent
# TensorFlow alone takes longer to import than this.
QUICK_SECS = 2


def run_command(directory: Path, *args: str) -> subprocess.CompletedProcess:
    """Runs the entry point in `directory` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "trainer.main", *args],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def train(monkeypatch):
    """Puts a module in the place of `trainer.train` that notes its config."""
    fake = types.ModuleType("trainer.train")
    fake.configs = []
    fake.result = 0

    def run(valid_config: config.Config, heartbeat: Heartbeat) -> int:
        fake.configs.append(valid_config)
        if isinstance(fake.result, BaseException):
            raise fake.result
        return fake.result

    fake.run = run
    monkeypatch.setitem(sys.modules, "trainer.train", fake)
    monkeypatch.setattr("trainer.train", fake, raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    return fake


def test_help_shows_every_flag_and_exits_0(tmp_path):
    result = run_command(tmp_path, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for field in dataclasses.fields(config.Config):
        assert f"--{field.name}" in result.stdout
    for text in ("--flagfile", "Default: 50.", "recipes", "--strategy="):
        assert text in result.stdout
    assert "alsologtostderr" not in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_into_a_pager_that_stops_reading_is_no_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-m", "trainer.main", "--help"],
        cwd=ROOT,
        stdout=write_end,
        stderr=subprocess.PIPE,
    )
    os.close(write_end)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        (["--epoch=3"], ["epoch'", "Did you mean", "--help"]),
        (["mirrored"], ["'mirrored' is not a flag", "--help"]),
        (["--sync_batch_norm", "false"], ["'false'", "--noname"]),
        (["--", "--epochs=3"], ["'--epochs=3' is not a flag"]),
        (["--epochs=0"], ["--epochs=0", "1 or more", "50"]),
        (["--dataset=minst"], ["--dataset=minst", "digits, mnist"]),
        (["--sync_batch_norm=maybe"], ["=maybe", "true or false"]),
        (["--nosync_batch_norm=1"], ["does not take an argument"]),
        (["--epochs"], ["Missing value", "epochs"]),
        (["--flagfile=nowhere"], ["nowhere", "recipes"]),
        (["--num_logical_cpus=3"], ["=3", "=32", "share", "Change"]),
        (
            ["--strategy=one_device", "--num_logical_cpus=2"],
            ["one_device", "=2", "Change"],
        ),
        (["--data_dir=data"], ["--data_dir=data", "embedded", "Leave"]),
        (["--workdir=s3://bucket/run"], ["s3://bucket/run", "gs://bucket"]),
    ],
)
def test_misuse_exits_2_with_value_rule_and_remedy(
    train, capsys, tmp_path, monkeypatch, args, texts
):
    monkeypatch.chdir(tmp_path)
    assert main.main(["main.py", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    for text in texts:
        assert text in captured.err
    assert train.configs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ["--epoch=3"],
        ["mirrored"],
        ["--epochs=0"],
        ["--num_logical_cpus=3"],
    ],
)
def test_the_command_answers_misuse_at_once(tmp_path, args):
    # Of two tries the faster, because the machine may be busy.
    seconds = []
    for _ in range(2):
        start = os.times().elapsed
        result = run_command(tmp_path, *args)
        seconds.append(os.times().elapsed - start)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr
        assert list(tmp_path.iterdir()) == []
    assert min(seconds) < QUICK_SECS


def test_valid_flags_reach_training_resolved(train):
    train.result = 7
    assert main.main(["main.py", "--strategy=mirrored", "--seed", "3"]) == 7
    assert train.configs == [config.Config(seed=3).resolve()]
    assert train.configs[0].batch_size == 32


def test_the_recipe_is_overridden_by_later_flags(train):
    recipe = ROOT / "trainer" / "recipes" / "mnist.flags"
    main.main(["main.py", f"--flagfile={recipe}", "--batch_size=128"])
    main.main(["main.py", "--batch_size=128", f"--flagfile={recipe}"])
    assert [c.dataset for c in train.configs] == ["mnist", "mnist"]
    assert [c.batch_size for c in train.configs] == [128, 256]


@pytest.mark.parametrize(
    "error_type",
    [
        errors.UsageError,
        errors.DataError,
        errors.CheckpointError,
        errors.DivergedError,
        errors.StorageError,
    ],
)
def test_an_error_of_the_run_becomes_its_exit_code(train, capsys, error_type):
    train.result = error_type("value, rule, remedy")
    assert main.main(["main.py"]) == error_type.exit_code
    assert capsys.readouterr().err == "error: value, rule, remedy\n"


def test_a_defect_keeps_its_traceback(train):
    train.result = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        main.main(["main.py"])


def test_log_lines_are_plain_and_go_to_stderr(tmp_path):
    code = """
import os, sys, types
fake = types.ModuleType("trainer.train")
def run(config, heartbeat):
    from absl import logging
    logging.info("step %d", 3)
    logging.warning("slow")
    return int(os.environ["TF_CPP_MIN_LOG_LEVEL"])
fake.run = run
sys.modules["trainer.train"] = fake
tensorflow = types.ModuleType("tensorflow")  # The real one takes seconds.
tensorflow.__file__ = "/nowhere/tensorflow/__init__.py"
tensorflow.config = types.SimpleNamespace(list_physical_devices=list)
sys.modules["tensorflow"] = tensorflow
from trainer import main
sys.exit(main.main(["main.py"]))
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env.pop("TF_CPP_MIN_LOG_LEVEL", None)
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert result.stderr == "step 3\nwarning: slow\n"
    assert result.stdout == ""
    assert result.returncode == 2


def test_tensorflow_says_nothing_at_a_save_and_its_warnings_stay(
    train, tmp_path, caplog
):
    warn = compile(
        "logging.info('theirs'); logging.warning('slow')",
        Path(tf.__file__).parent / "python" / "some.py",
        "exec",
    )

    def run(*_):
        objects = tf.train.Checkpoint(value=tf.Variable(1.0))
        objects.write(str(tmp_path / "state"))
        logging.info("ours")
        exec(warn, {"logging": logging})
        return 0

    train.run = run
    assert main.main(["main.py"]) == 0
    assert caplog.messages == ["ours", "slow"]
