"""The connections of workers who meet: lines of JSON, of bounded size and time.

Anybody can connect to an open port. Whoever says nothing, too much or nonsense
is left without holding up the others.
"""

import contextlib
import json
import socket
import struct
import time
from typing import Any

from trainer import errors
from trainer.cluster import host_and_port

_MAX_LINE_BYTES = 64 * 1024
_HELLO_SECS = 10.0
_CLOSE_SECS = 2.0
_POLL_SECS = 0.1
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Peer:
    """A connection from which one line, a JSON object, is awaited.

    Attributes:
      connection: not blocking.
      message: what the line held, once it has come.
    """

    def __init__(self, connection: socket.socket, timeout_secs: float) -> None:
        """Waits for the line so long."""
        self.connection = connection
        self.message: dict[str, Any] | None = None
        self._deadline = time.monotonic() + timeout_secs
        self._received = b""
        connection.setblocking(False)
        # Else what the chief has closed keeps its port for a minute.
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
        )

    def send(self, message: dict[str, Any]) -> None:
        """Sends a line, if the peer is still there."""
        # The empty buffer takes it at once; if it is broken, `hear` finds out.
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> bool:
        """Takes what has come; returns whether the peer is of use still."""
        try:
            # To the end, as who has gone again is not here.
            while received := self.connection.recv(_MAX_LINE_BYTES):
                if self.message is not None or not self._take(received):
                    return False
        except BlockingIOError:
            return self.message is not None or time.monotonic() < self._deadline
        except OSError:
            pass
        return False

    def _take(self, received: bytes) -> bool:
        self._received += received
        line, newline, _ = self._received.partition(b"\n")
        if not newline or len(line) > _MAX_LINE_BYTES:
            return len(line) <= _MAX_LINE_BYTES
        with contextlib.suppress(ValueError, RecursionError):
            self.message = json.loads(line)
        return isinstance(self.message, dict)


class Meeting:
    """The chief's side: its listener and those who came.

    Attributes:
      workers: the connections of those who have said hello, by index.
    """

    def __init__(self, address: str) -> None:
        """Listens at the port of `address`.

        Raises:
          UsageError: something else does.
        """
        self.workers: dict[int, Peer] = {}
        self._peers: list[Peer] = []
        try:
            self._listener = _listen(address)
        except OSError as error:
            raise errors.UsageError(
                f"The chief cannot listen at its address {address}:"
                f" {error.strerror}. The port must be free: end what uses it,"
                " or give worker 0 another one in every worker's TF_CONFIG."
            ) from error
        self._listener.setblocking(False)

    def attend(self) -> None:
        """Serves those who have something to say, then waits a little."""
        with contextlib.suppress(OSError):  # Nobody else is there.
            while True:
                connection, _ = self._listener.accept()
                self._peers.append(Peer(connection, _HELLO_SECS))
        heard = [p for p in self._peers if p.hear() and _may_stay(p.message)]
        # The last of an index counts: its process was started again.
        self.workers = {p.message["index"]: p for p in heard if p.message}
        last = set(self.workers.values())
        self._keep([p for p in heard if not p.message or p in last])
        time.sleep(_POLL_SECS)

    def conclude(self, verdict: dict[str, Any]) -> None:
        """Stops listening, tells all workers and lets them leave first."""
        # They know the verdict only once TensorFlow can have the port.
        self._listener.close()
        self._keep(list(self.workers.values()))
        for peer in self._peers:
            peer.send(verdict)
        deadline = time.monotonic() + _CLOSE_SECS
        while self._peers and time.monotonic() < deadline:
            self.attend()

    def close(self) -> None:
        """Leaves everybody."""
        self._listener.close()
        self._keep([])

    def _keep(self, peers: list[Peer]) -> None:
        for peer in set(self._peers) - set(peers):
            peer.connection.close()
        self._peers = peers


def is_port_free(address: str) -> bool:
    """Tells whether this machine can listen at the port of an address."""
    try:
        _listen(address).close()
    except OSError:
        return False
    return True


def _listen(address: str) -> socket.socket:
    _, port = host_and_port(address)
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", port),
        family=socket.AF_INET6 if both else socket.AF_INET,
        dualstack_ipv6=both,
    )


def _may_stay(hello: dict[str, Any] | None) -> bool:
    if hello is None:  # It may come yet.
        return True
    index, facts = hello.get("index"), hello.get("facts")
    return isinstance(index, int) and index > 0 and isinstance(facts, dict)
