"""Jobs that are processes of this machine."""

import glob
import json
import subprocess
import sys

import pytest

from launch import local, main, processes
from trainer import errors

_LOCAL = ["main", "submit", "--platform=local"]


@pytest.fixture
def started(monkeypatch):
    """What `run_workers` was called with; every job exits with 7."""
    calls = []

    def run_workers(command, environments, grace_secs):
        calls.append((command, environments, grace_secs))
        return 7

    monkeypatch.setattr(processes, "run_workers", run_workers)
    return calls


def test_each_worker_knows_all_addresses_and_its_own_place():
    environments = local.worker_environments({"HOME": "/home"}, 3, 0)
    configs = [json.loads(each.pop("TF_CONFIG")) for each in environments]
    assert environments == [{"HOME": "/home"}] * 3
    addresses = configs[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    for index, config in enumerate(configs):
        assert config == {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
    for address in addresses:
        host, port = address.split(":")
        assert host == "localhost"
        assert 1024 <= int(port) < 65536


def test_a_worker_that_is_alone_needs_no_place():
    assert local.worker_environments({"HOME": "/home"}, 1, 0) == [
        {"HOME": "/home"}
    ]


@pytest.mark.parametrize(
    ("visible", "gpus_per_worker", "expected"),
    [
        (None, 0, [None, None]),
        ("3", 0, ["3", "3"]),
        (None, 1, ["0", "1"]),
        (None, 2, ["0,1", "2,3"]),
        ("7,5", 1, ["7", "5"]),
        ("GPU-a, GPU-b,6,4,2", 2, ["GPU-a,GPU-b", "6,4"]),
    ],
)
def test_workers_get_gpus_of_their_own(visible, gpus_per_worker, expected):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    environments = local.worker_environments(environ, 2, gpus_per_worker)
    gpus = [each.get("CUDA_VISIBLE_DEVICES") for each in environments]
    assert gpus == expected


def test_workers_that_would_share_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(glob, "glob", lambda pattern: ["/dev/nvidia0"])
    for environ in ({}, {"CUDA_VISIBLE_DEVICES": "0,1"}):
        with pytest.raises(errors.UsageError, match="--num_accelerators"):
            local.worker_environments(environ, 2, 0)
        local.worker_environments(environ, 1, 0)
        local.worker_environments(environ, 2, 1)
    for hidden in ("", "-1"):
        environ = {"CUDA_VISIBLE_DEVICES": hidden}
        local.worker_environments(environ, 2, 0)


@pytest.mark.parametrize("visible", ["", "0,1,2"])
def test_too_few_gpus_are_refused(monkeypatch, capsys, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    flags = ["--num_workers=2", "--num_accelerators=2"]
    assert main.main([*_LOCAL, *flags]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --num_workers=2 --num_accelerators=2 needs 4 GPUs, but"
        f" CUDA_VISIBLE_DEVICES={visible!r} names"
    )


@pytest.mark.parametrize(
    ("own", "trainers", "expected", "workers"),
    [
        ([], [], [], 1),
        ([], ["--noresume", "--epochs", "2"], None, 1),
        (["--workdir=w"], ["--epochs=2"], ["--epochs=2", "--workdir=w"], 1),
        ([], ["--workdir=w"], ["--workdir=w"], 1),
        (
            ["--num_workers=3"],
            ["--strategy=multi_worker", "--sync_batch_norm", "--batch_size=96"],
            ["--strategy=multi_worker", "--batch_size=96", "--sync_batch_norm"],
            3,
        ),
    ],
)
def test_workers_run_the_trainer_with_the_flags_after_the_dashes(
    started, own, trainers, expected, workers
):
    code = main.main([*_LOCAL, *own, "--env=A=b", "--", *trainers])
    if expected is None:
        assert code == 2
        return
    assert code == 7
    [(command, environments, grace_secs)] = started
    assert command == [sys.executable, "-m", "trainer.main", *expected]
    assert [each["A"] for each in environments] == ["b"] * workers
    assert grace_secs == 60


def test_render_says_what_is_started(monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "python")
    flags = ["--platform=local", "--num_workers=2", "--num_accelerators=2"]
    assert main.main(["main", "render", *flags, "--", "--epochs=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    workers = [line for line in lines if "trainer.main" in line]
    assert "CUDA_VISIBLE_DEVICES=0,1 python -m trainer.main" in workers[0]
    assert "CUDA_VISIBLE_DEVICES=2,3 python -m trainer.main" in workers[1]
    for line in workers:
        assert '["localhost:2222", "localhost:2223"]' in line


def test_what_is_rendered_waits_for_all_and_ends_as_they_do(
    monkeypatch, capsys, tmp_path
):
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\ncase $TF_CONFIG in *'\"index\": 0'*) exit 3 ;; esac\n"
        f"sleep 0.3; touch {tmp_path}/done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    flags = ["--platform=local", "--num_workers=2"]
    assert main.main(["main", "render", *flags]) == 0
    script = capsys.readouterr().out
    finished = subprocess.run(["sh"], input=script, text=True, timeout=20)
    assert finished.returncode == 3
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_sigterm_to_what_is_rendered_reaches_the_workers(
    monkeypatch, capsys, tmp_path, num_workers
):
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\n"
        "trap 'sleep 0.3; echo saved; exit 143' TERM\n"
        "echo ready\n"
        "for _ in $(seq 100); do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    flags = ["--platform=local", f"--num_workers={num_workers}", "--env=A=b"]
    assert main.main(["main", "render", *flags]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    with subprocess.Popen(
        ["sh", str(script)], stdout=subprocess.PIPE, text=True
    ) as shell:
        for _ in range(num_workers):
            assert shell.stdout.readline() == "ready\n"
        shell.terminate()
        assert shell.stdout.read() == "saved\n" * num_workers
    assert shell.returncode == 143


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "list"])
def test_a_job_in_the_foreground_can_only_be_submitted(capsys, verb):
    name = [] if verb == "list" else ["train-1a2b3c4d"]
    assert main.main(["main", verb, *name, "--platform=local"]) == 2
    assert "in the foreground" in capsys.readouterr().err
