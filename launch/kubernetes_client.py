"""The objects of a cluster's namespace, through the official client library.

The library is imported when something is called, not before. Objects come and
go as the dictionaries that the API speaks of.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from launch import kubernetes_calls, platforms
from launch.job_spec import Place

# A log may be silent for so long; then whether it is still there is asked.
_SILENCE_SECS = 120.0
_PAGE_SIZE = 100


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of object, as the API addresses it."""

    group: str
    version: str
    plural: str

    @property
    def address(self) -> dict[str, str]:
        """What the client's methods want to know of it."""
        return dataclasses.asdict(self)


JOB = Kind("batch", "v1", "jobs")
JOB_SET = Kind("jobset.x-k8s.io", "v1alpha2", "jobsets")
KINDS = {"Job": JOB, "JobSet": JOB_SET}


class Cluster:
    """A namespace of a cluster."""

    def __init__(self, place: Place) -> None:
        """Reads the kubeconfig or, within a pod, what the cluster gives it.

        Raises:
            UsageError: The client library is not installed.
            PlatformError: There are no credentials.
        """
        platforms.need("kubernetes.client", "kubernetes")
        from kubernetes import client

        self.namespace = place.namespace
        api = client.ApiClient(_configuration(place))
        self._core = client.CoreV1Api(api)
        # It knows no types, and so serves those that are built in as well.
        self._objects = client.CustomObjectsApi(api)

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Creates an object; trying again is safe, as its name is unique.

        Raises:
            RefusedError: with status 409 if there is one of its name.
            AnswerLostError: it may be there.
        """
        return kubernetes_calls.call(
            self._objects.create_namespaced_custom_object,
            namespace=self.namespace,
            body=manifest,
            # An old JobSet would drop the fields that it does not know.
            field_validation="Strict",
            **KINDS[manifest["kind"]].address,
        )

    def get(self, kind: Kind, name: str) -> dict[str, Any] | None:
        """Returns an object, or None if it or its kind is not there."""
        with kubernetes_calls.none_if_missing():
            return kubernetes_calls.call(
                self._objects.get_namespaced_custom_object,
                namespace=self.namespace,
                name=name,
                **kind.address,
            )
        return None

    def delete(self, kind: Kind, name: str) -> None:
        """Deletes an object, which goes when all that it owns has gone."""
        with kubernetes_calls.none_if_missing():
            kubernetes_calls.call(
                self._objects.delete_namespaced_custom_object,
                namespace=self.namespace,
                name=name,
                propagation_policy="Foreground",
                **kind.address,
            )

    def objects(self, kind: Kind, label_selector: str) -> list[dict[str, Any]]:
        """Returns the objects of all pages; none if there is no such kind."""
        with kubernetes_calls.none_if_missing():
            return kubernetes_calls.all_pages(
                lambda token: kubernetes_calls.call(
                    self._objects.list_namespaced_custom_object,
                    namespace=self.namespace,
                    label_selector=label_selector,
                    limit=_PAGE_SIZE,
                    _continue=token,
                    **kind.address,
                )
            )
        return []

    def pods(self, label_selector: str) -> list[dict[str, Any]]:
        """Returns the pods of all pages."""

        def page(token: str) -> dict[str, Any]:
            answer = kubernetes_calls.call(
                self._core.list_namespaced_pod,
                namespace=self.namespace,
                label_selector=label_selector,
                limit=_PAGE_SIZE,
                _continue=token,
                _preload_content=False,
            )
            return json.loads(answer.read())

        return kubernetes_calls.all_pages(page)

    def pod(self, name: str) -> dict[str, Any] | None:
        """Returns a pod, or None if it is gone."""
        with kubernetes_calls.none_if_missing():
            answer = kubernetes_calls.call(
                self._core.read_namespaced_pod,
                name=name,
                namespace=self.namespace,
                _preload_content=False,
            )
            return json.loads(answer.read())
        return None

    def log(
        self, pod: str, *, follow: bool, since_secs: int | None
    ) -> Iterator[str]:
        """Yields a pod's lines, each after its time in RFC 3339 and a space.

        Args:
            pod: The pod's name.
            follow: Whether to wait for more until the pod has ended, or the
                connection.
            since_secs: The oldest line's age at most.

        Raises:
            RefusedError: with status 400 if the pod has not started yet, with
                404 if it is gone.
            AnswerLostError: the connection broke.
        """
        import urllib3

        answer = kubernetes_calls.call(
            self._core.read_namespaced_pod_log,
            name=pod,
            namespace=self.namespace,
            follow=follow,
            timestamps=True,
            since_seconds=since_secs,
            _preload_content=False,
            _request_timeout=(
                kubernetes_calls.CONNECT_TIMEOUT_SECS,
                _SILENCE_SECS,
            ),
        )
        # A line that the connection's end has cut comes again, whole.
        rest = b""
        try:
            for chunk in getattr(answer, "response", answer).stream():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise platforms.AnswerLostError(
                f"The log of {pod} broke off: {error}"
            ) from error
        finally:
            answer.close()


def _configuration(place: Place) -> Any:
    from kubernetes import client, config

    configuration = client.Configuration()
    # It would answer 429 and 503 by itself, but not those to POST.
    configuration.retries = False
    try:
        config.load_kube_config(
            context=place.kube_context, client_configuration=configuration
        )
        return configuration
    except config.ConfigException as error:
        problem = error
    with contextlib.suppress(config.ConfigException):
        if not place.kube_context:
            config.load_incluster_config(client_configuration=configuration)
            return configuration
    raise platforms.PlatformError(
        f"The kubeconfig is of no use: {problem} See whether `kubectl get jobs`"
        " works; for GKE, `gcloud container clusters get-credentials` makes"
        " one."
    )
