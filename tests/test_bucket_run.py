"""Whole runs whose run directory is in a bucket, over a fake of the service."""

import json
import logging
import pathlib
import shutil

import numpy as np
import pytest

from tests import runs, tiny
from tests.fake_gcs import PLACES, FakeGcs, empty_bucket
from trainer import divergence, errors, models, train
from trainer.config import Config
from trainer.heartbeat import Heartbeat
from trainer.storage.mirror import Mirror

_PLACE = "gs://bucket/runs/a"


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        models.MODELS,
        "dcgan28",
        models.Model(tiny.build_generator, tiny.build_discriminator),
    )


def _run(local_dir: pathlib.Path, workdir: str = _PLACE, **changes) -> int:
    values = {
        "workdir": workdir,
        "local_dir": str(local_dir) if "://" in workdir else None,
        "batch_size": 256,
        "latent_dim": 10,
        "epochs": 3,
        "checkpoint_every_epochs": 1,
        "num_logical_cpus": 1,
        "steps_per_loop": 7,
        "upload_deadline_secs": 60,
        **changes,
    }
    config = Config(**values)
    config.validate()
    return train.run(config.resolve(), Heartbeat(stall_timeout_secs=300))


def _straight(tmp_path: pathlib.Path, **changes) -> pathlib.Path:
    workdir = tmp_path / "straight"
    assert _run(workdir, workdir=str(workdir), **changes) == 0
    return workdir


def test_everything_lands_in_the_bucket_and_a_new_machine_goes_on_from_it(
    fake: FakeGcs, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The role for objects is enough; the library asks for more by itself, and
    # does without.
    fake.fail(
        "ANY", r" (/upload)?/storage/v1/b/bucket(\?| )", "status", 403, times=99
    )
    with caplog.at_level(logging.INFO):
        assert _run(tmp_path / "one", max_steps=10) == 0
    assert f"{_PLACE} holds everything up to step 10" in caplog.text
    names = set(fake.objects.names("bucket"))
    # The first of two quick saves may have been overtaken by the second.
    for name in (
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "report.html",
        "starts.jsonl",
        "samples/epoch_0001.png",
        "samples/real.png",
        "checkpoints/step-000000010/MANIFEST.json",
    ):
        assert f"runs/a/{name}" in names
    assert any(name.startswith("runs/a/events/") for name in names)
    assert "runs/a/lease.json" not in names

    # The machine is gone, with its disk.
    shutil.rmtree(tmp_path / "one")
    assert _run(tmp_path / "two") == 0
    runs.assert_same(tmp_path / "two", _straight(tmp_path))
    text = fake.objects.get("bucket", "runs/a/metrics.jsonl").data.decode()
    steps = [json.loads(line)["step"] for line in text.splitlines()]
    assert steps == [7, 14, 21]
    text = fake.objects.get("bucket", "runs/a/starts.jsonl").data.decode()
    starts = [json.loads(line)["step"] for line in text.splitlines()]
    assert starts == [0, 10]
    page = fake.objects.get("bucket", "runs/a/report.html").data.decode()
    assert "Finished: step 21 of 21" in page

    # And the same command says that there is nothing left to do.
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert _run(tmp_path / "three") == 0
    assert "Finished: 3 epochs, 21 steps." in caplog.text


def test_a_network_that_fails_does_not_stop_training(
    fake: FakeGcs, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fail("POST", "checkpoints/step-", "status", 403, times=10_000)
    with (
        caplog.at_level(logging.INFO),
        # Trained to the end, but whoever reads 0 may throw the machine away.
        pytest.raises(errors.StorageError, match="is only in .*/one"),
    ):
        _run(tmp_path / "one", upload_deadline_secs=5)
    assert runs.newest_step(tmp_path / "one") == 21
    # The same command uploads it.
    fake.clear()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert _run(tmp_path / "one") == 0
    assert f"{_PLACE} holds everything up to step 21" in caplog.text


def test_another_command_in_the_same_bucket_is_refused_with_the_difference(
    fake: FakeGcs, tmp_path: pathlib.Path
) -> None:
    assert _run(tmp_path / "one", max_steps=1) == 0
    with pytest.raises(errors.UsageError, match="seed: 0 -> 5"):
        _run(tmp_path / "two", seed=5)
    with pytest.raises(errors.UsageError, match="--resume=never"):
        _run(tmp_path / "three", resume="never")


def test_no_such_bucket_is_one_clear_error(
    fake: FakeGcs, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(errors.StorageError, match="nowhere"):
        _run(tmp_path / "one", workdir="gs://nowhere/a")
    assert not (tmp_path / "one" / "config.json").exists()


@pytest.mark.parametrize("place", PLACES)
def test_weights_do_not_depend_on_where_the_run_is_kept(
    place: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = _straight(tmp_path)
    with empty_bucket(place, monkeypatch) as name:
        workdir = f"gs://{name}/runs/a"
        assert _run(tmp_path / "one", workdir, max_steps=10) == 0
        assert _run(tmp_path / "two", workdir) == 0
    runs.assert_same(tmp_path / "two", straight)


def test_a_run_that_diverges_goes_back_in_its_bucket_too(
    fake: FakeGcs, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_metrics, steps = divergence.check_metrics, []

    def diverge_once(metrics: dict[str, float], step: int) -> None:
        steps.append(step)
        # After the rollback from a checkpoint that the bucket has by then.
        if steps.count(14) == 1 and step == 14:
            raise errors.DivergedError("d_loss is nan at step 14")
        check_metrics(metrics, step)

    monkeypatch.setattr(divergence, "check_metrics", diverge_once)
    assert _run(tmp_path / "one") == 0
    assert steps == [7, 14, 14, 21]
    assert _run(tmp_path / "two") == 0  # From the bucket; finished.
    steps.clear()
    straight = _straight(tmp_path)
    assert steps == [7, 14, 14, 21]
    runs.assert_same(tmp_path / "one", straight)
    assert runs.newest_step(tmp_path / "two") == 21
    ours, theirs = runs.bundle(tmp_path / "two"), runs.bundle(straight)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])


def test_a_run_that_is_no_longer_ours_ends_before_its_next_save(
    fake: FakeGcs, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = property(lambda self: "gs://bucket/runs/a now belongs to another.")
    start = Mirror.download

    def download_then_lose(self, **kwargs):
        monkeypatch.setattr(Mirror, "lost", lost)
        return start(self, **kwargs)

    monkeypatch.setattr(Mirror, "download", download_then_lose)
    with pytest.raises(errors.StorageError, match="belongs to another"):
        _run(tmp_path / "one")
    assert runs.checkpoint_names(tmp_path / "one") == []
