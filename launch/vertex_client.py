"""Calls of Vertex AI's API, through google-cloud-aiplatform.

The library is imported when something is called, not before.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from launch import platforms

_CALL_TIMEOUT_SECS = 60.0
_FIRST_WAIT_SECS = 1.0
_GIVE_UP_SECS = 120.0
_T = TypeVar("_T")


def credentials() -> Any:
    """Returns the Application Default Credentials.

    Raises:
        PlatformError: there are none.
    """
    import google.auth
    from google.auth import exceptions

    try:
        return google.auth.default(
            scopes=["https://www.googleapis.com/auth/cloud-platform"]
        )[0]
    except exceptions.GoogleAuthError as error:
        raise platforms.PlatformError(
            f"There are no Application Default Credentials: {error} `gcloud"
            " auth application-default login` makes them."
        ) from error


def connect(endpoint: str) -> Any:
    """Returns the JobServiceClient of an address."""
    platforms.need("google.cloud.aiplatform_v1", "vertex")
    from google.cloud.aiplatform_v1.services import job_service

    return job_service.JobServiceClient(
        credentials=credentials(),
        # Unlike gRPC, it goes through proxies.
        transport="rest",
        client_options={"api_endpoint": endpoint},
    )


def call(method: Callable[..., _T], **arguments: Any) -> _T:
    """Calls what may be called twice, until there is an answer."""
    import requests
    from google.api_core import exceptions

    return _call(
        method,
        (
            exceptions.TooManyRequests,
            exceptions.ServerError,
            requests.ConnectionError,
            requests.Timeout,
        ),
        arguments,
    )


def call_once(method: Callable[..., _T], **arguments: Any) -> _T:
    """Calls what may not be done twice: again only if it was refused for now.

    Raises:
        AnswerLostError: it may have been done.
    """
    from google.api_core import exceptions

    return _call(method, (exceptions.TooManyRequests,), arguments)


def _call(
    method: Callable[..., _T],
    again_after: tuple[type[Exception], ...],
    arguments: dict[str, Any],
) -> _T:
    from google.api_core import retry

    patience = retry.Retry(
        predicate=retry.if_exception_type(*again_after),
        initial=_FIRST_WAIT_SECS,
        maximum=16 * _FIRST_WAIT_SECS,
        timeout=_GIVE_UP_SECS,
    )
    with _translated():
        return method(retry=patience, timeout=_CALL_TIMEOUT_SECS, **arguments)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raises what the client raises in the words of `platforms`."""
    import requests
    from google.api_core import exceptions
    from google.auth import exceptions as auth_exceptions

    try:
        yield
    except (exceptions.Unauthorized, exceptions.Forbidden) as error:
        raise platforms.PlatformError(
            f"Vertex AI does not let you: {error.message}\nYou need"
            " roles/aiplatform.user on the project, and"
            " roles/iam.serviceAccountUser on the job's service account."
        ) from error
    except (exceptions.ServerError, requests.RequestException) as error:
        raise platforms.AnswerLostError(
            f"Vertex AI does not answer: {error}"
        ) from error
    except exceptions.RetryError as error:
        cause = error.cause or error
        kind = (
            platforms.PlatformError
            if isinstance(cause, exceptions.ClientError)
            else platforms.AnswerLostError
        )
        raise kind(f"Vertex AI does not answer: {cause}") from error
    except exceptions.GoogleAPICallError as error:
        raise platforms.PlatformError(
            f"Vertex AI refuses: {error.message}"
        ) from error
    except auth_exceptions.GoogleAuthError as error:
        raise platforms.PlatformError(
            f"The credentials are of no use: {error} `gcloud auth"
            " application-default login` makes new ones."
        ) from error
