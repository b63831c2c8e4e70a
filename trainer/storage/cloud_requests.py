"""How requests to Cloud Storage are sent again, and explained when they fail.

`trainer.storage.bucket` is the only user. The Google libraries are imported by
the functions that need them: that takes a second, and most runs never do.
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator
from typing import Any

from absl import logging

from trainer import errors

_PASSING_CODES = frozenset({408, 429, 500, 502, 503, 504})
_MAX_DELAY_SECS = 30.0
_MAX_REASON_CHARS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait before giving up.

    Attributes:
        request_secs: For the next byte on a connection.
        retry_secs: From the first try of a request to its last.
        credentials_secs: For credentials, which a new machine or pod may get
            only some seconds after its start.
        first_delay_secs: Before the second try, at most; then it doubles.
    """

    request_secs: float = 60.0
    retry_secs: float = 300.0
    credentials_secs: float = 20.0
    first_delay_secs: float = 1.0


def make_client(patience: Patience) -> Any:
    """Makes a client with the Application Default Credentials.

    With STORAGE_EMULATOR_HOST set, it has none and uses that server.

    Raises:
        UsageError: If google-cloud-storage is not installed.
        StorageError: If there are no credentials.
    """
    try:
        import google.cloud.storage
    except ImportError as error:
        raise errors.UsageError(
            "A gs:// directory needs the package google-cloud-storage, which "
            f"cannot be imported: {error}. Install it with `pip install "
            "google-cloud-storage`, or use a local --workdir."
        ) from error
    from google.api_core import retry

    @retry.Retry(
        predicate=_may_get_credentials,
        initial=patience.first_delay_secs,
        timeout=patience.credentials_secs,
        on_error=_log_retry,
    )
    def make() -> Any:
        # Without a project: a bucket's name is enough to find it.
        return google.cloud.storage.Client(project=None)

    with explained("use", "Cloud Storage"):
        return make()


def options(patience: Patience) -> dict[str, Any]:
    """Makes the arguments that a request of the client library takes."""
    from google.api_core import retry

    start = time.monotonic()

    def is_passing(error: Exception) -> bool:
        waited_secs = time.monotonic() - start
        return _is_passing(error) or (
            _may_get_credentials(error)
            and waited_secs < patience.credentials_secs
        )

    return {
        "timeout": patience.request_secs,
        "retry": retry.Retry(
            predicate=is_passing,
            initial=patience.first_delay_secs,
            maximum=_MAX_DELAY_SECS,
            timeout=patience.retry_secs,
            on_error=_log_retry,
        ),
    }


@contextlib.contextmanager
def explained(action: str, location: str) -> Iterator[None]:
    """Makes what the client library raises a `StorageError`.

    Args:
        action: What is tried, a verb such as "write".
        location: What it is tried on.
    """
    import requests
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    try:
        yield
    except (
        api.GoogleAPIError,
        auth.GoogleAuthError,
        requests.RequestException,
        DataCorruption,
        InvalidResponse,
        ConnectionError,
        TimeoutError,
        ValueError,
    ) as error:
        cause = error
        if isinstance(error, api.RetryError) and error.cause is not None:
            cause = error.cause
        raise errors.StorageError(
            f"Cannot {action} {location}: {reason(cause)}. {_remedy(cause)}"
        ) from error


def reason(error: BaseException) -> str:
    """Returns what the server said, or else the error, in one short line."""
    text = f"{type(error).__name__}: {error}"
    response = getattr(error, "response", None)
    if response is not None and response.status_code >= 400:
        try:
            said = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = response.text
        text = f"{response.status_code} {said or response.reason}"
    # Whoever knows the address of an unfinished upload can write to it.
    text = re.sub(r"upload_id=[^&\s'\"]+", "upload_id=...", text)
    return " ".join(text.split())[:_MAX_REASON_CHARS].rstrip(". ")


def _is_passing(error: BaseException) -> bool:
    """Tells whether the same request may succeed some time later."""
    import requests
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from google.cloud.storage.exceptions import InvalidResponse

    if isinstance(error, auth.GoogleAuthError):
        # The server that hands the credentials out cannot be reached.
        return isinstance(error, auth.TransportError) or isinstance(
            error.__cause__, auth.TransportError
        )
    if isinstance(error, api.GoogleAPICallError):
        return error.code in _PASSING_CODES
    if isinstance(error, InvalidResponse):
        return error.response.status_code in _PASSING_CODES
    return isinstance(
        error,
        ConnectionError
        | requests.ConnectionError
        | requests.Timeout
        | requests.exceptions.ChunkedEncodingError,
    )


def _may_get_credentials(error: BaseException) -> bool:
    """Tells whether what lacks may come; malformed credentials stay so."""
    from google.auth import exceptions

    return isinstance(error, exceptions.GoogleAuthError) and not isinstance(
        error, ValueError
    )


def _remedy(error: BaseException) -> str:
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth

    if isinstance(error, auth.GoogleAuthError):
        return (
            "A gs:// directory needs Application Default Credentials: run "
            "`gcloud auth application-default login`, or give the machine or "
            "job a service account."
        )
    if isinstance(error, api.Unauthorized | api.Forbidden):
        return (
            "The account of the Application Default Credentials needs "
            "roles/storage.objectUser on the bucket: grant it with `gcloud "
            "storage buckets add-iam-policy-binding`, or use another account."
        )
    if isinstance(error, api.NotFound):
        return (
            "The bucket must exist: create it with `gcloud storage buckets "
            "create`, or correct --workdir."
        )
    return (
        "The bucket must be reachable, and everything that may pass was tried "
        "again until the deadline: check the network, then run the same "
        "command again."
    )


def _log_retry(error: Exception) -> None:
    logging.warning("Cloud Storage: %s; trying again.", reason(error))
