"""A Cloud Storage server on this machine, with the faults that one asks for."""

import contextlib
import dataclasses
import http.server
import os
import re
import secrets
import socket
import struct
import threading
import time
import urllib.parse

from google.cloud import storage

from tests.gcs_objects import Objects, damaged, failed

_HEAD_BYTES = 4096  # Enough for the name of what is uploaded.

# Google's own test server, where the environment names one: what holds without
# faults holds on both.
PLACES = (
    ["fake", "testbench"] if "STORAGE_TESTBENCH" in os.environ else ["fake"]
)


@dataclasses.dataclass
class Fault:
    """What happens to the next requests that match.

    Attributes:
        method: Of the request, or "ANY".
        pattern: Found in its path, query and the name of the object.
        kind: "status": answered with the status `value`, and nothing done;
            "reset": the connection breaks before anything is done;
            "reset_mid_body": it breaks in the middle of what is sent up, or
            else down; "stall": nothing happens for `value` seconds, then it
            breaks; "lose_response": it is done, then the connection breaks;
            "corrupt": a byte changes on the way, up or down.
        value: See `kind`.
        times: How many requests it has still to hit.
        skip: How many that match it lets pass before.
    """

    method: str
    pattern: str
    kind: str
    value: float
    times: int
    skip: int


class FakeGcs:
    """The server, which runs while entered; any thread may use it.

    Attributes:
        url: Its address, for STORAGE_EMULATOR_HOST.
        objects: What it keeps.
        requests: "METHOD path?query name" of each request so far.
        latency_secs: Before each answer.
    """

    def __init__(self) -> None:
        self.objects = Objects()
        self.requests: list[str] = []
        self.latency_secs = 0.0
        self.stopping = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeGcs":
        # The default looks for a shutdown only every half second.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, method, pattern, kind, value=0, *, times=1, skip=0) -> Fault:
        """Adds a fault; see `Fault`."""
        fault = Fault(method, pattern, kind, value, times, skip)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forgets the requests and the faults."""
        with self._lock:
            self.requests.clear()
            self._faults.clear()

    def count(self, method: str, pattern: str = "") -> int:
        """How many requests so far match."""
        with self._lock:
            return sum(
                method in (request.split()[0], "ANY")
                and re.search(pattern, request) is not None
                for request in self.requests
            )

    def fault_of(self, method: str, path: str, name: str) -> Fault | None:
        """Records a request and returns what has to go wrong with it."""
        request = f"{method} {path} {name}"
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if (
                    fault.times == 0
                    or fault.method not in (method, "ANY")
                    or not re.search(fault.pattern, request)
                ):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    fake: FakeGcs

    def handle_error(self, request, client_address) -> None:
        """Says nothing: clients break connections here on purpose."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Or each small answer takes 40 ms.

    def log_message(self, *_) -> None:
        pass

    def _serve(self) -> None:
        fake, objects = self.server.fake, self.server.fake.objects
        url = urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(min(length, _HEAD_BYTES))
        fault = fake.fault_of(
            self.command,
            urllib.parse.unquote(self.path),
            objects.name_of(url, body),
        )
        kind = fault.kind if fault else ""
        if kind == "reset":
            return self._reset()
        if kind == "stall":
            fake.stopping.wait(fault.value)
            return self._reset()
        if kind == "reset_mid_body" and length:
            body += self.rfile.read(max(0, length // 2 - len(body)))
            objects.keep_part(url, self.headers, body)
            return self._reset()
        body += self.rfile.read(length - len(body))
        time.sleep(fake.latency_secs)
        if kind == "status":
            answer = failed(int(fault.value), "by the fault script")
        else:
            answer = objects.handle(
                self.command, url, self.headers, body, kind == "corrupt"
            )
        if kind == "lose_response":
            return self._reset()
        if kind == "corrupt" and self.command == "GET":
            answer.body = damaged(answer.body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if kind == "reset_mid_body":
            self.wfile.write(answer.body[: len(answer.body) // 2])
            # A reset drops what is still on its way.
            time.sleep(0.05)
            return self._reset()
        self.wfile.write(answer.body)

    do_DELETE = do_GET = do_POST = do_PUT = _serve

    def _reset(self) -> None:
        """Breaks the connection: a RST, no orderly end."""
        self.close_connection = True
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.rfile.close()  # It would keep the connection open.
        self.connection.close()


@contextlib.contextmanager
def empty_bucket(place: str, monkeypatch):
    """Yields the name of a new bucket in one of `PLACES`, for the client."""
    name = f"bucket-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        if place == "fake":
            fake = stack.enter_context(FakeGcs())
            url = fake.url
        else:
            url = os.environ["STORAGE_TESTBENCH"]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        storage.Client(project="p").create_bucket(name)
        yield name
