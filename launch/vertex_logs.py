"""The lines of a Vertex AI job, from Cloud Logging.

Read through the REST method `entries.list`, which google-auth's session is
enough for.
"""

import datetime
import time
from collections.abc import Callable, Iterator
from typing import Any

from launch import platforms, vertex_client

_ENDPOINT = "https://logging.googleapis.com"
_PAGE_SIZE = 1000
_CALL_TIMEOUT_SECS = 60.0
_POLL_SECS = 10.0
_FIRST_WAIT_SECS = 1.0
_GIVE_UP_SECS = 900.0
# Entries may arrive late and out of order: so far back, look for more.
_OVERLAP = datetime.timedelta(seconds=120)
# After the job's end, look so often for the last lines.
_LAST_LOOKS = 3


def lines(
    project: str,
    job_id: str,
    has_ended: Callable[[], bool],
    follow: bool,
) -> Iterator[str]:
    """Yields the job's lines, the oldest first; one that is late comes late.

    Args:
        project: The project's id.
        job_id: The number of the CustomJob.
        has_ended: Whether the job is in a final state.
        follow: Go on until the job has ended.
    """
    reader = _Reader(project, job_id)
    last_looks = 0
    while True:
        # Asked before reading: what the job says last is read after it.
        ended = not follow or has_ended()
        found = list(reader.new_entries())
        yield from map(_line, found)
        last_looks = last_looks + 1 if ended and not found else 0
        if not follow or last_looks >= _LAST_LOOKS:
            return
        time.sleep(_POLL_SECS)


class _Reader:
    """Reads entries, each once."""

    def __init__(self, project: str, job_id: str) -> None:
        from google.auth.transport import requests

        self._session = requests.AuthorizedSession(vertex_client.credentials())
        self._project = project
        self._filter = (
            f'resource.type="ml_job" AND resource.labels.job_id="{job_id}"'
        )
        self._newest = ""
        self._seen: dict[str, str] = {}  # Times by id, as far back as needed.

    def new_entries(self) -> Iterator[dict[str, Any]]:
        """Yields the entries that have not been yielded before."""
        since = _overlap_start(self._newest)
        self._seen = {i: t for i, t in self._seen.items() if t >= since}
        condition = self._filter
        if since:
            condition += f' AND timestamp>="{since}"'
        token = ""
        while True:
            page = self._page(condition, token)
            for entry in page.get("entries", []):
                # The id is unique among those of the same time only.
                key = f"{entry['timestamp']} {entry.get('insertId', '')}"
                if key not in self._seen:
                    self._seen[key] = entry["timestamp"]
                    self._newest = max(self._newest, entry["timestamp"])
                    yield entry
            token = page.get("nextPageToken", "")
            if not token:
                return

    def _page(self, condition: str, token: str) -> dict[str, Any]:
        import requests
        from google.auth import exceptions as auth_exceptions

        body = {
            "resourceNames": [f"projects/{self._project}"],
            "filter": condition,
            "orderBy": "timestamp asc",
            "pageSize": _PAGE_SIZE,
            "pageToken": token,
        }
        wait_secs = _FIRST_WAIT_SECS
        deadline_secs = time.monotonic() + _GIVE_UP_SECS
        while True:
            try:
                answer = self._session.post(
                    f"{_ENDPOINT}/v2/entries:list",
                    json=body,
                    timeout=_CALL_TIMEOUT_SECS,
                )
                what = f"{answer.status_code} {answer.text[:500]}"
                if answer.ok:
                    return answer.json()
                if answer.status_code != 429 and answer.status_code < 500:
                    raise platforms.PlatformError(
                        f"Cloud Logging refuses: {what}\nReading logs needs"
                        " roles/logging.viewer on the project."
                    )
            except (
                requests.RequestException,
                auth_exceptions.TransportError,
            ) as error:
                what = str(error)
            except auth_exceptions.GoogleAuthError as error:
                raise platforms.PlatformError(
                    f"The credentials are of no use: {error} `gcloud auth"
                    " application-default login` makes new ones."
                ) from error
            if time.monotonic() > deadline_secs:
                raise platforms.PlatformError(
                    f"Cloud Logging does not answer: {what}"
                )
            time.sleep(wait_secs)
            wait_secs = min(2 * wait_secs, 60 * _FIRST_WAIT_SECS)


def _overlap_start(newest: str) -> str:
    """Returns from when on to look again, as a time of RFC 3339."""
    if not newest:
        return ""
    whole = newest.rstrip("Z").partition(".")[0]
    start = datetime.datetime.fromisoformat(whole) - _OVERLAP
    return f"{start.isoformat()}Z"


def _line(entry: dict[str, Any]) -> str:
    payload = entry.get("jsonPayload", {})
    text = entry.get("textPayload") or payload.get("message") or str(payload)
    task = entry.get("resource", {}).get("labels", {}).get("task_name", "")
    # Messages of Vertex AI itself belong to the task "service".
    prefix = f"[{task}] " if task not in ("", "workerpool0-0") else ""
    return f"{entry['timestamp']} {prefix}{text.rstrip()}"
