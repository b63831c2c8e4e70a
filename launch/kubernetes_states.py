"""How a job is, from what the cluster says of its object and its pods."""

from collections.abc import Sequence
from typing import Any

from launch import kubernetes_pods
from launch.job_spec import ATTEMPT_LABEL, JOB_LABEL
from launch.platforms import JobStatus, State

_FINAL = {
    "Complete": State.SUCCEEDED,  # A Job.
    "Completed": State.SUCCEEDED,  # A JobSet.
    "Failed": State.FAILED,
}
_MAX_MESSAGE_CHARS = 1000


def job_status(
    obj: dict[str, Any], pods: Sequence[dict[str, Any]]
) -> JobStatus:
    """Returns the status of a Job or JobSet.

    Args:
        obj: The object, as the API has it.
        pods: Its pods, in any order.
    """
    metadata = obj["metadata"]
    pods = sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])
    restarts = _num_restarts(obj, pods)
    state = _state(obj, pods, restarts)
    labels = metadata.get("labels", {})
    attempt = labels.get(ATTEMPT_LABEL, "1")
    return JobStatus(
        name=labels.get(JOB_LABEL, metadata["name"]),
        state=state,
        detail=_detail(obj, pods, state),
        created_at=metadata.get("creationTimestamp", ""),
        resource=f"{obj['kind'].lower()}/{metadata['name']}",
        restarts=restarts,
        attempt=int(attempt) if attempt.isdecimal() else 1,
        exit_code=_exit_code(pods, state),
    )


def _conditions(obj: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what holds of an object or a pod, by the condition's type."""
    conditions = obj.get("status", {}).get("conditions") or []
    return {c["type"]: c for c in conditions if c["status"] == "True"}


def _num_restarts(obj: dict[str, Any], pods: Sequence[dict[str, Any]]) -> int:
    status = obj.get("status", {})
    if obj["kind"] == "JobSet":
        return status.get("restarts", 0)
    # It does not count the pods whose failure it ignores, and those that it
    # counts may be gone.
    failed = status.get("failed", 0) - ("Failed" in _conditions(obj))
    return max(0, failed, len(pods) - 1)


def _state(
    obj: dict[str, Any], pods: Sequence[dict[str, Any]], restarts: int
) -> State:
    for name in _conditions(obj):
        if name in _FINAL:
            return _FINAL[name]
    if obj["metadata"].get("deletionTimestamp"):
        return State.CANCELLING
    if any(_is_running(pod) for pod in pods):
        return State.RUNNING
    return State.PREEMPTED if restarts else State.QUEUED


def _is_running(pod: dict[str, Any]) -> bool:
    return pod.get("status", {}).get("phase") == "Running"


def _detail(
    obj: dict[str, Any], pods: Sequence[dict[str, Any]], state: State
) -> str:
    conditions = _conditions(obj)
    if state is State.FAILED:
        return "\n".join(
            [
                _words(conditions["Failed"]),
                *(text for pod in pods if (text := _last_words(pod))),
            ]
        )
    if state in (State.QUEUED, State.PREEMPTED):
        if "Suspended" in conditions:
            return _words(conditions["Suspended"])
        return "; ".join(sorted({t for p in pods if (t := _waits_for(p))}))
    if state is State.RUNNING:
        alive = sum(_is_running(pod) for pod in pods)
        return f"{alive} of {_num_workers(obj)} workers run"
    return ""


def _num_workers(obj: dict[str, Any]) -> int:
    spec = obj["spec"]
    if obj["kind"] == "JobSet":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    return spec["completions"]


def _words(condition: dict[str, Any]) -> str:
    words = (condition.get("reason"), condition.get("message"))
    return ": ".join(word for word in words if word)


def _waits_for(pod: dict[str, Any]) -> str:
    """Returns why a pod does not run yet, or ""."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending":
        return ""
    for condition in status.get("conditions") or []:
        if (
            condition["type"] == "PodScheduled"
            and condition["status"] != "True"
        ):
            return _words(condition)
    for container in status.get("containerStatuses") or []:
        if waiting := container.get("state", {}).get("waiting"):
            return _words(waiting)
    return ""


def _exit_code(pods: Sequence[dict[str, Any]], state: State) -> int | None:
    """Returns the code of a failed worker of the last start, if any."""
    if state is State.SUCCEEDED:
        return 0
    if state is State.FAILED:
        for pod in reversed(pods):
            if (ended := _termination(pod)) and ended["exitCode"]:
                return ended["exitCode"]
    return None


def _termination(pod: dict[str, Any]) -> dict[str, Any]:
    """Returns how a pod's trainer has ended, or {}."""
    for container in pod.get("status", {}).get("containerStatuses") or []:
        if ended := container.get("state", {}).get("terminated"):
            return ended
    return {}


def _last_words(pod: dict[str, Any]) -> str:
    """Returns how a pod has failed and what it said last, or ""."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return ""
    index = worker_index(pod)
    if ended := _termination(pod):
        message = (ended.get("message") or "").strip()
        return (
            f"worker {index} has ended with exit code {ended['exitCode']}:"
            f" {message[-_MAX_MESSAGE_CHARS:]}"
        )
    return f"worker {index}: {status.get('reason') or 'ended by the cluster'}"


def worker_index(pod: dict[str, Any]) -> int:
    """Returns which of the workers a pod is."""
    annotations = pod["metadata"].get("annotations") or {}
    return int(annotations.get(kubernetes_pods.INDEX_ANNOTATION, 0))
