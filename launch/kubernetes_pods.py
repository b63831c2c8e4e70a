"""The pod of one worker: its machine, its container, and who its peers are."""

import json
from typing import Any

from launch import accelerators
from launch.job_spec import (
    DISK_GIB,
    SCRATCH_DIR,
    SCRATCH_REQUEST_GIB,
    VOLUME_DIR,
    JobSpec,
)

CONTAINER = "trainer"
# The JobSet's one group of pods, in the names of which it appears.
REPLICATED_JOB = "worker"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
# Tells from the trainer's heartbeat whether it still runs.
LIVENESS_COMMAND = ("/opt/venv/bin/python", "-m", "trainer.health")
_LIVENESS_PERIOD_SECS = 60
# The trainer's own watchdog is the first to act, and knows more.
_LIVENESS_FAILURES = 10
_LIVENESS_TIMEOUT_SECS = 20
_USER_ID = 10001  # As in the Dockerfile.
_WORKER_PORT = 2222  # As in TensorFlow's examples; pods share no ports.
_INDEX_VARIABLE = "JOB_COMPLETION_INDEX"


def pod(spec: JobSpec) -> dict[str, Any]:
    """Returns the spec of a worker's pod."""
    account = (
        {"serviceAccountName": spec.service_account}
        if spec.service_account
        else {}
    )
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": spec.grace_period_secs,
        **account,
        # Workload Identity needs no token of the cluster's own.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **_where(spec),
        "containers": [_container(spec)],
        "volumes": [
            {"name": name, **source} for name, _, source in _mounts(spec)
        ],
    }


def _where(spec: JobSpec) -> dict[str, Any]:
    """Returns which machines the pod may have."""
    # The image's packages are locked for no other processors.
    selector = {"kubernetes.io/arch": "amd64"}
    tolerations = []
    label, num_gpus = _gpus(spec)
    if label:
        selector["cloud.google.com/gke-accelerator"] = label
    if spec.machine:
        selector["node.kubernetes.io/instance-type"] = spec.machine
    if num_gpus:
        tolerations.append(
            {
                "key": "nvidia.com/gpu",
                "operator": "Exists",
                "effect": "NoSchedule",
            }
        )
    if spec.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        )
    where: dict[str, Any] = {"nodeSelector": selector}
    if tolerations:
        where["tolerations"] = tolerations
    return where


def _gpus(spec: JobSpec) -> tuple[str, int]:
    """Returns the GPU's name in GKE's node label, or "", and the count."""
    if not spec.accelerator and not spec.machine:
        return "", spec.num_accelerators or 0  # Of whatever kind is there.
    choice = accelerators.choose(
        spec.accelerator,
        spec.num_accelerators,
        spec.machine,
        spot=spec.spot,
        unchecked=spec.unchecked_machine,
    )
    return choice.gke_label, choice.count


def _container(spec: JobSpec) -> dict[str, Any]:
    ports = (
        {"ports": [{"name": "workers", "containerPort": _WORKER_PORT}]}
        if spec.num_workers > 1
        else {}
    )
    return {
        "name": CONTAINER,
        "image": spec.image,
        "args": [_literally(text) for text in spec.container_args],
        "env": _environment(spec),
        **ports,
        "resources": _resources(spec),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "livenessProbe": {
            "exec": {"command": list(LIVENESS_COMMAND)},
            "periodSeconds": _LIVENESS_PERIOD_SECS,
            "timeoutSeconds": _LIVENESS_TIMEOUT_SECS,
            "failureThreshold": _LIVENESS_FAILURES,
        },
        # The pod's status then says why it has ended.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": name, "mountPath": path} for name, path, _ in _mounts(spec)
        ],
    }


def _environment(spec: JobSpec) -> list[dict[str, Any]]:
    # Caches go to the home directory, which must not be on the root.
    environment = {"HOME": SCRATCH_DIR, **spec.environment}
    variables: list[dict[str, Any]] = [
        {"name": name, "value": _literally(value)}
        for name, value in environment.items()
    ]
    if spec.num_workers == 1:
        return variables
    group = f"{spec.job_name}-{REPLICATED_JOB}-0"
    addresses = [
        f"{group}-{index}.{spec.job_name}:{_WORKER_PORT}"
        for index in range(spec.num_workers)
    ]
    config = {
        "cluster": {"worker": addresses},
        # Kubernetes replaces it by the variable that comes before this one.
        "task": {"type": "worker", "index": f"$({_INDEX_VARIABLE})"},
    }
    path = f"metadata.annotations['{INDEX_ANNOTATION}']"
    return [
        *variables,
        {
            "name": _INDEX_VARIABLE,
            "valueFrom": {"fieldRef": {"fieldPath": path}},
        },
        {"name": "TF_CONFIG", "value": json.dumps(config)},
    ]


def _literally(text: str) -> str:
    """Keeps Kubernetes from replacing $(NAME) in arguments and variables."""
    return text.replace("$", "$$")


def _resources(spec: JobSpec) -> dict[str, Any]:
    _, num_gpus = _gpus(spec)
    # Else the pod may land where there is no such space, and be evicted.
    scratch_gib = spec.disk_gib or SCRATCH_REQUEST_GIB
    requests: dict[str, Any] = {"ephemeral-storage": f"{scratch_gib}Gi"}
    limits: dict[str, Any] = {}
    if spec.cpus:
        requests["cpu"] = str(spec.cpus)
    if spec.memory_gib:
        requests["memory"] = limits["memory"] = f"{spec.memory_gib}Gi"
    if num_gpus:
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(num_gpus)
    both = {"requests": requests, "limits": limits}
    return {name: values for name, values in both.items() if values}


def _mounts(spec: JobSpec) -> list[tuple[str, str, dict[str, Any]]]:
    """Returns name, path and source of each volume."""
    memory = {"medium": "Memory", "sizeLimit": f"{spec.shm_gib}Gi"}
    mounts: list[tuple[str, str, dict[str, Any]]] = [
        ("shm", "/dev/shm", {"emptyDir": memory}),
        # The root is read-only.
        (
            "scratch",
            SCRATCH_DIR,
            {"emptyDir": {"sizeLimit": f"{spec.disk_gib or DISK_GIB}Gi"}},
        ),
        ("tmp", "/tmp", {"emptyDir": {}}),
    ]
    if spec.volume_claim:
        claim = {"claimName": spec.volume_claim}
        mounts.append(("volume", VOLUME_DIR, {"persistentVolumeClaim": claim}))
    return mounts
