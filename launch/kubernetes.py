"""Kubernetes: a Job, or a JobSet for several workers.

`kubernetes_manifests` says what they are made of.
"""

import collections
import functools
from collections.abc import Iterator
from typing import Any

import yaml

from launch import (
    kubernetes_logs,
    kubernetes_manifests,
    kubernetes_states,
    platforms,
)
from launch.job_spec import DIGEST_LABEL, JOB_LABEL, JobSpec, Place
from launch.kubernetes_calls import RefusedError
from launch.kubernetes_client import KINDS, Cluster
from launch.platforms import JobStatus

_ALREADY_EXISTS = 409
_JOB_SET_HINT = (
    "Several workers need JobSet, 0.10 or newer, in the cluster:"
    " https://jobset.sigs.k8s.io/docs/installation"
)


def render(spec: JobSpec) -> str:
    """Returns the object as YAML, for `kubectl create -f -` as well.

    Raises:
        UsageError: Kubernetes cannot do what the spec asks for.
    """
    manifest = kubernetes_manifests.manifest(spec)
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False)


def submit(spec: JobSpec) -> JobStatus:
    """Creates the object, unless it is there already."""
    kubernetes_manifests.manifest(spec)  # Refuses before anybody is asked.
    cluster = Cluster(spec)
    return platforms.submit_once(
        spec,
        functools.partial(_find_attempts, cluster),
        functools.partial(_create, cluster),
    )


def status(place: Place, name: str) -> JobStatus:
    """Returns how a job is.

    Raises:
        JobNotFoundError: It is not there, or was cancelled.
    """
    cluster = Cluster(place)
    job = _find(cluster, name)
    return kubernetes_states.job_status(job, cluster.pods(_of_job(name)))


def logs(place: Place, name: str, follow: bool) -> Iterator[str]:
    """Yields the lines of worker 0; without `follow`, of all workers."""
    cluster = Cluster(place)
    _find(cluster, name)

    def is_over() -> bool:
        try:
            job = _find(cluster, name)
        except platforms.JobNotFoundError:
            return True
        return kubernetes_states.job_status(job, []).state.is_final

    if follow:
        yield from kubernetes_logs.follow(cluster, _of_job(name), is_over)
    else:
        yield from kubernetes_logs.so_far(cluster, _of_job(name))


def cancel(place: Place, name: str) -> None:
    """Deletes a job that has not ended, and its pods, which may save first."""
    cluster = Cluster(place)
    job = _find(cluster, name)
    if not kubernetes_states.job_status(job, []).state.is_final:
        cluster.delete(KINDS[job["kind"]], name)


def list_jobs(place: Place) -> list[JobStatus]:
    """Returns the namespace's jobs that were submitted by us, newest first."""
    found = _statuses(Cluster(place), JOB_LABEL)
    return sorted(found, key=lambda job: job.created_at, reverse=True)


def _statuses(cluster: Cluster, selector: str) -> list[JobStatus]:
    """Returns the status of all jobs with certain labels."""
    pods = collections.defaultdict(list)
    for pod in cluster.pods(selector):
        pods[pod["metadata"]["labels"][JOB_LABEL]].append(pod)
    return [
        kubernetes_states.job_status(
            {**job, "kind": kind}, pods[job["metadata"]["labels"][JOB_LABEL]]
        )
        for kind, address in KINDS.items()
        for job in cluster.objects(address, selector)
    ]


def _find_attempts(cluster: Cluster, spec: JobSpec) -> list[JobStatus]:
    return _statuses(cluster, f"{DIGEST_LABEL}={spec.digest}")


def _create(cluster: Cluster, spec: JobSpec) -> JobStatus:
    manifest = kubernetes_manifests.manifest(spec)
    try:
        created = cluster.create(manifest)
    except RefusedError as error:
        if error.status == _ALREADY_EXISTS:
            return _existing(cluster, spec)
        hint = f"\n{_JOB_SET_HINT}" if manifest["kind"] == "JobSet" else ""
        raise platforms.PlatformError(f"{error}{hint}") from error
    return kubernetes_states.job_status(created, [])


def _existing(cluster: Cluster, spec: JobSpec) -> JobStatus:
    """Returns the status of the job that has the name, if it is this one."""
    existing = _find(cluster, spec.job_name)
    digest = existing["metadata"].get("labels", {}).get(DIGEST_LABEL)
    if digest != spec.digest:
        raise platforms.PlatformError(
            f"The cluster has another {existing['kind']} named"
            f" {spec.job_name!r}, which was not submitted like this. Choose"
            " another --name, or delete it."
        )
    return kubernetes_states.job_status(existing, [])


def _find(cluster: Cluster, name: str) -> dict[str, Any]:
    """Returns the Job or JobSet of a name."""
    for kind, address in KINDS.items():
        if found := cluster.get(address, name):
            return {**found, "kind": kind}
    raise platforms.JobNotFoundError(name, f"the namespace {cluster.namespace}")


def _of_job(name: str) -> str:
    return f"{JOB_LABEL}={name}"


class _Dumper(yaml.SafeDumper):
    """Writes lists as people do, below their names and further in."""

    def increase_indent(
        self, flow: bool = False, indentless: bool = False
    ) -> None:
        super().increase_indent(flow, False)
