"""The command that exports a generator."""

import contextlib
import io
import pathlib
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from tests import stored_runs, tiny
from trainer import errors, export, exported_check


@pytest.fixture(name="workdir", scope="module")
def _workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("export") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stored_runs.use_tiny_networks(monkeypatch)
        assert stored_runs.run(workdir, epochs=1) == 0
    return workdir


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    stored_runs.use_tiny_networks(monkeypatch)


def test_it_is_loaded_in_a_new_process_and_makes_the_same(
    workdir, tmp_path, capsys, monkeypatch
):
    # As from a bucket, where the metrics of the run may be.
    monkeypatch.setattr(
        "trainer.stored_run.StoredRun.read_metrics",
        lambda run: (
            '{"kind": "evaluation", "step": 7, "num_fake": 5, "num_real": 6,'
            ' "split": "digits", "features": "f", "evaluation_seed": 1,'
            ' "num_floor": 3, "diversity": 0.75, "diversity_floor": 1.0}'
        ),
    )
    (workdir / "evaluations.jsonl").write_text(
        '{"kind": "evaluation", "step": 7, "num_fake": 5, "num_real": 6,'
        ' "split": "digits", "features": "f", "evaluation_seed": 0,'
        ' "features_description": "nine of ten right",'
        ' "num_floor": 3, "frechet_distance": 2.5,'
        ' "frechet_distance_floor": 0.5}\n{"kind'
    )
    arguments = ["export.py", f"--workdir={workdir}"]
    assert export.main(arguments) == 0
    output = workdir / "export" / "step-000000007"
    assert str(output) in capsys.readouterr().out
    names = sorted(path.name for path in output.iterdir())
    assert names == ["README.md", "generator.keras", "saved_model"]
    serve = tf.saved_model.load(str(output / "saved_model")).signatures[
        "serving_default"
    ]
    samples = serve(latents=tf.zeros([3, tiny.LATENT_DIM]))["samples"]
    assert samples.shape == (3, 28, 28, 1)
    card = (output / "README.md").read_text()
    assert "| frechet_distance | 2.5 | 0.5 |" in card
    assert "| diversity | 0.75 | 1.0 |" in card
    assert "features f, seed 1" in card
    assert "features f (nine of ten right), seed 0" in card
    assert '"g_learning_rate": 0.0001' in card
    # It replaces nothing.
    assert export.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_makes_other_samples_is_not_kept(
    workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "trainer.generation.Generation.samples",
        lambda self, latents, labels: np.ones([4, 28, 28, 1], np.float32),
    )

    def check_here(command, **options):
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            code = exported_check.main(pathlib.Path(command[-1]))
        return subprocess.CompletedProcess(command, code, text.getvalue(), "")

    # One test with a real process is enough.
    monkeypatch.setattr(subprocess, "run", check_here)
    output = tmp_path / "out" / "export"
    arguments = ["export.py", f"--workdir={workdir}", f"--output={output}"]
    assert export.main(arguments) == errors.CheckpointError.exit_code
    assert "saved_model makes other samples" in capsys.readouterr().err
    assert list(output.parent.iterdir()) == []


def test_what_is_not_loaded_in_time_is_not_kept(
    workdir, tmp_path, monkeypatch, capsys
):
    def wait_for_ever(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", wait_for_ever)
    output = tmp_path / "out" / "export"
    arguments = ["export.py", f"--workdir={workdir}", f"--output={output}"]
    assert export.main(arguments) == errors.StalledError.exit_code
    assert "within 600 s, and it is removed" in capsys.readouterr().err
    assert list(output.parent.iterdir()) == []


def test_help_lists_the_flags(capsys):
    assert export.main(["export.py", "--help"]) == 0
    assert "serving_default" in capsys.readouterr().out
