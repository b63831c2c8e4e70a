"""All workers meet over plain TCP before TensorFlow starts.

TensorFlow waits for missing workers itself, but without an end, while it holds
Python's interpreter lock, and deaf to signals.
"""

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Sequence

from trainer import errors
from trainer.cluster import Cluster, host_and_port
from trainer.meeting import Meeting, Peer, is_port_free

_POLL_SECS = 0.1
_CONNECT_SECS = 5.0
_RETRY_SECS = 1.0
_FIRST_LINE_SECS = 2.0
_SECS_BETWEEN_LINES = 30.0
_MAX_SHOWN = 5
_MAX_SHOWN_CHARS = 100


def meet(
    cluster: Cluster,
    *,
    facts: dict[str, str],
    timeout_secs: float,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Waits until all workers are here, started alike; False if stopped.

    Args:
      cluster: who they are.
      facts: what must be the same for all, such as flags and versions.
      timeout_secs: how long to wait.
      should_stop: asked several times a second.
      say: told who is missing, every 30 s, if that takes longer than 2 s.

    Raises:
      UsageError: facts differ, or this is the chief and its port is in use.
      StalledError: workers are still missing.
    """
    if cluster.num_workers == 1:
        return True
    facts = {
        "the number of workers": str(cluster.num_workers),
        **facts,
    }
    watch = _Watch(timeout_secs, should_stop, say)
    try:
        if cluster.is_chief:
            _await_workers(cluster, facts, watch)
        else:
            _go_to_chief(cluster, facts, watch)
    except _StoppedError:
        return False
    return True


class _StoppedError(Exception):
    """The caller asked to stop."""


@dataclasses.dataclass
class _Watch:
    """The time that is left, and what a person hears meanwhile."""

    timeout_secs: float
    should_stop: Callable[[], bool]
    say: Callable[[str], None]
    start: float = dataclasses.field(default_factory=time.monotonic)
    next_line_secs: float = _FIRST_LINE_SECS

    def goes_on(self, missing: str) -> bool:
        """Returns whether there is time left; ask every `_POLL_SECS`."""
        if self.should_stop():
            raise _StoppedError
        waited_secs = time.monotonic() - self.start
        if waited_secs >= self.next_line_secs:
            self.say(f"Waiting for {missing}...")
            self.next_line_secs = waited_secs + _SECS_BETWEEN_LINES
        return waited_secs < self.timeout_secs

    def stalled(self, what: str) -> errors.StalledError:
        return errors.StalledError(
            f"After {self.timeout_secs:g} s, {what}. See whether all workers"
            " were started and still run, whether the host names are right and"
            " known on all machines, and whether a firewall closes the ports."
        )


def _await_workers(
    cluster: Cluster, facts: dict[str, str], watch: _Watch
) -> None:
    others = set(range(1, cluster.num_workers))
    with contextlib.closing(Meeting(cluster.address)) as meeting:
        while missing := sorted(others - meeting.workers.keys()):
            if not watch.goes_on(_names(cluster, missing)):
                break
            meeting.attend()
        error: errors.TrainerError | None = None
        # First, as with other numbers of workers the missing may never come.
        if differences := _differences(cluster, facts, meeting.workers):
            error = errors.UsageError(differences)
        elif missing:
            error = watch.stalled(f"{_names(cluster, missing)} did not come")
        stalled = isinstance(error, errors.StalledError)
        meeting.conclude({"error": error and str(error), "stalled": stalled})
    if error:
        raise error


def _go_to_chief(
    cluster: Cluster, facts: dict[str, str], watch: _Watch
) -> None:
    chief = _names(cluster, [0])
    others = "the others; the chief names them"
    problem = f"{chief} did not answer"
    wait_secs = 0.0
    trouble = ""
    if not is_port_free(cluster.address):
        # So that all hear of it, before TensorFlow fails to listen there.
        trouble = "its port is in use by another program"
    while watch.goes_on(chief):
        connection = _connect(cluster.addresses[0], wait_secs, watch, chief)
        wait_secs = _RETRY_SECS
        if not connection:
            continue
        problem = f"{chief} answered, but others did not come; it names them"
        with connection:
            peer = Peer(connection, watch.timeout_secs)
            peer.send(
                {"index": cluster.index, "facts": facts, "trouble": trouble}
            )
            while peer.hear() and not peer.message and watch.goes_on(others):
                time.sleep(_POLL_SECS)
        match peer.message:
            case {"error": None}:
                return
            case {"error": str(text), "stalled": True}:
                raise errors.StalledError(text)
            case {"error": str(text)}:
                raise errors.UsageError(text)
    raise watch.stalled(problem)


def _connect(
    address: str, wait_secs: float, watch: _Watch, chief: str
) -> socket.socket | None:
    connections = []

    def connect() -> None:
        time.sleep(wait_secs)
        target = host_and_port(address)
        with contextlib.suppress(OSError, UnicodeError):
            connections.append(socket.create_connection(target, _CONNECT_SECS))

    # Looking up a name may take half a minute, and cannot be interrupted.
    thread = threading.Thread(target=connect, name="rendezvous", daemon=True)
    thread.start()
    while thread.is_alive() and watch.goes_on(chief):
        thread.join(_POLL_SECS)
    return connections[0] if connections else None


def _differences(
    cluster: Cluster, facts: dict[str, str], workers: dict[int, Peer]
) -> str:
    """Returns an error text, empty if all were started alike."""
    lines = []
    for index, worker in sorted(workers.items()):
        hello = worker.message or {}
        theirs = hello.get("facts", {})
        if trouble := hello.get("trouble"):
            lines.append(f"{_names(cluster, [index])}: {_show(trouble)}")
        for name in facts | theirs:
            if theirs.get(name) != facts.get(name):
                lines.append(
                    f"{_names(cluster, [index])}: {name[:_MAX_SHOWN_CHARS]} is"
                    f" {_show(theirs.get(name))}, but {_show(facts.get(name))}"
                    " at the chief"
                )
    if not lines:
        return ""
    if len(lines) > _MAX_SHOWN:
        lines[_MAX_SHOWN:] = [f"and {len(lines) - _MAX_SHOWN} more"]
    return (
        "The workers cannot train together:\n  "
        + "\n  ".join(lines)
        + "\nStart all workers with the same command and the same versions."
    )


def _show(value: object) -> str:
    return "absent" if value is None else repr(value)[:_MAX_SHOWN_CHARS]


def _names(cluster: Cluster, indices: Sequence[int]) -> str:
    # A worker of a larger cluster may have an index beyond this one's.
    addresses = dict(enumerate(cluster.addresses))
    names = [
        f"worker {index} ({addresses.get(index, 'of another cluster')})"
        for index in indices[:_MAX_SHOWN]
    ]
    if len(indices) > _MAX_SHOWN:
        names.append(f"{len(indices) - _MAX_SHOWN} more")
    return ", ".join(names)
