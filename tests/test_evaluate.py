"""The command that measures a run, and what it finds there."""

import contextlib
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests import runs, stored_runs, tiny
from trainer import evaluate, stored_run
from trainer.storage import finder
from trainer.storage.bucket import Bucket
from trainer.storage.local import LocalStore
from trainer.storage.manifest import checkpoint_name
from trainer.storage.remote import RemoteStore


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    stored_runs.use_tiny_networks(monkeypatch)


@pytest.fixture(name="workdir", scope="module")
def _workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stored_runs.use_tiny_networks(monkeypatch)
        assert stored_runs.run(workdir) == 0
    return workdir


@pytest.fixture(name="cache", scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("cache")


def measure(workdir: pathlib.Path | str, cache: pathlib.Path, *args: str):
    return evaluate.main(
        [
            "evaluate.py",
            f"--workdir={workdir}",
            f"--cache_dir={cache}",
            "--num_samples=130",
            *args,
        ]
    )


def records(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / "evaluations.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_values_stand_beside_their_floor(workdir, cache, capsys):
    assert measure(workdir, cache) == 0
    output = capsys.readouterr().out
    assert "130 fakes against 130 real samples" in output
    assert "Floor: 65 real samples against as many others." in output
    assert "right on 180 images held out" in output
    record = records(workdir)[-1]
    assert record["kind"] == "evaluation"
    assert record["step"] == 2 * stored_runs.STEPS_PER_EPOCH
    assert record["epoch"] == 2
    # A distance by a classifier is worth as much as that.
    assert "% right on 180 images held" in record["features_description"]
    assert (record["num_fake"], record["num_real"]) == (130, 130)
    # Networks that have hardly learned are far from real.
    assert record["frechet_distance"] > 2 * record["frechet_distance_floor"]
    assert record["diversity_floor"] == pytest.approx(1, abs=0.2)
    # Of two halves: one beside itself would be at 0.
    assert record["frechet_distance_floor"] > 0.1
    names = [n for n in record if n.endswith("_floor") and n != "num_floor"]
    assert len(names) == 9
    assert all(name.removesuffix("_floor") in record for name in names)


def test_the_same_weights_give_the_same_values(workdir, cache):
    arguments = ["--metrics=frechet_distance,kernel_distance"]
    for seed in ("--seed=7", "--seed=7", "--seed=8"):
        assert measure(workdir, cache, *arguments, seed) == 0
    one, again, other = records(workdir)[-3:]
    for record in (one, again, other):
        del record["time"]
    assert one == again
    assert one["frechet_distance"] != other["frechet_distance"]


def test_a_step_can_be_chosen(workdir, cache):
    step = stored_runs.STEPS_PER_EPOCH
    assert measure(workdir, cache, f"--step={step}") == 0
    assert records(workdir)[-1]["step"] == step


def test_nothing_of_the_run_is_changed(workdir, cache):
    before = runs.files(workdir, "[!e]*") | runs.files(workdir, "*/*/*")
    assert measure(workdir, cache) == 0
    assert before == runs.files(workdir, "[!e]*") | runs.files(workdir, "*/*/*")


@pytest.mark.parametrize(
    ("args", "exit_code", "texts"),
    [
        (["--step=5"], 4, ["no checkpoint of step 5", "14, 7"]),
        (["--step=best"], 4, ["--evaluate_every_epochs"]),
        (["--step=last"], 2, ["--step=last", "newest, best or a step"]),
        (["--metrics=fid"], 2, ["'fid' is unknown", "frechet_distance"]),
        (["--split=test"], 2, ["--split=test has no use"]),
        (["--inception_weights=none.h5"], 2, ["not a file", "downloaded"]),
        (["--num_samples=3"], 2, ["--num_samples=3", "20"]),
        (["--workdir=missing"], 2, ["holds no run", "config.json"]),
        (["--epochs=3"], 2, ["epochs", "--help"]),
    ],
)
def test_misuse_is_explained(workdir, cache, capsys, args, exit_code, texts):
    assert measure(workdir, cache, *args) == exit_code
    error = capsys.readouterr().err
    assert error.startswith("error: ") or "\nerror: " in error
    for text in texts:
        assert text in error


def test_data_that_are_not_there_train_no_classifier(
    workdir, tmp_path, capsys, monkeypatch
):
    monkeypatch.delattr("trainer.evaluation.classifier.train")
    assert measure(workdir, tmp_path, "--split=test") == 2
    assert "--split=test has no use" in capsys.readouterr().err


def test_a_run_must_be_named(capsys):
    assert evaluate.main(["evaluate.py"]) == 2
    assert "--workdir is missing" in capsys.readouterr().err


def test_help_lists_the_flags(capsys):
    assert evaluate.main(["evaluate.py", "--help"]) == 0
    output = capsys.readouterr().out
    for text in ("--workdir", "--metrics", "floor", "exit codes"):
        assert text in output


def test_a_damaged_newest_checkpoint_is_passed_over(workdir, cache, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    newest = runs.checkpoint_names(copy)[-1]
    for path in (copy / "checkpoints" / newest).glob("state.data*"):
        path.write_bytes(b"damaged")
    assert measure(copy, cache) == 0
    assert records(copy)[-1]["step"] == stored_runs.STEPS_PER_EPOCH


def test_the_generator_is_the_one_that_was_trained(workdir):
    with contextlib.ExitStack() as stack:
        run = stored_run.open_run(str(workdir), "newest", stack)
        generator = run.build_generator()
    values = runs.bundle(workdir)
    kernels = [v for n, v in values.items() if n.startswith("generator/")]
    for weight in generator.get_weights():
        assert any(
            weight.shape == kernel.shape and np.array_equal(weight, kernel)
            for kernel in kernels
        )
    assert run.num_classes == 10


def test_averaged_weights_are_taken_where_there_are_some(workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    averaged = tiny.build_generator(latent_dim=tiny.LATENT_DIM)
    averaged.set_weights([w + 3.0 for w in averaged.get_weights()])
    with contextlib.ExitStack() as stack:
        run = stored_run.open_run(str(copy), "newest", stack)
        both = tf.train.Checkpoint(
            generator=run.build_generator(), ema_generator=averaged
        )
        both.write(str(run.checkpoint.directory / finder.BUNDLE_PREFIX))
        restored = run.build_generator()
    for one, other in zip(
        restored.get_weights(), averaged.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_run_in_a_bucket_is_only_read(
    workdir, cache, fake, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    bucket = Bucket("bucket", prefix="runs/one")
    store = RemoteStore(bucket, cache=tmp_path / "sent")
    local = LocalStore(workdir / "checkpoints")
    manifest = local.read_manifest(checkpoint_name(14))
    staging = store.stage(manifest.name, attempt=manifest.attempt)
    for file in manifest.files:
        shutil.copy(local.fetch(manifest) / file.name, staging / file.name)
    store.commit(staging, manifest)
    bucket.upload_bytes(
        (workdir / "config.json").read_bytes(), "config.json", create_only=True
    )
    before = {file.name for file in bucket.list_objects("")}
    assert measure("gs://bucket/runs/one", cache) == 0
    assert {file.name for file in bucket.list_objects("")} == before
    assert records(tmp_path / "runs" / "bucket" / "runs" / "one")[0]["step"]
    # What was measured in training is there, too, and not on this disk.
    with contextlib.ExitStack() as stack:
        run = stored_run.open_run("gs://bucket/runs/one", "newest", stack)
        assert run.read_metrics() == ""
        bucket.upload_bytes(
            b'{"step": 14}\n', "metrics.jsonl", create_only=True
        )
        assert run.read_metrics() == '{"step": 14}\n'
