"""Calls of a cluster's API: again while it may help; errors in our words."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from launch import platforms

CONNECT_TIMEOUT_SECS = 10.0
_CALL_TIMEOUT_SECS = 60.0
_FIRST_WAIT_SECS = 1.0
_MAX_WAIT_SECS = 16.0
_GIVE_UP_SECS = 120.0
# What may pass: too many requests, a webhook or the API itself is away.
_MAY_PASS = (429, 500, 502, 503, 504)
_EXPIRED = 410
_NOT_FOUND = 404
_ROLE = (
    "You need create, get, list and delete of jobs (batch) and jobsets"
    " (jobset.x-k8s.io), and get and list of pods and pods/log."
)


class RefusedError(platforms.PlatformError):
    """The API has answered that it will not do it.

    Attributes:
        status: The answer's HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def call(
    method: Callable[..., Any],
    _request_timeout: Any = (CONNECT_TIMEOUT_SECS, _CALL_TIMEOUT_SECS),
    **arguments: Any,
) -> Any:
    """Calls what may be called twice, until there is an answer."""
    import urllib3
    from kubernetes.client import exceptions

    wait_secs = _FIRST_WAIT_SECS
    deadline_secs = time.monotonic() + _GIVE_UP_SECS
    kind: type[platforms.PlatformError] = platforms.PlatformError
    while True:
        least_secs = 0.0
        try:
            return method(_request_timeout=_request_timeout, **arguments)
        except exceptions.ApiException as error:
            problem = _message(error)
            if error.status not in _MAY_PASS:
                raise RefusedError(error.status, problem) from error
            least_secs = _retry_after_secs(error)
            if error.status != 429:
                kind = platforms.AnswerLostError
        except urllib3.exceptions.HTTPError as error:
            problem = str(error)
            kind = platforms.AnswerLostError
        wait_secs = max(wait_secs, least_secs)
        if time.monotonic() + wait_secs > deadline_secs:
            raise kind(f"The cluster does not answer: {problem}")
        time.sleep(wait_secs)
        wait_secs = min(2 * wait_secs, _MAX_WAIT_SECS)


def _retry_after_secs(error: Any) -> float:
    value = (error.headers or {}).get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _message(error: Any) -> str:
    """Returns what the API has said, and what helps."""
    text = error.body or error.reason or ""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        text = json.loads(text).get("message") or text
    if error.status == 401:
        return f"The cluster does not know you: {text}"
    if error.status == 403:
        return f"The cluster does not let you: {text}\n{_ROLE}"
    return f"The cluster refuses: {text}"


@contextlib.contextmanager
def none_if_missing() -> Iterator[None]:
    """Leaves the block if the API answers that something is not there."""
    try:
        yield
    except RefusedError as error:
        if error.status != _NOT_FOUND:
            raise


def all_pages(
    page: Callable[[str], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Returns the items of all pages, from the start if a token is too old."""
    items: list[dict[str, Any]] = []
    token = ""
    while True:
        try:
            answer = page(token)
        except RefusedError as error:
            if error.status != _EXPIRED or not token:
                raise
            items, token = [], ""
            continue
        items += answer["items"]
        token = answer["metadata"].get("continue") or ""
        if not token:
            return items
