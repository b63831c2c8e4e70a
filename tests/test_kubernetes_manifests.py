"""What Kubernetes is asked for, against its own models."""

import copy
import inspect
import json
import re

import pytest
import yaml

from launch import kubernetes, kubernetes_manifests
from launch.job_spec import JobSpec
from tests import golden_files, jobset_schema, kubernetes_schema
from trainer import cluster, errors

_IMAGE = f"registry.example.com/gan-trainer@sha256:{'0' * 64}"


def _spec(**fields):
    defaults = {
        "platform": "kubernetes",
        "image": _IMAGE,
        "workdir": "gs://bucket/runs/first",
        "trainer_flags": ("--dataset=mnist",),
    }
    spec = JobSpec(**(defaults | fields))
    spec.validate()
    return spec


_CASES = {
    "1_gpu": {"accelerator": "l4", "num_accelerators": 1},
    "8_gpus": {
        "accelerator": "h100",
        "num_accelerators": 8,
        "cpus": 96,
        "memory_gib": 900,
        "timeout_secs": 86_400,
        "service_account": "trainer",
        "namespace": "gans",
        "queue": "gpus",
        "env": ("PRICE=$(5)",),
        "labels": ("team=faces",),
    },
    "2_workers": {
        "accelerator": "a100-80gb",
        "num_accelerators": 8,
        "num_workers": 2,
        "workdir": "/volume/runs/first",
        "volume_claim": "runs",
        "timeout_secs": 86_400,
    },
    "spot": {"accelerator": "t4", "num_accelerators": 1, "spot": True},
}


def _manifest(**fields):
    return yaml.safe_load(kubernetes.render(_spec(**fields)))


def _job(manifest):
    if manifest["kind"] == "Job":
        return manifest["spec"]
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def _pod(manifest):
    return _job(manifest)["template"]["spec"]


def _container(manifest):
    return _pod(manifest)["containers"][0]


def _problem(manifest):
    schema = kubernetes_schema if manifest["kind"] == "Job" else jobset_schema
    return schema.problem(manifest)


@pytest.mark.parametrize("case", _CASES)
def test_what_is_sent_is_what_was_reviewed(case):
    rendered = kubernetes.render(_spec(**_CASES[case]))
    golden_files.check(f"kubernetes_{case}.yaml", rendered)


@pytest.mark.parametrize("case", _CASES)
def test_kubernetes_knows_every_field(case):
    assert _problem(_manifest(**_CASES[case])) == ""


def _paths(value, path=()):
    """Yields the path of every key, in all objects and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(key, str):
            yield (*path, key)
        if isinstance(item, dict | list):
            yield from _paths(item, (*path, key))


_FREE = {"labels", "nodeSelector", "limits", "requests"}  # Any key is legal.


def test_the_models_refuse_a_misspelt_field_of_a_job():
    manifest = _manifest()
    manifest["spec"]["backofLimit"] = manifest["spec"].pop("backoffLimit")
    assert "'backofLimit' was unexpected" in _problem(manifest)


def test_the_models_refuse_every_misspelt_field_of_a_job_set():
    manifest = _manifest(**_CASES["2_workers"])
    for *parents, key in _paths(manifest):
        if _FREE.intersection(parents) or key in ("apiVersion", "kind"):
            continue
        wrong = copy.deepcopy(manifest)
        place = wrong
        for parent in parents:
            place = place[parent]
        place[f"{key}x"] = place.pop(key)
        try:
            assert _problem(wrong) != "", (*parents, key)
        except KeyError:
            assert key in ("metadata", "spec", "completions", "name")


def test_an_exit_code_is_either_permanent_or_asks_for_a_restart():
    codes = {
        error.exit_code
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.TrainerError)
    }
    below = {code for code in codes if code < 128}
    permanent = kubernetes_manifests.PERMANENT_EXIT_CODES
    assert below - set(permanent) == {1, 7}  # Which another start may help.
    assert permanent == (2, 3, 4, 5, 6)


@pytest.mark.parametrize("index", [0, 1])
def test_the_trainer_learns_who_it_is(index):
    container = _container(_manifest(**_CASES["2_workers"]))
    environ = {}
    for variable in container["env"]:
        if "valueFrom" in variable:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            assert path == (
                "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            )
            environ[variable["name"]] = str(index)
        else:
            environ[variable["name"]] = _expand(variable["value"], environ)
    found = cluster.from_environment(environ)
    name = _spec(**_CASES["2_workers"]).job_name
    assert found.index == index
    # <JobSet>-<replicated job>-<its index>-<pod's index>.<JobSet>.
    assert found.addresses == (
        f"{name}-worker-0-0.{name}:2222",
        f"{name}-worker-0-1.{name}:2222",
    )


def _expand(text, environ):
    """Replaces $(NAME) and $$ as Kubernetes does."""

    def value(match):
        if match[0] == "$$":
            return "$"
        return environ.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, text)


def test_text_that_looks_like_a_variable_stays_as_it_is():
    flags = ("--dataset=$(HOME)", "--seed=$$(1)", "--name=$")
    manifest = _manifest(trainer_flags=flags, env=("A=1", "B=$(A)$$x"))
    arguments = [
        _expand(a, {"HOME": "x"}) for a in _container(manifest)["args"]
    ]
    assert arguments[: len(flags)] == list(flags)
    values = {v["name"]: v["value"] for v in _container(manifest)["env"]}
    assert _expand(values["B"], {"A": "1"}) == "$(A)$$x"


def test_only_one_worker_needs_no_tf_config():
    names = [v["name"] for v in _container(_manifest())["env"]]
    assert "TF_CONFIG" not in names
    assert names == ["HOME", "GAN_TRAINER_IMAGE"]


def test_nothing_stands_between_the_signal_and_the_trainer():
    for case in _CASES.values():
        container = _container(_manifest(**case))
        # The image's entry point, which is the trainer.
        assert "command" not in container
        assert "lifecycle" not in container


def test_the_container_may_do_little():
    manifest = _manifest(**_CASES["1_gpu"])
    pod, container = _pod(manifest), _container(manifest)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {
        "type": "RuntimeDefault"
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    shm = {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == shm
    # Where the run is written first, since the root is read-only.
    assert "--local_dir=/scratch/run" in container["args"]
    assert volumes[mounts["/scratch"]]["emptyDir"] == {"sizeLimit": "100Gi"}


def test_gpus_without_a_kind_are_of_any_kind():
    manifest = _manifest(num_accelerators=2)
    limits = _container(manifest)["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "2"}
    assert _pod(manifest)["nodeSelector"] == {"kubernetes.io/arch": "amd64"}


def test_a_named_machine_is_asked_for():
    manifest = _manifest(machine="g2-standard-24")
    assert _pod(manifest)["nodeSelector"] == {
        "kubernetes.io/arch": "amd64",
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "node.kubernetes.io/instance-type": "g2-standard-24",
    }
    limits = _container(manifest)["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "2"}


def test_no_gpu_asks_for_none():
    pod = _pod(_manifest())
    assert "tolerations" not in pod
    assert pod["containers"][0]["resources"] == {
        "requests": {"ephemeral-storage": "20Gi"}
    }


def test_scratch_space_that_was_asked_for_is_reserved():
    manifest = _manifest(disk_gib=300)
    requests = _container(manifest)["resources"]["requests"]
    assert requests == {"ephemeral-storage": "300Gi"}
    volumes = {v["name"]: v for v in _pod(manifest)["volumes"]}
    assert volumes["scratch"]["emptyDir"] == {"sizeLimit": "300Gi"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": None}, "needs --image"),
        ({"workdir": "/runs/first"}, "would be lost with the pod"),
        ({"workdir": "/volume/x"}, "--volume_claim"),
        ({"workdir": None}, "would be lost"),
        ({"num_workers": 2, "env": ("TF_CONFIG={}",)}, "TF_CONFIG"),
        ({"accelerator": "gb200"}, "Arm"),
        ({"accelerator": "l4", "num_accelerators": 3}, "no machine has 3 l4"),
    ],
)
def test_what_cannot_work_is_refused(fields, words):
    with pytest.raises(errors.UsageError, match=re.escape(words)):
        kubernetes.render(_spec(**fields))


def test_the_longest_name_is_legal():
    spec = _spec(name="a" * 30, num_workers=1000)
    spec = JobSpec(**{**vars(spec), "attempt": 999})
    manifest = kubernetes_manifests.manifest(spec)
    assert jobset_schema.problem(manifest) == ""


def test_yaml_says_what_json_would():
    spec = _spec(**_CASES["2_workers"])
    manifest = kubernetes_manifests.manifest(spec)
    read_back = yaml.safe_load(kubernetes.render(spec))
    assert json.dumps(read_back) == json.dumps(manifest)
