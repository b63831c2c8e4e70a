"""Batch scripts, run for real by a Slurm of our own; and the life of a job."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import platforms, slurm, slurm_commands
from launch.job_spec import JobSpec, Place
from launch.platforms import State
from tests import golden_files
from tests.fake_slurm import FakeSlurm
from trainer import cluster, errors

_PLACE = Place(platform="slurm")
_TRAINER = Path(__file__).with_name("fake_trainer.py")
_CASES = {
    "1_gpu": {"num_accelerators": 1, "env": ("GREETING=it's 5 o'clock",)},
    "8_gpus": {
        "accelerator": "h100",
        "num_accelerators": 8,
        "cpus": 96,
        "memory_gib": 900,
        "partition": "gpu",
        "slurm_account": "faces",
        "timeout_secs": 86_400,
        "grace_secs": 180,
        "image": f"registry.example.com/gan-trainer@sha256:{'0' * 64}",
        "workdir": "/data/my runs/first",
    },
    "2_workers": {
        "accelerator": "a100",
        "num_workers": 2,
        "num_accelerators": 4,
        "image": "/images/gan-trainer.sif",
        "workdir": "/data/runs/first",
    },
    "a_worker_a_gpu": {
        "num_workers": 8,
        "workers_per_node": 4,
        "num_accelerators": 1,
        "cpus": 8,
        "workdir": "gs://bucket/runs/first",
    },
}


def _spec(**fields):
    defaults = {
        "platform": "slurm",
        "workdir": "runs/first",
        "trainer_flags": ("--dataset=mnist", "--data_dir=/data/mnist"),
    }
    spec = JobSpec(**(defaults | fields))
    spec.validate()
    return spec


@pytest.mark.parametrize("case", _CASES)
def test_what_is_sent_is_what_was_reviewed(case):
    rendered = slurm.render(_spec(**_CASES[case]))
    golden_files.check(f"slurm_{case}.sh", rendered)
    subprocess.run(
        ["bash", "-n"], input=rendered, text=True, check=True, timeout=10
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"spot": True}, "--spot has no use with --platform=slurm"),
        ({"workdir": None}, "--workdir is missing"),
        ({"num_workers": 3, "workers_per_node": 2}, "does not divide"),
        ({"env": ("TF_CONFIG={}",)}, "TF_CONFIG"),
    ],
)
def test_what_cannot_work_is_refused(fields, words):
    with pytest.raises(errors.UsageError, match=words):
        slurm.render(_spec(**fields))


def test_a_tilde_is_the_home_directory():
    flags = ("--dataset=mnist", "--data_dir=~/my data")
    spec = {"workdir": "~/runs/one", "trainer_flags": flags}
    for image in ("i.sif", "registry.example.com/i"):
        script = slurm.render(_spec(**spec, image=image))
        assert 'mkdir -p "$HOME"/runs/one\n' in script
        assert '--workdir="$HOME"/runs/one\n' in script
        assert "--data_dir=\"$HOME\"/'my data'" in script
        assert "~" not in script
    assert '"$HOME"/runs/one:"$HOME"/runs/one' in script
    script = slurm.render(_spec(**spec, image="i.sif"))
    assert '--bind="$HOME"/runs/one' in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_container_sees_the_data_that_the_flags_name():
    flags = ("--dataset=tfrecord:/packed/cats/*.tfrecord", "--image_size=32")
    spec = {"workdir": "gs://bucket/run", "trainer_flags": flags}
    script = slurm.render(_spec(**spec, image="i.sif"))
    assert "--bind=/packed/cats " in script
    script = slurm.render(_spec(**spec, image="registry.example.com/i"))
    assert "/packed/cats:/packed/cats" in script


@pytest.fixture
def fake(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path)
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setenv("FAKE_TRAINER", str(tmp_path))
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.chdir(tmp_path / "submitted")
    (tmp_path / "exit").write_text("{}")
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S {_TRAINER} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(slurm_commands, "_FIRST_WAIT_SECS", 0.01)
    monkeypatch.setattr(slurm_commands, "_GIVE_UP_SECS", 5.0)
    monkeypatch.setattr(platforms, "_LOOK_AGAIN_SECS", (0.0,))
    monkeypatch.setattr(slurm, "_POLL_SECS", 0.02)
    yield fake
    for number in fake.jobs():
        for pid in fake.tasks(number):
            os.kill(pid, signal.SIGKILL)


def _submit(fake, **fields):
    """Submits a job of the fake trainer; returns its name and number."""
    python = str(fake.directory / "bin" / "python")
    status = slurm.submit(_spec(python=python, **fields))
    assert status.state is State.QUEUED
    return status.name, status.resource


def _start(fake, number, num_workers=1):
    """Starts a job and waits until all its trainers are there."""
    for rank in range(num_workers):  # Those of the last start.
        (fake.directory / f"{rank}.json").unlink(missing_ok=True)
    process = fake.start(number)
    _wait_for(lambda: len(fake.tasks(number)) == num_workers)
    for rank in range(num_workers):
        _wait_for((fake.directory / f"{rank}.json").exists)
    return process


def _run(fake, number, codes):
    """Runs a job whose trainers exit with codes; returns that of the script."""
    (fake.directory / "exit").write_text(json.dumps(codes))
    return fake.wait(number, fake.start(number))


def _wait_for(is_true):
    deadline_secs = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline_secs
        time.sleep(0.01)


def _state(name):
    return slurm.status(_PLACE, name).state


@pytest.mark.parametrize(
    ("num_workers", "per_node", "hosts"),
    [
        (2, 1, ["node1", "node2"]),
        (4, 2, ["node1", "node1", "node2", "node2"]),
    ],
)
def test_the_trainers_learn_who_they_are(
    fake, monkeypatch, num_workers, per_node, hosts
):
    monkeypatch.setenv("TF_CONFIG", "of the shell that submits")
    _, number = _submit(
        fake,
        num_workers=num_workers,
        workers_per_node=per_node,
        env=("GREETING=it's 5 o'clock",),
    )
    codes = {str(rank): 0 for rank in range(num_workers)}
    assert _run(fake, number, codes) == 0
    for rank in range(num_workers):
        told = json.loads((fake.directory / f"{rank}.json").read_text())
        found = cluster.from_environment(told["environ"])
        assert found.index == rank
        places = [address.split(":")[0] for address in found.addresses]
        assert places == hosts
        assert told["environ"]["GREETING"] == "it's 5 o'clock"
        assert told["arguments"] == [
            "-m",
            "trainer.main",
            "--strategy=multi_worker",
            "--dataset=mnist",
            "--data_dir=/data/mnist",
            "--workdir=runs/first",
        ]


@pytest.mark.parametrize("to_the_shell", [False, True])
def test_before_the_end_the_trainers_save_and_the_job_is_queued_again(
    fake, to_the_shell
):
    name, number = _submit(fake, num_workers=2)
    options = fake.jobs()[number]["options"]
    assert options["signal"] == "TERM@60"  # To the steps: no "B:".
    for restarts in (1, 2):
        process = _start(fake, number, 2)
        assert _state(name) is State.RUNNING
        if to_the_shell:
            process.send_signal(signal.SIGTERM)
        for pid in fake.tasks(number):
            os.kill(pid, signal.SIGTERM)
        assert fake.wait(number, process) == 143
        status = slurm.status(_PLACE, name)
        assert status.state is State.PREEMPTED
        assert status.restarts == restarts
    assert _run(fake, number, {"0": 0, "1": 0}) == 0
    assert _state(name) is State.SUCCEEDED
    log = (fake.directory / "submitted" / f"{name}-{number}.log").read_text()
    assert log.count("signal 15") == 4


@pytest.mark.parametrize("code", [0, *range(2, 7), 130, 137])
def test_what_no_restart_helps_is_not_queued_again(fake, code):
    name, number = _submit(fake)
    assert _run(fake, number, {"0": code}) == code
    assert fake.count("srun") == 1
    status = slurm.status(_PLACE, name)
    assert status.state.is_final
    assert status.exit_code == code


@pytest.mark.parametrize("code", [1, 7, 134, 139, 142])
def test_what_a_restart_may_help_is_queued_again_a_few_times(fake, code):
    name, number = _submit(fake, max_restarts=1)
    assert _run(fake, number, {"0": code}) == code
    assert _state(name) is State.PREEMPTED
    # Machines that were taken away do not count.
    assert _run(fake, number, {"0": 143}) == 143
    assert _run(fake, number, {"0": code}) == code
    status = slurm.status(_PLACE, name)
    assert status.state is State.FAILED
    assert (status.exit_code, status.restarts) == (code, 2)


def test_a_worker_that_ends_late_is_ended(fake):
    name, number = _submit(fake, num_workers=2, grace_secs=1)
    # Else the other would wait, and be paid for, for ever.
    assert _run(fake, number, {"1": 3}) == 137
    assert _state(name) is State.FAILED


def test_a_job_that_somebody_cancels_is_not_queued_again(fake):
    name, number = _submit(fake)
    process = _start(fake, number)
    slurm_commands.scancel(name)
    assert fake.wait(number, process) == 143
    assert _state(name) is State.CANCELLED


def test_cancelling_lets_the_trainers_save(fake):
    name, number = _submit(fake, num_workers=2)
    process = _start(fake, number, 2)
    ended = threading.Thread(target=lambda: fake.wait(number, process))
    ended.start()
    slurm.cancel(_PLACE, name)
    ended.join(20)
    status = slurm.status(_PLACE, name)
    assert (status.state, status.exit_code) == (State.CANCELLED, 130)
    slurm.cancel(_PLACE, name)  # Does nothing.
    assert fake.count("scancel") == 2


def test_cancelling_waits_while_the_trainers_save_within_the_grace(fake):
    (fake.directory / "save_secs").write_text("1.0")
    name, number = _submit(fake, grace_secs=20)
    process = _start(fake, number)
    ended = threading.Thread(target=lambda: fake.wait(number, process))
    ended.start()
    start_secs = time.monotonic()
    slurm.cancel(_PLACE, name)
    assert 1 <= time.monotonic() - start_secs < 20
    ended.join(20)
    # It has ended by itself: nothing was forced, nor told a second time.
    assert slurm.status(_PLACE, name).exit_code == 130
    assert fake.count("scancel") == 2


def test_cancelling_what_waits_ends_it_at_once_and_its_doubles(fake):
    name, _ = _submit(fake)
    slurm_commands.sbatch(slurm.render(_spec()).replace(_spec().job_name, name))
    slurm.cancel(_PLACE, name)
    states = [job["state"] for job in fake.jobs().values()]
    assert states == ["CANCELLED", "CANCELLED"]


def test_cancelling_what_does_not_end_forces_it_after_its_grace(fake):
    name, number = _submit(fake, grace_secs=1)
    process = _start(fake, number)
    os.kill(fake.tasks(number)[0], signal.SIGSTOP)
    start_secs = time.monotonic()
    slurm.cancel(_PLACE, name)
    assert 1 <= time.monotonic() - start_secs < 20
    assert _state(name) is State.CANCELLED
    os.kill(fake.tasks(number)[0], signal.SIGKILL)
    assert fake.wait(number, process) == 137


def test_submitting_twice_starts_one_job(fake):
    name, number = _submit(fake)
    assert _submit(fake) == (name, number)
    python = str(fake.directory / "bin" / "python")
    assert slurm.submit(_spec(python=python)).created is False
    assert fake.count("sbatch") == 1
    # Nor would Slurm start a second one of the name.
    assert fake.jobs()[number]["options"]["dependency"] == "singleton"


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_answer_starts_no_second_job(fake, after):
    words = "Batch job submission failed: Socket timed out"
    fake.fail("sbatch", words, after=after)
    name, number = _submit(fake)
    assert list(fake.jobs()) == [number]


def test_what_sbatch_refuses_is_said_at_once(fake):
    fake.fail("sbatch", "invalid partition specified: nowhere")
    with pytest.raises(platforms.PlatformError, match="invalid partition"):
        _submit(fake, partition="nowhere")
    assert fake.count("sbatch") == 1


def test_an_option_that_slurm_does_not_have_is_refused(fake):
    script = slurm.render(_spec()).replace("--requeue", "--requeu")
    with pytest.raises(platforms.PlatformError, match="unrecognized"):
        slurm_commands.sbatch(script)


def test_submitting_what_has_failed_starts_another_attempt(fake):
    name, number = _submit(fake)
    assert _run(fake, number, {"0": 3}) == 3
    assert _submit(fake)[0] == f"{name}-2"


def test_reading_goes_on_when_slurm_is_back(fake):
    name, _ = _submit(fake)
    fake.fail("squeue", "Unable to contact slurm controller", times=3)
    assert _state(name) is State.QUEUED


def test_without_accounting_slurm_tells_of_what_it_remembers(fake):
    fake.fail("sacct", "Slurm accounting storage is disabled", times=1000)
    name, number = _submit(fake)
    assert _state(name) is State.QUEUED
    assert _run(fake, number, {"0": 3}) == 3
    status = slurm.status(_PLACE, name)
    assert (status.state, status.exit_code) == (State.FAILED, 3)


def test_the_list_has_our_jobs_the_newest_first(fake):
    names = [_submit(fake, name=f"job-{i}")[0] for i in range(3)]
    _run(fake, "1000", {"0": 0})
    with_another = slurm.render(_spec()).replace(names[0], "x")
    slurm_commands.sbatch(
        with_another.replace(f"--job-name={_spec().job_name}", "--job-name=x")
    )
    # The controller forgets what has ended; the accounting does not.
    state = json.loads((fake.directory / "state.json").read_text())
    state["jobs"]["1000"]["forgotten"] = True
    (fake.directory / "state.json").write_text(json.dumps(state))
    listed = slurm.list_jobs(_PLACE)
    assert [job.name for job in listed] == names[::-1]
    assert [job.state for job in listed] == [
        State.QUEUED,
        State.QUEUED,
        State.SUCCEEDED,
    ]
    assert listed[0].detail == "PENDING: Priority"


@pytest.mark.parametrize("verb", [slurm.status, slurm.cancel])
def test_a_job_that_is_not_there_is_named(fake, verb):
    _submit(fake)
    with pytest.raises(platforms.JobNotFoundError, match="no job 'nobody'"):
        verb(_PLACE, "nobody")


def test_a_machine_without_slurm_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.UsageError, match="the program squeue"):
        slurm.submit(_spec())


def test_following_goes_over_restarts_to_the_end(fake):
    name, number = _submit(fake)
    lines = []
    thread = threading.Thread(
        target=lambda: lines.extend(slurm.logs(_PLACE, name, follow=True))
    )
    thread.start()
    _run(fake, number, {"0": 143})
    _run(fake, number, {"0": 0})
    thread.join(20)
    assert not thread.is_alive()
    assert lines == [
        "rank 0: here",
        "The trainer has exited with 143; the job is queued again.",
        "rank 0: here",
    ]
    assert list(slurm.logs(_PLACE, name, follow=False)) == lines
