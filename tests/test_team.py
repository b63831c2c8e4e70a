"""Several workers in processes of their own, and one alone."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import runs, team_worker, tiny
from trainer import distribution, train_step
from trainer.team import Team

_ROOT = pathlib.Path(__file__).parent.parent
_TIMEOUT_SECS = 180


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    addresses = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for each in sockets:
        each.close()
    return addresses


def _run(
    scenario: str, num_workers: int, directory: pathlib.Path
) -> tuple[list[int], list]:
    """Returns the workers' exit codes and what they wrote."""
    addresses = _free_addresses(num_workers)
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.team_worker", scenario),
                *(str(index), str(directory), *addresses),
            ],
            cwd=_ROOT,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(num_workers)
    ]
    try:
        texts = [p.communicate(timeout=_TIMEOUT_SECS)[1] for p in processes]
    finally:
        for process in processes:
            process.kill()
    for text in texts:
        assert "Traceback" not in text, text
    paths = [directory / f"worker{index}.json" for index in range(num_workers)]
    return (
        [process.returncode for process in processes],
        [json.loads(path.read_text()) for path in paths],
    )


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_together_do_what_one_replica_does_alone(
    num_workers: int, tmp_path: pathlib.Path
) -> None:
    codes, results = _run("train", num_workers, tmp_path)
    assert codes == [0] * num_workers
    alone = Team(distribution.make_strategy("one_device"))
    workers = [
        np.load(tmp_path / f"worker{index}.npz") for index in range(num_workers)
    ]
    for num_parts in (1, 2):
        state = tiny.build_state(alone.strategy, sync_batch_norm=True)
        step = tiny.build_step(state, alone, num_accumulation_steps=num_parts)
        step.run(team_worker.NUM_STEPS - 1)
        metrics = step.run(1)
        for result in results:
            for name in train_step.METRIC_NAMES:
                assert result[str(num_parts)][name] == pytest.approx(
                    metrics[name], abs=1e-5
                )
        for number, value in enumerate(tiny.values(state)):
            chiefs = workers[0][f"{num_parts} {number}"]
            np.testing.assert_allclose(chiefs, value, rtol=0, atol=1e-5)
            for worker in workers[1:]:
                np.testing.assert_array_equal(
                    worker[f"{num_parts} {number}"], chiefs
                )


def test_a_step_needs_one_reduction(tmp_path: pathlib.Path) -> None:
    # Both networks' gradients, moving statistics and metrics, packed; the
    # penalty and what adapts the augmentation among them.
    codes, results = _run("count_reductions", 2, tmp_path)
    assert codes == [0, 0]
    assert results == [1, 1]


def test_workers_learn_what_the_others_know(tmp_path: pathlib.Path) -> None:
    codes, results = _run("exchange", 2, tmp_path)
    assert codes == [0, 0]
    for index, result in enumerate(results):
        assert result["shared"] == [2**62, 2**62 - 1]
        assert result["from_chief"] == 7
        assert result["local_replicas"] == [index]
        assert result["nobody_votes"] == [[False, False], 0]
        assert result["somebody_saves"] == [[False, True], 0]
        assert result["somebody_stops"] == [[True, False], 143]
        # To the last bit of every variable.
        assert result["num_taken_over"] == result["num_variables"] > 40


def test_a_workers_error_ends_the_others_with_its_code(
    tmp_path: pathlib.Path,
) -> None:
    codes, results = _run("fail", 2, tmp_path)
    assert codes == [6, 6]
    assert "Worker 1 has ended with exit code 6" in results[0]
    assert results[1] == "The disk is full."


def test_an_error_that_nobody_hears_of_ends_its_worker_all_the_same(
    tmp_path: pathlib.Path,
) -> None:
    codes, results = _run("fail_alone", 2, tmp_path)
    assert codes[1] == 3
    assert results[1] == "There is none."
    # The other finds that it is alone.
    assert codes[0] == 142
    assert "Another worker was lost" in results[0]


def test_other_data_on_a_worker_is_an_error_on_all(
    tmp_path: pathlib.Path,
) -> None:
    codes, results = _run("differ", 2, tmp_path)
    assert codes == [3, 3]
    for result in results:
        assert "Worker 1 has read other data than worker 0" in result
        assert "--data_dir" in result


def test_nobody_leaves_before_the_chief_is_done(
    tmp_path: pathlib.Path,
) -> None:
    codes, results = _run("leave_late", 2, tmp_path)
    assert codes == [0, 0]
    chief, other = results
    assert other["left"] < chief["left"] <= other["after"]


def test_one_worker_alone_asks_nobody() -> None:
    team = Team(distribution.make_strategy("mirrored", num_logical_cpus=2))
    state = tiny.build_state(team.strategy)
    before = tiny.values(state)
    with team:
        assert team.is_chief
        assert team.local_replicas == range(2)
        assert team.share(5) == [5]
        assert team.from_chief(6) == 6
        team.check_same_data("some")
        team.take_over_from_chief(state.variables)
        assert team.vote() == (False, False)
        assert team.vote(wants_save=True) == (False, True)
        assert team.exit_code == 0
        assert team.vote(exit_code=130) == (True, False)
        assert team.exit_code == 130
    for value, old in zip(tiny.values(state), before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_workers_who_come_apart_end(tmp_path: pathlib.Path) -> None:
    codes, said = _run("come_apart", 2, tmp_path)
    assert codes == [142, 142]
    assert all("come apart" in text for text in said)


def test_workers_who_diverge_go_back_together(tmp_path: pathlib.Path) -> None:
    codes, results = _run("diverge", 2, tmp_path)
    assert codes == [0, 0]
    assert [r["steps"] for r in results] == [[7, 14, 14, 21]] * 2
    records = runs.records(tmp_path / "run")
    assert [r["step"] for r in records] == [7, 14, 21]
    assert runs.checkpoint_names(tmp_path / "run")[-1] == "step-000000021"
