"""Evaluations during training: records, the best checkpoint, collapses."""

import contextlib
import os
import pathlib
import signal

import numpy as np
import pytest

from tests import runs, stored_runs
from trainer import data, errors, evaluate, quality, stored_run
from trainer.data.array_dataset import ArrayDataset
from trainer.evaluation.evaluator import Evaluation, Evaluator

STEPS_PER_EPOCH = stored_runs.STEPS_PER_EPOCH


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    stored_runs.use_tiny_networks(monkeypatch)


@pytest.fixture(name="cache", scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("cache")


def run(workdir: pathlib.Path, cache: pathlib.Path, **changes) -> int:
    return stored_runs.run(
        workdir,
        **{
            "evaluate_every_epochs": 1,
            "num_evaluation_samples": 64,
            "cache_dir": str(cache),
            **changes,
        },
    )


def evaluations(workdir: pathlib.Path) -> list[dict]:
    return [r for r in runs.records(workdir) if r.get("kind") == "evaluation"]


def distances_are(monkeypatch, *distances, diversity=1.0):
    """Lets the evaluations find these instead of what they measure."""
    rest = iter(distances)
    measured = Evaluator.evaluate

    def measure(self, *args, **kwargs):
        found = measured(self, *args, **kwargs)
        found.values["frechet_distance"] = next(rest)
        found.values["diversity"] = diversity
        found.floor["frechet_distance"] = 0.1
        return found

    monkeypatch.setattr(Evaluator, "evaluate", measure)


class _Measured:
    """In the place of an evaluator: has its results."""

    protocol = {"features": "a"}

    def __init__(self, *results):
        self._results = list(results)

    def evaluate(self, generator, *, on_progress):
        distance, diversity = self._results.pop(0)
        return Evaluation(
            {"frechet_distance": distance, "diversity": diversity},
            {"frechet_distance": 0.1, "diversity": 1.0},
            self.protocol,
        )


def watch(*results, host_state=None):
    watched = quality.Quality(
        _Measured(*results),
        None,
        host_state=host_state or {},
        is_saved=lambda _: True,
    )
    problems = []
    for step in range(len(results)):
        _, problem = watched.evaluate(step, on_progress=lambda: None)
        problems.append(problem)
    return watched.host_state(len(results)), problems


def test_the_best_has_the_least_distance():
    state, problems = watch((9.0, 0.2), (3.0, 0.8), (4.0, 0.9))
    assert state["best_evaluation"]["step"] == 1
    assert state["best_evaluation"]["values"]["frechet_distance"] == 3.0
    assert problems == [None, None, None]


def test_the_best_is_a_checkpoint_whatever_fails():
    saved = set()
    watched = quality.Quality(
        _Measured(
            *[(distance, 1.0) for distance in (11.0, 9.0, 5.0, 3.0, 2.0)]
        ),
        None,
        host_state={},
        is_saved=saved.__contains__,
    )

    def save(step, *, succeeds):
        state = watched.host_state(step)
        saved.update({step} if succeeds else ())
        return state.get("best_evaluation", {"step": None})["step"]

    for step, succeeds, at_once, later in (
        (5, False, 5, None),
        (10, True, 10, 10),
        (20, False, 20, 10),
        (30, False, 30, 10),
        (40, True, 40, 40),
    ):
        watched.evaluate(step, on_progress=lambda: None)
        assert save(step, succeeds=succeeds) == at_once
        if step != 20:  # Two failures in a row, too.
            assert save(step + 1, succeeds=True) == later


def test_what_a_checkpoint_knows_is_still_the_best():
    state, _ = watch((3.0, 0.8))
    later, _ = watch((4.0, 0.9), host_state=state)
    assert later == state


def test_what_was_measured_otherwise_is_not_compared():
    state, _ = watch((3.0, 0.8))
    state["best_evaluation"]["protocol"] = {"features": "b"}
    later, problems = watch((40.0, 0.1), host_state=state)
    assert later["best_evaluation"]["values"]["frechet_distance"] == 40.0
    assert problems == [None]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ((3.5, 0.3), "differ from each other 0.3 times"),
        ((9.5, 0.9), "distance is 9.5, after 3 at the best"),
        ((8.5, 0.5), None),
    ],
)
def test_a_collapse_is_noticed_by_variety_and_by_distance(result, text):
    _, problems = watch((9.0, 0.1), (3.0, 0.8), result)
    assert problems[:2] == [None, None]
    if text is None:
        assert problems[2] is None
    else:
        assert text in problems[2]


def test_distances_below_the_floor_say_nothing():
    _, problems = watch((0.01, 1.0), (0.2, 1.0))
    assert problems == [None, None]


def test_a_run_measures_itself(tmp_path, cache):
    workdir = tmp_path / "run"
    assert run(workdir, cache, checkpoint_every_epochs=2) == 0
    first, second = evaluations(workdir)
    assert (first["step"], second["step"]) == (7, 14)
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert first["num_fake"] == first["num_real"] == 64
    assert first["frechet_distance"] > first["frechet_distance_floor"]
    # What is evaluated is saved.
    assert len(runs.checkpoint_names(workdir)) == 2
    # The command finds the same afterwards.
    assert (
        evaluate.main(
            [
                "evaluate.py",
                f"--workdir={workdir}",
                "--num_samples=64",
                f"--cache_dir={cache}",
            ]
        )
        == 0
    )
    lines = (workdir / "evaluations.jsonl").read_text()
    assert f'"frechet_distance": {second["frechet_distance"]:.6}'[:-2] in lines


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"evaluation_split": "test"},
            errors.UsageError,
            "--evaluation_split=test: --split=test has no use",
        ),
        (
            {"inception_weights": "none.h5"},
            errors.UsageError,
            "--inception_weights=none.h5 is not a file",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, changes, error, text
):
    monkeypatch.delattr("trainer.evaluation.classifier.train")
    with pytest.raises(error, match=text):
        run(tmp_path / "run", tmp_path / "cache", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("num_images", "num_classes", "error", "text"),
    [
        (30, 1, errors.UsageError, "The data have no classes"),
        (19, 2, errors.DataError, "19 images are too few to train"),
    ],
)
def test_data_that_nothing_can_be_learned_from_are_refused_at_once(
    tmp_path, monkeypatch, num_images, num_classes, error, text
):
    dataset = ArrayDataset(
        samples=np.zeros([num_images, 28, 28, 1], np.uint8),
        labels=np.arange(num_images, dtype=np.int32) % num_classes,
    )
    monkeypatch.setitem(data.ARRAYS, "digits", lambda **_: dataset)
    with pytest.raises(error, match=text):
        run(tmp_path / "run", tmp_path / "cache", batch_size=8)
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_outlives_newer_ones(tmp_path, cache, monkeypatch):
    workdir = tmp_path / "run"
    distances_are(monkeypatch, 5.0, 4.0, 6.0)
    assert run(workdir, cache, epochs=3, keep_checkpoints=1) == 0
    names = ["step-000000014", "step-000000021"]
    assert runs.checkpoint_names(workdir) == names
    # Another start knows it from the checkpoint, and evaluates nothing.
    assert stored_runs.run(workdir, epochs=4, keep_checkpoints=1) == 0
    names = ["step-000000014", "step-000000028"]
    assert runs.checkpoint_names(workdir) == names
    with contextlib.ExitStack() as stack:
        best = stored_run.open_run(str(workdir), "best", stack)
    assert (best.checkpoint.step, best.epoch) == (14, 2)


def test_a_collapse_warns_and_training_goes_on(
    tmp_path, cache, monkeypatch, caplog
):
    distances_are(monkeypatch, 5.0, 50.0)
    assert run(tmp_path / "run", cache) == 0
    assert "Step 14: the samples collapse: their Frechet" in caplog.text


def test_a_collapse_takes_a_run_back_to_its_best(
    tmp_path, cache, monkeypatch, caplog
):
    workdir = tmp_path / "run"
    # The third epoch is saved before the fourth has collapsed.
    distances_are(monkeypatch, 5.0, 4.0, 6.0, 50.0, 3.0, 2.0)
    changes = {"epochs": 4, "on_collapse": "rollback", "conditional": True}
    assert run(workdir, cache, **changes) == 0
    assert "Going back to step 14" in caplog.text
    found = [(r["step"], r["frechet_distance"]) for r in evaluations(workdir)]
    assert found == [(7, 5.0), (14, 4.0), (21, 3.0), (28, 2.0)]
    assert runs.newest_step(workdir) == 28


@pytest.mark.slow
def test_classes_and_all_that_keeps_a_state_go_back_together(
    tmp_path, cache, monkeypatch, caplog
):
    settings = {
        "epochs": 3,
        "on_collapse": "rollback",
        "conditional": True,
        "ema_half_life_images": 500,
        "augment": "flip",
        "augment_target": 0.6,
        "augment_speed_images": 2000,
    }
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    distances = 5.0, 50.0, 4.0, 3.0
    distances_are(monkeypatch, *distances, *distances)
    assert run(straight, cache, **settings) == 0
    assert "Going back to step 7" in caplog.text
    # After it has gone back, and within an epoch.
    assert run(stopped, cache, max_steps=17, **settings) == 0
    assert run(stopped, cache, **settings) == 0
    runs.assert_same(stopped, straight)


def test_a_run_that_collapses_again_and_again_ends(
    tmp_path, cache, monkeypatch
):
    workdir = tmp_path / "run"
    distances_are(monkeypatch, 5.0, 50.0, 50.0)
    with pytest.raises(errors.DivergedError, match="after 1 rollbacks") as end:
        run(workdir, cache, max_rollbacks=1, on_collapse="rollback")
    assert end.value.exit_code == 5
    assert runs.newest_step(workdir) == 7


def test_a_signal_during_an_evaluation_saves_and_stops(
    tmp_path, cache, monkeypatch, caplog
):
    workdir = tmp_path / "run"
    measured = Evaluator.evaluate

    def measure(self, generator, *, on_progress):
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            on_progress()

    monkeypatch.setattr(Evaluator, "evaluate", measure)
    assert run(workdir, cache) == 143
    assert "Step 7 is not evaluated" in caplog.text
    assert runs.newest_step(workdir) == 7
    monkeypatch.setattr(Evaluator, "evaluate", measured)
    assert run(workdir, cache) == 0
    assert [r["step"] for r in evaluations(workdir)] == [14]


def test_a_signal_while_the_classifier_learns_stops_at_once(
    tmp_path, monkeypatch
):
    def learn(*args, on_progress, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            on_progress()

    monkeypatch.setattr("trainer.evaluation.classifier.train", learn)
    with pytest.raises(errors.StoppedError) as stopped:
        run(tmp_path / "run", tmp_path / "cache")
    assert stopped.value.exit_code == 143


def test_evaluations_change_no_weight(tmp_path, cache):
    assert run(tmp_path / "with", cache) == 0
    assert stored_runs.run(tmp_path / "without") == 0
    one, other = (
        runs.bundle(tmp_path / "with"),
        runs.bundle(tmp_path / "without"),
    )
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
