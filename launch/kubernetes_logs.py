"""The lines of a job's pods, over lost connections and restarts."""

import datetime
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from launch import kubernetes_states, platforms
from launch.kubernetes_calls import RefusedError
from launch.kubernetes_client import Cluster

_POLL_SECS = 2.0
# The clocks of this machine and the cluster's may differ by so much.
_CLOCK_SKEW_SECS = 600
_NOT_STARTED = 400
_GONE = 404
_ENDED = ("Succeeded", "Failed")
_TRIES = 5
# Trailing zeros of the second's fraction may be missing.
_TIME = re.compile(r"([-0-9]{10}T[:0-9]{8})(?:\.([0-9]+))?(Z|[-+][0-9:]{5})")


def so_far(cluster: Cluster, selector: str) -> Iterator[str]:
    """Yields what all pods have said, one after the other."""
    for pod in _in_order(cluster, selector):
        index = kubernetes_states.worker_index(pod)
        prefix = f"[worker {index}] " if index else ""
        reader = _Reader(cluster, pod["metadata"]["name"])
        for tries_left in reversed(range(_TRIES)):
            try:
                for line in reader.new_lines(follow=False):
                    yield prefix + line
                break
            except platforms.AnswerLostError:
                if not tries_left:
                    raise
                time.sleep(_POLL_SECS)


def follow(
    cluster: Cluster, selector: str, is_over: Callable[[], bool]
) -> Iterator[str]:
    """Yields what worker 0 says, in each of its pods, until the job is over.

    Args:
        cluster: Where the pods are.
        selector: Their labels.
        is_over: Whether the job is, so that no further pod will come.
    """
    done: set[str] = set()
    while True:
        # Asked before looking: what the last pod says is read after it.
        over = is_over()
        for pod in _in_order(cluster, selector):
            identity = pod["metadata"]["uid"]
            if identity in done or kubernetes_states.worker_index(pod):
                continue
            if not over and _phase(pod) == "Pending":
                break  # Its time will come.
            yield from _follow_pod(cluster, pod)
            done.add(identity)
        if over:
            return
        time.sleep(_POLL_SECS)


def _follow_pod(cluster: Cluster, pod: dict[str, Any]) -> Iterator[str]:
    name = pod["metadata"]["name"]
    reader = _Reader(cluster, name)
    while True:
        # Asked before reading, for the same reason.
        ended = _phase(pod) in _ENDED
        try:
            yield from reader.new_lines(follow=not ended)
            if ended:
                return
        except platforms.AnswerLostError:
            time.sleep(_POLL_SECS)
        found = cluster.pod(name)
        if not found or found["metadata"]["uid"] != pod["metadata"]["uid"]:
            return
        pod = found


class _Reader:
    """Reads a pod's lines, each once."""

    def __init__(self, cluster: Cluster, pod: str) -> None:
        self._cluster = cluster
        self._pod = pod
        # The newest line's time, and how many lines have that very time.
        self._newest = ""
        self._num_newest = 0
        self._since: datetime.datetime | None = None

    def new_lines(self, *, follow: bool) -> Iterator[str]:
        """Yields the lines that have not been yielded before.

        Raises:
            AnswerLostError: The connection broke; call again.
        """
        known, num_known = self._newest, self._num_newest
        lines = self._cluster.log(
            self._pod, follow=follow, since_secs=self._since_secs()
        )
        try:
            for line in lines:
                moment, _, text = line.partition(" ")
                match = _TIME.fullmatch(moment)
                if not match:
                    yield line  # The machine's own word on the log.
                    continue
                when = match[1] + (match[2] or "").ljust(9, "0")
                if when == known and num_known:
                    num_known -= 1
                elif when >= known:
                    same = when == self._newest
                    self._num_newest = self._num_newest + 1 if same else 1
                    self._newest = when
                    offset = match[3].replace("Z", "+00:00")
                    self._since = datetime.datetime.fromisoformat(
                        match[1] + offset
                    )
                    yield text
        except RefusedError as error:
            # It has not begun to speak, or will never speak again.
            if error.status not in (_NOT_STARTED, _GONE):
                raise
            if follow:
                time.sleep(_POLL_SECS)

    def _since_secs(self) -> int | None:
        """Returns the age of the newest line, or more."""
        if self._since is None:
            return None
        now = datetime.datetime.now(datetime.timezone.utc)
        age_secs = (now - self._since).total_seconds()
        return max(0, int(age_secs)) + _CLOCK_SKEW_SECS


def _in_order(cluster: Cluster, selector: str) -> list[dict[str, Any]]:
    """Returns the pods, the oldest first."""
    pods = cluster.pods(selector)
    return sorted(
        pods,
        key=lambda pod: (
            pod["metadata"]["creationTimestamp"],
            kubernetes_states.worker_index(pod),
        ),
    )


def _phase(pod: dict[str, Any]) -> str:
    return pod.get("status", {}).get("phase", "")
