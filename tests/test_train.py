"""Whole runs in this process: real loop, data and files, tiny networks."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import random
import shutil
import signal
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests import runs, tiny
from trainer import (
    adversarial,
    background,
    checkpoint,
    data,
    errors,
    models,
    network,
    outputs,
    run_directory,
    train,
    train_step,
)
from trainer.assembly import networks
from trainer.config import Config
from trainer.heartbeat import Heartbeat
from trainer.storage.local import LocalStore

# 1,797 digits make 7 steps an epoch.
_BATCH_SIZE = 256
_STEPS_PER_EPOCH = 7


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        models.MODELS,
        "dcgan28",
        models.Model(tiny.build_generator, tiny.build_discriminator),
    )


def _config(workdir: pathlib.Path, **changes) -> Config:
    values = {
        "workdir": str(workdir),
        "batch_size": _BATCH_SIZE,
        "latent_dim": 10,
        "epochs": 3,
        "checkpoint_every_epochs": 2,
        "keep_checkpoints": 100,
        "num_logical_cpus": 1,
        "steps_per_loop": 3,
        "log_every_steps": 2,
        **changes,
    }
    config = Config(**values)
    config.validate()
    return config.resolve()


def _run(workdir: pathlib.Path, **changes) -> int:
    heartbeat = Heartbeat(stall_timeout_secs=300)
    return train.run(_config(workdir, **changes), heartbeat)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, pathlib.Path]:
    """Runs of three epochs, on one and on two replicas."""
    workdirs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            models.MODELS,
            "dcgan28",
            models.Model(tiny.build_generator, tiny.build_discriminator),
        )
        for num_replicas in (1, 2):
            workdir = tmp_path_factory.mktemp(f"undisturbed{num_replicas}")
            assert _run(workdir, num_logical_cpus=num_replicas) == 0
            workdirs[num_replicas] = workdir
    return workdirs


def test_a_run_leaves_what_it_promises(
    undisturbed: dict[int, pathlib.Path],
) -> None:
    workdir = undisturbed[1]
    assert sorted(p.name for p in workdir.iterdir()) == [
        "checkpoints",
        "config.json",
        "environment.json",
        "events",
        "metrics.jsonl",
        "report.html",
        "samples",
        "starts.jsonl",
    ]
    assert sorted(p.name for p in (workdir / "samples").iterdir()) == [
        "epoch_0001.png",
        "epoch_0002.png",
        "epoch_0003.png",
        "real.png",
        "training.gif",
    ]
    with PIL.Image.open(workdir / "samples" / "training.gif") as film:
        assert film.n_frames == 3
    # Every second epoch, and the end.
    assert runs.checkpoint_names(workdir) == [
        "step-000000014",
        "step-000000021",
    ]
    assert any((workdir / "events").iterdir())


def test_every_logged_step_has_its_metrics(
    undisturbed: dict[int, pathlib.Path],
) -> None:
    records = runs.records(undisturbed[1])
    # Every second step and the ends of the epochs.
    assert [r["step"] for r in records] == [
        *(2, 4, 6, 7, 8, 10, 12, 14, 16, 18, 20, 21)
    ]
    for record in records:
        assert record.keys() == {
            *train_step.METRIC_NAMES,
            *("step", "epoch", "images_per_sec", "data_wait_secs"),
            *("save_secs", "failed_saves", "failed_uploads", "failed_writes"),
        }
        assert record["epoch"] == -(-record["step"] // _STEPS_PER_EPOCH)
        assert 0 < record["real_probability"] < 1
        assert 0 < record["fake_probability"] < 1
        assert record["images_per_sec"] > 0
        assert record["data_wait_secs"] >= 0
    assert len({r["g_loss"] for r in records}) == len(records)


@pytest.mark.parametrize(
    ("num_replicas", "stop"),
    # In the first epoch, at an epoch's end, at a checkpoint, after it, at
    # random (not from the seed that conftest sets).
    [(1, 5), (1, 7), (1, 14), (1, 20), (1, None), (2, 15), (2, None)],
)
def test_a_stopped_run_ends_as_an_undisturbed_one(
    undisturbed: dict[int, pathlib.Path],
    tmp_path: pathlib.Path,
    num_replicas: int,
    stop: int | None,
) -> None:
    if stop is None:
        stop = random.SystemRandom().randrange(1, 3 * _STEPS_PER_EPOCH)
        print(f"stopping at step {stop}")  # Shown when the test fails.
    changes = {"num_logical_cpus": num_replicas}
    assert _run(tmp_path, max_steps=stop, **changes) == 0
    assert runs.checkpoint_names(tmp_path)[-1] == f"step-{stop:09d}"
    assert _run(tmp_path, **changes) == 0
    runs.assert_same(tmp_path, undisturbed[num_replicas])


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_saves_and_the_same_command_goes_on(
    undisturbed: dict[int, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    exit_code: int,
) -> None:
    record = outputs.Outputs.record

    def record_then_signal(self, **kwargs) -> None:
        record(self, **kwargs)
        if kwargs["step"] == 10:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Outputs, "record", record_then_signal)
        assert _run(tmp_path) == exit_code
    # It may be noticed after one more block of steps.
    stopped = int(runs.checkpoint_names(tmp_path)[-1].split("-")[1])
    assert 10 <= stopped <= 14
    assert not (tmp_path / "samples" / "epoch_0003.png").exists()
    page = (tmp_path / "report.html").read_text()
    assert f"Not finished: step {stopped} of 21" in page
    assert _run(tmp_path) == 0
    runs.assert_same(tmp_path, undisturbed[1])
    page = (tmp_path / "report.html").read_text()
    assert "Finished: step 21 of 21, epoch 3 of 3" in page
    assert f"restarted: step {stopped}" in page
    assert page.count('<div class="grid"') == 3


def test_a_run_killed_after_logging_is_replayed(
    undisturbed: dict[int, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The metrics and samples of steps that no checkpoint holds are on the disk
    # already; they must not be there twice.
    class Killed(BaseException):
        pass

    record = outputs.Outputs.record

    def record_then_die(self, **kwargs) -> None:
        record(self, **kwargs)
        if kwargs["step"] == 20:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Outputs, "record", record_then_die)
        with pytest.raises(Killed):
            _run(tmp_path)
    assert runs.checkpoint_names(tmp_path) == ["step-000000014"]
    assert runs.records(tmp_path)[-1]["step"] == 20
    assert _run(tmp_path) == 0
    runs.assert_same(tmp_path, undisturbed[1])


def _digest_what_steps_see(
    monkeypatch: pytest.MonkeyPatch,
) -> dict[tuple[int, int], tuple[str, str]]:
    """Fills in, by step and position, digests of the sample and latents."""
    seen = {}
    contribution = adversarial.AdversarialRound.contribution

    def note(step, first_position, *arrays) -> np.int64:
        for index, rows in enumerate(zip(*arrays, strict=True)):
            seen[int(step), int(first_position) + index] = tuple(
                hashlib.sha256(row.tobytes()).hexdigest() for row in rows
            )
        return np.int64(0)

    def digest_and_contribute(self, generator, discriminator, **kwargs):
        seen_by_step = [
            kwargs[name] for name in ("step", "first_position", "real")
        ]

        class Digesting(network.Network):
            def __call__(self, latents, buffers=None):
                tf.numpy_function(note, [*seen_by_step, latents], tf.int64)
                return super().__call__(latents, buffers)

        return contribution(
            self, Digesting(*generator), discriminator, **kwargs
        )

    monkeypatch.setattr(
        adversarial.AdversarialRound, "contribution", digest_and_contribute
    )
    return seen


def test_another_replica_count_goes_on_with_the_same_data(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _digest_what_steps_see(monkeypatch)
    # With statistics of the global batch, the results agree up to rounding.
    changes = {"sync_batch_norm": True, "log_every_steps": 1}
    straight, resized = tmp_path / "straight", tmp_path / "resized"
    assert _run(straight, max_steps=9, **changes) == 0
    seen_by_one = dict(seen)
    assert seen_by_one.keys() == {
        (step, position) for step in range(9) for position in range(_BATCH_SIZE)
    }
    # No two latents are the same, ever.
    assert len({latents for _, latents in seen.values()}) == len(seen)
    seen.clear()
    for max_steps, num_replicas in ((3, 2), (6, 1), (9, 4)):
        assert (
            _run(
                resized,
                max_steps=max_steps,
                num_logical_cpus=num_replicas,
                **changes,
            )
            == 0
        )
    assert seen == seen_by_one
    for one, other in zip(
        runs.records(straight), runs.records(resized), strict=True
    ):
        for name in train_step.METRIC_NAMES:
            # Other data, latents or masks would show in the second digit.
            # Adam blows rounding up where gradients vanish: norms show it.
            bound = 1e-3 if name.endswith("norm") else 1e-4
            assert other[name] == pytest.approx(one[name], abs=bound), name


def test_more_epochs_go_on_with_a_finished_run(
    undisturbed: dict[int, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert _run(tmp_path, epochs=1) == 0
    assert _run(tmp_path, epochs=3) == 0
    runs.assert_same(tmp_path, undisturbed[1])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["epochs"] == 3


def test_fewer_epochs_than_are_trained_are_refused(
    tmp_path: pathlib.Path,
) -> None:
    assert _run(tmp_path, epochs=2) == 0
    before = runs.files(tmp_path, "**/*")
    with pytest.raises(errors.UsageError, match=r"--epochs=1 .* epoch 2"):
        _run(tmp_path, epochs=1)
    assert runs.files(tmp_path, "**/*") == before


def test_the_heartbeat_hears_of_every_phase(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = []
    monkeypatch.setattr(
        Heartbeat, "note", lambda self, *note: notes.append(note)
    )
    assert _run(tmp_path / "run", epochs=1) == 0
    assert notes == [
        *(("training", 2), ("training", 4), ("training", 6)),
        *(("sampling", 7), ("saving", 7), ("training", 7), ("ending", 7)),
    ]


def test_a_finished_run_does_nothing(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert _run(tmp_path, epochs=1) == 0
    before = runs.files(tmp_path, "**/*")
    monkeypatch.setattr(networks, "build_state", None)  # Builds no networks.
    with caplog.at_level("INFO"):
        assert _run(tmp_path, epochs=1) == 0
    assert "Finished: 1 epoch, 7 steps" in caplog.text
    assert runs.files(tmp_path, "**/*") == before


def test_a_changed_hyperparameter_is_refused_with_a_diff(
    tmp_path: pathlib.Path,
) -> None:
    assert _run(tmp_path, max_steps=1) == 0
    before = runs.files(tmp_path, "**/*")
    with pytest.raises(errors.UsageError) as caught:
        _run(tmp_path, g_learning_rate=2e-4, seed=9)
    assert "g_learning_rate: 0.0001 -> 0.0002" in str(caught.value)
    assert "seed: 0 -> 9" in str(caught.value)
    assert runs.files(tmp_path, "**/*") == before


def test_changed_data_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(tmp_path, max_steps=1) == 0
    before = runs.files(tmp_path, "**/*")
    original = data.load("digits", data_dir=None)
    changed = data.ArrayDataset(
        samples=255 - original.samples,
        labels=original.labels,
    )
    monkeypatch.setattr(data, "load", lambda name, **kwargs: changed)
    with pytest.raises(errors.DataError, match="data has changed"):
        _run(tmp_path)
    assert runs.files(tmp_path, "**/*") == before


def test_resume_must_needs_a_checkpoint(tmp_path: pathlib.Path) -> None:
    assert _run(tmp_path, max_steps=1) == 0
    for path in (tmp_path / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    with pytest.raises(errors.CheckpointError, match="--resume=must"):
        _run(tmp_path, resume="must")


def test_only_bad_checkpoints_stop_the_run(tmp_path: pathlib.Path) -> None:
    assert _run(tmp_path, max_steps=1) == 0
    [bundle] = (tmp_path / "checkpoints").glob("*/state.data*")
    bundle.write_bytes(bundle.read_bytes()[:-1])
    with pytest.raises(errors.CheckpointError, match="None of the 1"):
        _run(tmp_path)


def test_the_same_seed_gives_the_same_weights(
    undisturbed: dict[int, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert _run(tmp_path / "same") == 0
    runs.assert_same(tmp_path / "same", undisturbed[1])
    assert _run(tmp_path / "other", seed=1) == 0
    same, other = (
        runs.bundle(tmp_path / "same"),
        runs.bundle(tmp_path / "other"),
    )
    changed = [k for k in same if not np.array_equal(same[k], other[k])]
    assert any(name.startswith("generator") for name in changed)
    assert any(name.startswith("discriminator") for name in changed)


def test_steps_per_loop_do_not_change_the_run(
    undisturbed: dict[int, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert _run(tmp_path, steps_per_loop=100) == 0
    runs.assert_same(tmp_path, undisturbed[1])


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_run_across_epochs_and_checkpoints_traces_once(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    num_replicas: int,
) -> None:
    made = []
    init = train_step.TrainStep.__init__

    def remember(self, *args, **kwargs) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(train_step.TrainStep, "__init__", remember)
    assert _run(tmp_path, num_logical_cpus=num_replicas) == 0
    [step] = made
    assert step.num_traces == 1


def test_one_device_and_one_replica_agree(
    undisturbed: dict[int, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert _run(tmp_path, strategy="one_device") == 0
    runs.assert_same(tmp_path, undisturbed[1])


def test_a_loss_that_is_not_finite_ends_the_run_unsaved(
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(
        errors.DivergedError,
        match=r"at step \d+: training has diverged, after 2 rollbacks",
    ):
        _run(
            tmp_path,
            g_learning_rate=1e30,
            d_learning_rate=1e30,
            max_rollbacks=2,
        )
    assert not runs.checkpoint_names(tmp_path)


def _poison_at(
    monkeypatch: pytest.MonkeyPatch, step: int, *, times: int, what: str
) -> list[int]:
    """Lets the state become not finite after a step, some times."""
    steps = []
    real_run = train_step.TrainStep.run

    def run(self, num_steps):
        metrics = real_run(self, num_steps)
        reached = int(self._state.global_step.numpy())
        if reached == step and len(steps) < times:
            steps.append(reached)
            if what == "metric":
                metrics["d_loss"] = math.nan
            else:
                weight = self._state.discriminator.trainable_variables[0]
                weight.assign(weight.value * math.nan)
        return metrics

    monkeypatch.setattr(train_step.TrainStep, "run", run)
    return steps


@pytest.mark.parametrize("what", ["metric", "weight"])
def test_a_run_that_diverges_goes_back_and_draws_anew(
    undisturbed: dict[int, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    # At the step of the second checkpoint, and the first is of step 7.
    steps = _poison_at(monkeypatch, 14, times=2, what=what)
    settings = {"num_logical_cpus": 2, "checkpoint_every_epochs": 1}
    assert _run(tmp_path, resume="never", **settings) == 0
    assert steps == [14, 14]
    # The end is another one, and what was logged on the way there is gone.
    tensors, others = runs.bundle(tmp_path), runs.bundle(undisturbed[2])
    assert any(not np.array_equal(tensors[k], others[k]) for k in tensors)
    assert all(np.isfinite(v).all() for v in tensors.values())
    logged = [r["step"] for r in runs.records(tmp_path)]
    assert logged == [r["step"] for r in runs.records(undisturbed[2])]
    assert runs.checkpoint_names(tmp_path) == [
        "step-000000007",
        "step-000000014",
        "step-000000021",
    ]
    starts = (tmp_path / "starts.jsonl").read_text().splitlines()
    assert [
        (line["step"], line["num_rollbacks"])
        for line in map(json.loads, starts)
    ] == [(0, 0), (7, 1), (7, 2)]
    # Up to the checkpoint it is the same run.
    for record, other in zip(
        runs.records(tmp_path), runs.records(undisturbed[2]), strict=True
    ):
        assert (record["g_loss"] == other["g_loss"]) == (record["step"] <= 7)


def test_a_run_goes_on_after_a_rollback_to_the_same_bits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "checkpoint_every_epochs": 1,
        "keep_checkpoints": 1,
        "rollback_learning_rate_factor": 0.5,
    }
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    with monkeypatch.context() as patch:
        steps = _poison_at(patch, 12, times=1, what="metric")
        assert _run(straight, **settings) == 0
        assert steps == [12]
    with monkeypatch.context() as patch:
        # Stopped before it diverges, too: it must not go back to that point.
        assert _run(stopped, max_steps=9, **settings) == 0
        steps = _poison_at(patch, 12, times=1, what="metric")
        assert _run(stopped, max_steps=16, **settings) == 0
        assert steps == [12]
    assert _run(stopped, **settings) == 0
    runs.assert_same(stopped, straight)
    # And the learning rates are other ones.
    with monkeypatch.context() as patch:
        _poison_at(patch, 12, times=1, what="metric")
        other = {**settings, "rollback_learning_rate_factor": 1.0}
        assert _run(tmp_path / "other", **other) == 0
    tensors, others = runs.bundle(straight), runs.bundle(tmp_path / "other")
    name = next(k for k in tensors if k.startswith("generator"))
    assert not np.array_equal(tensors[name], others[name])


def test_sigusr1_saves_and_goes_on(
    undisturbed: dict[int, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = outputs.Outputs.record

    def record_then_signal(self, **kwargs) -> None:
        record(self, **kwargs)
        if kwargs["step"] == 8:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)  # A thread takes it.

    monkeypatch.setattr(outputs.Outputs, "record", record_then_signal)
    assert _run(tmp_path) == 0
    saved = [int(name[5:]) for name in runs.checkpoint_names(tmp_path)]
    assert saved == [10, 14, 21]
    runs.assert_same(tmp_path, undisturbed[1])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("state.data-00000-of-00001", "flipped"),
        ("state.index", "truncated"),
        ("host_state.json", "emptied"),
        ("MANIFEST.json", "deleted"),
        ("state.index", "swapped"),
    ],
)
def test_a_damaged_checkpoint_costs_steps_and_no_bit(
    undisturbed: dict[int, pathlib.Path],
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: str,
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[1], workdir)
    newest = workdir / "checkpoints" / "step-000000021"
    good = (newest / file).read_bytes()
    if damage == "flipped":
        (newest / file).write_bytes(bytes([good[0] ^ 1]) + good[1:])
    elif damage == "truncated":
        (newest / file).write_bytes(good[:-1])
    elif damage == "emptied":
        (newest / file).write_bytes(b"")
    elif damage == "deleted":
        (newest / file).unlink()
    else:
        [other] = newest.glob("state.data*")
        (newest / file).write_bytes(other.read_bytes())
        other.write_bytes(good)
    with caplog.at_level("INFO"):
        assert _run(workdir) == 0
    assert "step-000000021 in" in caplog.text
    assert "is skipped" in caplog.text
    assert "Going on after step 14" in caplog.text
    runs.assert_same(workdir, undisturbed[1])


@pytest.mark.parametrize("room_again_at", [16, None])
def test_a_full_disk_stops_no_run_before_three_saves_have_failed(
    undisturbed: dict[int, pathlib.Path],
    small_disk: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    room_again_at: int | None,
) -> None:
    workdir, filler = small_disk / "run", small_disk / "filler"
    record = outputs.Outputs.record

    def fill_then_record(self, **kwargs) -> None:
        if kwargs["step"] == 8:
            while not runs.checkpoint_names(workdir):
                time.sleep(0.01)  # In the background, that of step 7.
            with contextlib.suppress(OSError), open(filler, "wb", 0) as file:
                while file.write(b"x" * 4096):
                    pass
        if kwargs["step"] == room_again_at:
            filler.unlink()
        record(self, **kwargs)

    settings = {"checkpoint_every_epochs": 1, "keep_checkpoints": 3}
    with monkeypatch.context() as patch:
        patch.setattr(outputs.Outputs, "record", fill_then_record)
        if room_again_at is None:
            with pytest.raises(errors.StorageError, match="goes on there"):
                _run(workdir, **settings)
            assert runs.newest_step(workdir) == 7
            filler.unlink()
        else:
            assert _run(workdir, **settings) == 0
    assert _run(workdir, **settings) == 0
    lines, others = runs.records(workdir), runs.records(undisturbed[1])
    if room_again_at:
        # One save, the picture of epoch 2, and records that waited.
        assert lines[-1]["failed_saves"] == 1
        assert lines[-1]["failed_writes"] >= 2
        assert not (workdir / "samples" / "epoch_0002.png").exists()
    for name in ("step", "g_loss", "d_loss"):
        assert [r[name] for r in lines] == [r[name] for r in others]
    tensors = runs.bundle(workdir)
    for name, value in runs.bundle(undisturbed[1]).items():
        np.testing.assert_array_equal(value, tensors[name])


class _Disk:
    """Breaks some of the commits, and sends a signal with step 8's record."""

    def __init__(self, patch, error, *, breaks_at, number=None) -> None:
        self.broken_at: list[int] = []
        commit, record = LocalStore.commit, outputs.Outputs.record

        def break_some(store, staging, manifest) -> None:
            if breaks_at(manifest.step):
                self.broken_at.append(manifest.step)
                raise error
            commit(store, staging, manifest)

        def record_then_signal(other, **kwargs) -> None:
            record(other, **kwargs)
            if kwargs["step"] == 8 and number:
                os.kill(os.getpid(), number)
                time.sleep(0.2)  # A thread takes it.

        patch.setattr(LocalStore, "commit", break_some)
        patch.setattr(outputs.Outputs, "record", record_then_signal)
        patch.setattr(background, "_PAUSE_SECS", 0.0)


@pytest.mark.parametrize("older", [7, None])
def test_a_stop_that_cannot_be_saved_ends_so_that_it_is_started_again(
    undisturbed: dict[int, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    older: int | None,
) -> None:
    every = {"checkpoint_every_epochs": 1 if older else 2}
    with monkeypatch.context() as patch:
        disk = _Disk(
            patch,
            errors.StorageError("The server is away."),
            breaks_at=lambda step: step in (8, 10),
            number=signal.SIGTERM,
        )
        with pytest.raises(errors.StorageError) as caught:
            _run(tmp_path, **every)
    assert len(disk.broken_at) == 2
    assert caught.value.exit_code == (143 if older else 6)
    durable = "step-000000007" if older else "Nothing of this run"
    assert f"step {disk.broken_at[0]} is not saved" in str(caught.value)
    assert durable in str(caught.value)
    if older:
        assert _run(tmp_path, **every) == 0
        runs.assert_same(tmp_path, undisturbed[1])


def test_an_end_that_cannot_be_saved_ends_with_6(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Disk(
        monkeypatch,
        errors.StorageError("The server is away."),
        breaks_at=lambda step: step == 9,
    )
    with pytest.raises(errors.StorageError, match="step-000000007") as caught:
        _run(tmp_path, max_steps=9, checkpoint_every_epochs=1)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_a_defect_in_a_save_ends_the_run_once_the_state_is_saved(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    disk = _Disk(
        monkeypatch,
        MemoryError("ours"),
        breaks_at=lambda step: step == 7,
        number=number,
    )
    run = train_step.TrainStep.run

    def run_slowly(self, num_steps: int) -> dict[str, float]:
        time.sleep(0.5)  # The save of step 7 has ended by then.
        return run(self, num_steps)

    monkeypatch.setattr(train_step.TrainStep, "run", run_slowly)
    with pytest.raises(MemoryError, match="ours"):
        _run(tmp_path, checkpoint_every_epochs=1)
    assert disk.broken_at == [7]
    # Not that of the next epoch: this is the next boundary.
    [saved] = runs.checkpoint_names(tmp_path)
    assert 7 < int(saved[5:]) < 14


def test_a_failed_save_is_counted_in_the_next_record(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Disk(
        monkeypatch,
        errors.StorageError("The server is away."),
        breaks_at=lambda step: step == 7,
    )
    run = train_step.TrainStep.run

    def run_slowly(self, num_steps: int) -> dict[str, float]:
        time.sleep(0.5)  # The save of step 7 has ended by then.
        return run(self, num_steps)

    monkeypatch.setattr(train_step.TrainStep, "run", run_slowly)
    assert _run(tmp_path, max_steps=11, checkpoint_every_epochs=1) == 0
    counts = {r["step"]: r["failed_saves"] for r in runs.records(tmp_path)}
    assert [n for step, n in counts.items() if step < 7][-1] == 0
    assert [n for step, n in counts.items() if step > 7][0] == 1


def test_a_damaged_picture_does_not_keep_a_run_from_finishing(
    tmp_path: pathlib.Path,
) -> None:
    assert _run(tmp_path, max_steps=8) == 0
    picture = tmp_path / "samples" / "epoch_0001.png"
    picture.write_bytes(picture.read_bytes()[:100])
    assert _run(tmp_path) == 0
    with PIL.Image.open(tmp_path / "samples" / "training.gif") as film:
        assert film.n_frames == 2


def test_a_batch_that_replicas_cannot_share_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without --num_logical_cpus, only the devices tell: there are four here.
    with pytest.raises(errors.UsageError, match="by the 4 replicas"):
        _run(tmp_path / "run", batch_size=255, num_logical_cpus=0)
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(errors.DataError, match=r"1797 .* 2000"):
        _run(tmp_path / "run", batch_size=2000)
    assert not (tmp_path / "run").exists()


def test_the_batch_arithmetic_is_logged(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert _run(tmp_path, max_steps=1, num_logical_cpus=2) == 0
    assert (
        "digits: 1797 images. Global batch 256 = 2 replicas x 128. 7 steps an "
        "epoch; 5 images, others each time, left out of it. 3 epochs = 21 "
        "steps." in caplog.text
    )
    assert "Training on CPU:0, CPU:1; no GPU was found" in caplog.text
    assert "--max_steps=1 ends it here" in caplog.text


def test_a_passed_max_steps_says_so(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _run(tmp_path, max_steps=3) == 0
    with caplog.at_level("INFO"):
        assert _run(tmp_path, max_steps=2) == 0
    assert "At step 3, epoch 1; --max_steps=2 ends it here" in caplog.text


def test_a_signal_while_data_is_loaded_saves_and_stops(
    undisturbed: dict[int, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = data.load

    def load_slowly(*args, **kwargs) -> data.ArrayDataset:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(data, "load", load_slowly)
        assert _run(tmp_path) == 143
    assert runs.checkpoint_names(tmp_path) == ["step-000000000"]
    assert _run(tmp_path) == 0
    runs.assert_same(tmp_path, undisturbed[1])


def test_a_signal_at_the_very_end_stops_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_film = outputs.Outputs.make_film

    def signal_then_make_film(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        make_film(self)

    monkeypatch.setattr(outputs.Outputs, "make_film", signal_then_make_film)
    assert _run(tmp_path, epochs=1) == 0
    assert runs.checkpoint_names(tmp_path) == ["step-000000007"]


def test_what_is_shown_is_on_the_disk_before_a_checkpoint_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for owner, name in (
        (outputs.Outputs, "draw_samples"),
        (outputs.Outputs, "make_film"),
        (outputs.Outputs, "flush"),
        (checkpoint.Checkpointer, "take"),
    ):
        method = getattr(owner, name)
        monkeypatch.setattr(
            owner,
            name,
            lambda *args, _name=name, _method=method: (
                calls.append(_name),
                _method(*args),
            )[1],
        )
    assert _run(tmp_path, epochs=1) == 0
    assert calls == ["draw_samples", "make_film", "flush", "take"]


def test_a_run_that_lost_its_checkpoints_says_that_it_starts_again(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _run(tmp_path, max_steps=1) == 0
    shutil.rmtree(tmp_path / "checkpoints")
    with caplog.at_level("WARNING"):
        assert _run(tmp_path, max_steps=1) == 0
    assert "no checkpoint of it: it starts again from step 0" in caplog.text


def test_a_directory_in_which_another_process_trains_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    with run_directory.claim(tmp_path):
        run_directory.record_start(_config(tmp_path), "other")
        before = runs.files(tmp_path, "**/*")
        with pytest.raises(errors.StorageError, match="Another process"):
            _run(tmp_path)
    assert runs.files(tmp_path, "**/*") == before
    assert _run(tmp_path, max_steps=1) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16"},
        {"gradient_accumulation_steps": 2},
        {"jit_compile": "on"},
        {"optimizer": "rmsprop"},
        {"sync_batch_norm": True},
    ],
)
def test_every_way_of_computing_resumes_to_the_same_bits(
    tmp_path: pathlib.Path, changes: dict
) -> None:
    changes = {"num_logical_cpus": 2, "epochs": 1, **changes}
    assert _run(tmp_path / "straight", **changes) == 0
    assert _run(tmp_path / "stopped", max_steps=4, **changes) == 0
    assert _run(tmp_path / "stopped", **changes) == 0
    runs.assert_same(tmp_path / "stopped", tmp_path / "straight")
