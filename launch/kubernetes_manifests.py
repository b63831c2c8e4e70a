"""A job as Kubernetes objects: a Job of one pod, or a JobSet of several.

Pure: it needs neither a cluster nor its client library. The fields are those of
`batch/v1` and of `jobset.x-k8s.io/v1alpha2` (JobSet 0.10 or newer).
"""

from typing import Any

from launch import kubernetes_pods
from launch.job_spec import VOLUME_DIR, JobSpec
from trainer import errors

# Of the exit codes in `trainer.errors`, those that another start does not help,
# and that of a preempted trainer, which has saved. After what is in neither,
# such as 1 (a defect, or a driver's), 7 (a GPU that computes wrongly) and 137
# (out of memory), another start may help, perhaps on another machine.
PERMANENT_EXIT_CODES = (2, 3, 4, 5, 6)
_PREEMPTED = (errors.EXIT_PREEMPTED,)
# A machine that vanishes lets its peers stall, which end before the cluster has
# noticed: long before the lost pod gets its DisruptionTarget.
_PREEMPTED_OR_PEER_LOST = (*_PREEMPTED, errors.EXIT_STALLED)
_KEEP_FINISHED_SECS = 7 * 24 * 3600


def manifest(spec: JobSpec) -> dict[str, Any]:
    """Returns the object that is to be created.

    Raises:
        UsageError: Kubernetes cannot do what the spec asks for.
    """
    _check(spec)
    if spec.num_workers == 1:
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": _metadata(spec),
            "spec": {
                **_job(spec, _rules_of_job(), spec.max_restarts),
                "ttlSecondsAfterFinished": _KEEP_FINISHED_SECS,
            },
        }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(spec),
        "spec": {
            # Before they are ready, as that takes the workers' meeting.
            "network": {
                "enableDNSHostnames": True,
                "publishNotReadyAddresses": True,
            },
            "successPolicy": {"operator": "All"},
            "failurePolicy": {
                "maxRestarts": spec.max_restarts,
                "rules": _rules_of_job_set(),
            },
            "ttlSecondsAfterFinished": _KEEP_FINISHED_SECS,
            "replicatedJobs": [
                {
                    "name": kubernetes_pods.REPLICATED_JOB,
                    "replicas": 1,
                    # The trainers stop and start together, so the first pod
                    # that fails is the end of this start of all.
                    "template": {
                        "spec": _job(spec, _rules_in_job_set(), 0),
                    },
                }
            ],
        },
    }


def _check(spec: JobSpec) -> None:
    if not spec.image:
        raise errors.UsageError(
            "--platform=kubernetes needs --image=name@sha256:..., from a"
            " registry that the cluster may read."
        )
    if spec.flex_start:
        raise errors.UsageError(
            "--flex_start is for --platform=vertex. On Kubernetes, a --queue of"
            " Kueue waits for machines."
        )
    workdir = spec.workdir or ""
    on_volume = f"{workdir}/".startswith(f"{VOLUME_DIR}/")
    if not spec.in_bucket and not (on_volume and spec.volume_claim):
        raise errors.UsageError(
            f"--workdir={workdir} would be lost with the pod. Take"
            f" gs://bucket/prefix, or a directory below {VOLUME_DIR} with"
            " --volume_claim."
        )
    if spec.num_workers > 1 and "TF_CONFIG" in spec.environment:
        raise errors.UsageError(
            "--env=TF_CONFIG=... would hide who the workers are, which is set"
            " for each of them. Leave it out."
        )


def _metadata(spec: JobSpec) -> dict[str, Any]:
    queue = {"kueue.x-k8s.io/queue-name": spec.queue} if spec.queue else {}
    return {
        "name": spec.job_name,
        "namespace": spec.namespace,
        "labels": {**spec.all_labels, **queue},
    }


def _job(
    spec: JobSpec, rules: list[dict[str, Any]], backoff_limit: int
) -> dict[str, Any]:
    """Returns the spec of a Job that runs all workers, one a pod."""
    deadline = (
        {"activeDeadlineSeconds": spec.timeout_secs}
        if spec.timeout_secs
        else {}
    )
    return {
        "completionMode": "Indexed",
        "completions": spec.num_workers,
        "parallelism": spec.num_workers,
        "backoffLimit": backoff_limit,
        # No new pod before the old one has saved and ended.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": rules},
        **deadline,
        "template": {
            "metadata": {"labels": spec.all_labels},
            "spec": kubernetes_pods.pod(spec),
        },
    }


def _on_exit(action: str, codes: tuple[int, ...]) -> dict[str, Any]:
    return {
        "action": action,
        "onExitCodes": {
            "containerName": kubernetes_pods.CONTAINER,
            "operator": "In",
            "values": list(codes),
        },
    }


def _on_disruption(action: str) -> dict[str, Any]:
    # Evicted, preempted, or its machine is gone.
    condition = {"type": "DisruptionTarget", "status": "True"}
    return {"action": action, "onPodConditions": [condition]}


def _rules_of_job() -> list[dict[str, Any]]:
    """The first that fits counts; what fits none counts as a restart."""
    return [
        _on_exit("FailJob", PERMANENT_EXIT_CODES),
        _on_disruption("Ignore"),
        _on_exit("Ignore", _PREEMPTED),
    ]


def _rules_in_job_set() -> list[dict[str, Any]]:
    """Each ends the Job; by which one it was, the JobSet decides."""
    return [
        _on_exit("FailJob", PERMANENT_EXIT_CODES),
        _on_disruption("FailJob"),
        _on_exit("FailJob", _PREEMPTED_OR_PEER_LOST),
    ]


def _rules_of_job_set() -> list[dict[str, Any]]:
    """What fits none restarts all, `max_restarts` times."""
    return [
        {
            "name": "permanent",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            # How Kubernetes names the first of `_rules_in_job_set`.
            "onJobFailureMessagePatterns": [r"FailJob rule at index 0$"],
        },
        {
            "name": "deadline",
            "action": "FailJobSet",
            "onJobFailureReasons": ["DeadlineExceeded"],
        },
        {
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        },
    ]
