"""Vertex AI: a CustomJob."""

import functools
import json
from collections.abc import Iterator
from typing import Any

from launch import platforms, vertex_client, vertex_logs, vertex_request
from launch.job_spec import (
    ATTEMPT_LABEL,
    DIGEST_LABEL,
    JOB_LABEL,
    JobSpec,
    Place,
)
from launch.platforms import JobStatus, State

_CONSOLE = "https://console.cloud.google.com/vertex-ai"
_STATES = {
    "JOB_STATE_QUEUED": State.QUEUED,
    "JOB_STATE_PENDING": State.QUEUED,
    "JOB_STATE_PAUSED": State.QUEUED,
    "JOB_STATE_RUNNING": State.RUNNING,
    "JOB_STATE_UPDATING": State.RUNNING,
    "JOB_STATE_SUCCEEDED": State.SUCCEEDED,
    "JOB_STATE_PARTIALLY_SUCCEEDED": State.FAILED,
    "JOB_STATE_FAILED": State.FAILED,
    "JOB_STATE_EXPIRED": State.FAILED,
    "JOB_STATE_CANCELLING": State.CANCELLING,
    "JOB_STATE_CANCELLED": State.CANCELLED,
}


def render(spec: JobSpec) -> str:
    """Returns the request as JSON: method, address and body.

    Raises:
        UsageError: Vertex AI cannot do what the spec asks for.
    """
    body = vertex_request.custom_job(spec)
    address = vertex_request.endpoint(spec)
    resource = f"{vertex_request.parent(spec)}/customJobs"
    request = {
        "method": "POST",
        "url": f"{address}/v1/{resource}",
        "body": body,
    }
    return json.dumps(request, indent=2) + "\n"


def submit(spec: JobSpec) -> JobStatus:
    """Creates the CustomJob, unless it is there already."""
    vertex_request.custom_job(spec)  # Refuses before anybody is asked.
    client = _connect(spec)
    return platforms.submit_once(
        spec,
        functools.partial(_find_attempts, client),
        functools.partial(_create, client),
    )


def status(place: Place, name: str) -> JobStatus:
    """Returns how a job is."""
    return _status(place, _find(_connect(place), place, name))


def logs(place: Place, name: str, follow: bool) -> Iterator[str]:
    """Yields the lines that Cloud Logging has of a job."""
    client = _connect(place)
    resource = _find(client, place, name).name

    def has_ended() -> bool:
        job = vertex_client.call(client.get_custom_job, name=resource)
        return _status(place, job).state.is_final

    yield from vertex_logs.lines(
        str(place.project), resource.rpartition("/")[2], has_ended, follow
    )


def cancel(place: Place, name: str) -> None:
    """Asks Vertex AI to cancel a job, and its doubles if there are any."""
    client = _connect(place)
    for job in _find_all(client, place, name):
        if not _status(place, job).state.is_final:
            _cancel(client, place, job)


def _cancel(client: Any, place: Place, job: Any) -> None:
    try:
        vertex_client.call(client.cancel_custom_job, name=job.name)
    except platforms.PlatformError:
        # It is refused when the job has ended meanwhile.
        job = vertex_client.call(client.get_custom_job, name=job.name)
        if not _status(place, job).state.is_final:
            raise


def list_jobs(place: Place) -> list[JobStatus]:
    """Returns the project's jobs in the region that were submitted by us."""
    jobs = _list(_connect(place), place, f"labels.{JOB_LABEL}:*")
    return [_status(place, job) for job in jobs]


def _connect(place: Place) -> Any:
    vertex_request.check_place(place)
    return vertex_client.connect(vertex_request.endpoint(place))


def _find_attempts(client: Any, spec: JobSpec) -> list[JobStatus]:
    jobs = _list(client, spec, f'labels.{DIGEST_LABEL}="{spec.digest}"')
    return [
        _status(spec, job)
        for job in jobs
        if job.labels.get(DIGEST_LABEL) == spec.digest
    ]


def _create(client: Any, spec: JobSpec) -> JobStatus:
    from google.cloud.aiplatform_v1 import types

    text = json.dumps(vertex_request.custom_job(spec))
    created = vertex_client.call_once(
        client.create_custom_job,
        parent=vertex_request.parent(spec),
        custom_job=types.CustomJob.from_json(text),
    )
    return _status(spec, created)


def _find(client: Any, place: Place, name: str) -> Any:
    """Returns the newest CustomJob of a name; rather one that costs money."""
    jobs = _find_all(client, place, name)
    alive = (job for job in jobs if not _status(place, job).state.is_final)
    return next(alive, jobs[0])


def _find_all(client: Any, place: Place, name: str) -> list[Any]:
    """Returns the CustomJobs of a name, the newest first.

    Vertex AI lets two who submit at the same moment both have one.
    """
    jobs = [
        job
        for job in _list(client, place, f'labels.{JOB_LABEL}="{name}"')
        if job.labels.get(JOB_LABEL) == name
    ]
    if not jobs:
        raise platforms.JobNotFoundError(name, vertex_request.parent(place))
    return jobs


def _list(client: Any, place: Place, condition: str) -> list[Any]:
    """Returns the CustomJobs of all pages, the newest first."""
    request = {"parent": vertex_request.parent(place), "filter": condition}

    def all_pages(**options: Any) -> list[Any]:
        return list(client.list_custom_jobs(request=request, **options))

    jobs = vertex_client.call(all_pages)
    return sorted(jobs, key=lambda job: job.create_time, reverse=True)


def _status(place: Place, job: Any) -> JobStatus:
    """Returns the status of a CustomJob."""
    state = _STATES.get(job.state.name, State.QUEUED)
    if state is State.QUEUED and job.start_time:
        state = State.PREEMPTED
    number = job.name.rpartition("/")[2]
    attempt = job.labels.get(ATTEMPT_LABEL, "1")
    return JobStatus(
        name=job.labels.get(JOB_LABEL, job.display_name),
        state=state,
        detail=job.error.message or job.state.name,
        created_at=job.create_time.rfc3339() if job.create_time else "",
        resource=job.name,
        address=f"{_CONSOLE}/locations/{place.region}/training/{number}"
        f"?project={place.project}",
        attempt=int(attempt) if attempt.isdecimal() else 1,
    )
