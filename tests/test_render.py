"""What each platform would be sent, and that it needs nothing to say so."""

import json
import pathlib
import shutil
import subprocess
import sys

import absl
import pytest
import yaml
from google.cloud.aiplatform_v1 import types

from launch import main
from tests import golden_files

_ROOT = pathlib.Path(__file__).parent.parent
_IMAGE = f"--image=registry.example.com/gan-trainer@sha256:{'0' * 64}"
_VERTEX = (
    "--platform=vertex",
    "--project=my-project",
    "--region=us-central1",
    "--service_account=trainer@my-project.iam.gserviceaccount.com",
    "--workdir=gs://bucket/runs/first",
    _IMAGE,
)
_DOCKER = ("--platform=docker", "--workdir=gs://bucket/runs/first", _IMAGE)
_LOCAL = ("--platform=local", "--workdir=runs/first")
_CASES = {
    "vertex_1_gpu.json": (*_VERTEX, "--accelerator=l4"),
    "vertex_8_gpus.json": (
        *_VERTEX,
        "--accelerator=h100",
        "--num_accelerators=8",
        "--disk_gib=500",
        "--disk_type=pd-ssd",
        "--timeout_secs=86400",
        "--env=TF_CPP_MIN_LOG_LEVEL=0",
        "--labels=team=faces",
        "--network=projects/12345/global/networks/default",
        "--tensorboard=projects/p/locations/us-central1/tensorboards/678",
    ),
    "vertex_2_workers.json": (
        *_VERTEX,
        "--machine=a2-ultragpu-4g",
        "--num_workers=2",
        "--flex_start",
        "--max_wait_secs=3600",
    ),
    "vertex_spot.json": (*_VERTEX, "--accelerator=t4", "--spot"),
    "docker_1_gpu.sh": (
        *("--platform=docker", "--workdir=my runs/first", _IMAGE),
        "--num_accelerators=1",
        "--cpus=8",
        "--memory_gib=30",
        "--network=gans",
        "--labels=team=faces",
        "--env=GREETING=it's 5 o'clock",
    ),
    "docker_8_gpus.sh": (*_DOCKER, "--num_accelerators=8", "--grace_secs=90"),
    "local_1_gpu.sh": (*_LOCAL, "--num_accelerators=1"),
    "local_8_gpus.sh": (*_LOCAL, "--num_accelerators=8"),
    "local_2_workers.sh": (
        *_LOCAL,
        "--num_workers=2",
        "--num_accelerators=2",
        "--env=A=b c",
    ),
}


def _trainer(flags: tuple[str, ...]) -> tuple[str, ...]:
    data_dir = {
        "--platform=vertex": "/gcs/bucket/mnist",
        "--platform=kubernetes": "/volume/mnist",
    }.get(flags[0], "~/mnist")
    return ("--dataset=mnist", f"--data_dir={data_dir}", "--epochs=100")


def _render(capsys: pytest.CaptureFixture, flags: tuple[str, ...]) -> str:
    code = main.main(["main", "render", *flags, "--", *_trainer(flags)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("name", _CASES)
def test_what_is_sent_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    golden_files.check(name, _render(capsys, _CASES[name]))


@pytest.mark.parametrize("name", [n for n in _CASES if n.startswith("vertex")])
def test_vertex_ai_knows_each_field_of_the_request(
    capsys: pytest.CaptureFixture, name: str
) -> None:
    request = json.loads(_render(capsys, _CASES[name]))
    # Raises for a field or a constant that it does not know.
    job = types.CustomJob.from_json(json.dumps(request["body"]))
    # And loses none on the way back.
    back = types.CustomJob.to_dict(
        job,
        use_integers_for_enums=False,
        including_default_value_fields=False,
        preserving_proto_field_name=False,
    )
    assert back == request["body"]


@pytest.mark.parametrize(
    ("flags", "disk_type"),
    [
        (("--accelerator=rtx-pro-6000",), "hyperdisk-balanced"),
        (("--machine=a4-highgpu-8g",), "hyperdisk-balanced"),
        (("--accelerator=b200", "--num_accelerators=8", "--disk_type=x"), "x"),
        # Vertex AI has a default of its own for these.
        (("--accelerator=h200", "--num_accelerators=8"), None),
        (("--accelerator=l4",), None),
    ],
)
def test_the_boot_disk_is_one_that_the_machine_can_have(
    capsys: pytest.CaptureFixture, flags: tuple[str, ...], disk_type: str | None
) -> None:
    request = json.loads(_render(capsys, (*_VERTEX, *flags)))
    [pool] = request["body"]["jobSpec"]["workerPoolSpecs"]
    assert pool["diskSpec"].get("bootDiskType") == disk_type


@pytest.mark.parametrize("name", [n for n in _CASES if n.endswith(".sh")])
def test_scripts_are_scripts(capsys: pytest.CaptureFixture, name: str) -> None:
    subprocess.run(
        ["sh", "-n"],
        input=_render(capsys, _CASES[name]),
        text=True,
        check=True,
        timeout=10,
    )


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ((*_DOCKER, "--spot"), "--spot has no use with --platform=docker"),
        ((*_DOCKER, "--num_workers=2"), "runs one container"),
        ((*_LOCAL, "--spot"), "--spot has no use with --platform=local"),
        ((*_LOCAL, _IMAGE), "--image has no use with --platform=local"),
        ((*_VERTEX, "--grace_secs=5"), "--grace_secs has no use"),
        (("--platform=docker", _IMAGE), "--workdir is missing"),
        (("--platform=docker", "--workdir=a"), "how to build one"),
        ((*_VERTEX, "--num_workers=2", "--env=TF_CONFIG={}"), "TF_CONFIG"),
        (("--platform=docker", "--workdir=a,b", _IMAGE), "cannot be mounted"),
        ((*_VERTEX[1:],), "--platform is missing"),
        ((*_VERTEX, "--project="), "--project="),
        ((_VERTEX[0], *_VERTEX[2:]), "--project is missing"),
        ((*_VERTEX[:2], *_VERTEX[3:]), "--region is missing"),
        ((*_VERTEX[:-1],), "--image is missing"),
        ((*_VERTEX[:3], *_VERTEX[4:]), "--service_account=None"),
        ((*_VERTEX, "--service_account=me"), "--service_account=me"),
        ((*_VERTEX, "--workdir=runs/first"), "lost with the machine"),
        ((*_VERTEX, "--network=default"), "--network=default"),
        (
            (
                *_VERTEX,
                "--tensorboard=projects/p/locations/europe-west4"
                "/tensorboards/1",
            ),
            "in the job's region",
        ),
        ((*_VERTEX, "--machine=a2-highgpu-1g", "--accelerator=t4"), "n1-"),
        ((*_VERTEX, "--spot", "--flex_start"), "Leave one out"),
    ],
)
def test_what_a_platform_cannot_do_is_refused(
    capsys: pytest.CaptureFixture, flags: tuple[str, ...], rule: str
) -> None:
    assert main.main(["main", "render", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert rule in err


def test_render_needs_no_client_credentials_or_tensorflow(
    tmp_path: pathlib.Path,
) -> None:
    """In a Python with absl-py, PyYAML and this package, and nothing else."""
    for package in (absl, yaml):
        path = pathlib.Path(package.__file__).parent
        shutil.copytree(path, tmp_path / path.name)
    code = "import sys; from launch import main; sys.exit(main.main(sys.argv))"
    cluster = ("--workdir=gs://bucket/runs/first", _IMAGE)
    for flags in (
        _CASES["vertex_1_gpu.json"],
        _CASES["docker_1_gpu.sh"],
        _CASES["local_2_workers.sh"],
        ("--platform=kubernetes", *cluster, "--volume_claim=data"),
        ("--platform=slurm", *cluster),
    ):
        finished = subprocess.run(
            # -S: without the packages of this environment.
            [sys.executable, "-S", "-c", code, "render", *flags, "--"]
            + list(_trainer(flags)),
            cwd=_ROOT,
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert finished.stderr == ""
        assert finished.returncode == 0
