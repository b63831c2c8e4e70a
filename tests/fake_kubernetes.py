"""A Kubernetes API server on this machine, with the faults one asks for.

What a cluster's controllers would do, tests do through `tests.fake_cluster`.
"""

import contextlib
import copy
import datetime
import http.server
import json
import re
import threading
import time
import urllib.parse

from tests import jobset_schema, kubernetes_schema

_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[a-z0-9.-]+)/v[a-z0-9]+)"
    r"/namespaces/(?P<namespace>[a-z0-9-]+)/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[a-z0-9-]+))?(?P<log>/log)?"
)
_REASONS = {400: "BadRequest", 404: "NotFound", 409: "AlreadyExists"}


class FakeKubernetes:
    """The server, which runs while entered; any thread may use it.

    Attributes:
        url: Its address.
        objects: What it keeps, by plural, namespace and name.
        logs: Lines, each a time and a text, by the pod's name.
        requests: "METHOD path?query" of each so far.
        has_job_sets: Whether JobSet is installed.
        page_size: The most items on a page.
    """

    def __init__(self):
        self.objects = {}
        self.logs = {}
        self.requests = []
        self.has_job_sets = True
        self.page_size = 500
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self._faults = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, method, pattern, kind, times=1, skip=0):
        """Makes requests that match fail.

        Args:
            method: Of the request.
            pattern: Found in its path and query.
            kind: A status, which is answered; "reset": the connection breaks
                before anything is done; "lose": it is done, then breaks; "cut":
                a log breaks after its second line; "end": it ends there.
            times: How many requests it hits.
            skip: How many it lets pass first.
        """
        fault = {"method": method, "pattern": pattern, "kind": kind}
        self._faults.append({**fault, "times": times, "skip": skip})

    def fault_of(self, method, path):
        """Records a request and returns what has to go wrong with it."""
        with self.lock:
            self.requests.append(f"{method} {path}")
            for fault in self._faults:
                if fault["method"] != method or not fault["times"]:
                    continue
                if not re.search(fault["pattern"], path):
                    continue
                if fault["skip"]:
                    fault["skip"] -= 1
                    continue
                fault["times"] -= 1
                return fault["kind"]
        return None

    def count(self, method, pattern=""):
        """How many requests so far match."""
        with self.lock:
            return sum(
                request.startswith(f"{method} ")
                and re.search(pattern, request) is not None
                for request in self.requests
            )

    def create(self, plural, namespace, body, strict):
        """Returns a status and what is answered to a POST."""
        if plural == "jobsets" and not self.has_job_sets:
            return 404, "the server could not find the requested resource"
        if body["metadata"].get("namespace", namespace) != namespace:
            return 400, "the namespace of the object does not match the request"
        schema = jobset_schema if plural == "jobsets" else kubernetes_schema
        if strict and (problem := schema.problem(body)):
            return 400, f"strict decoding error: {problem}"
        name = body["metadata"]["name"]
        with self.lock:
            if (plural, namespace, name) in self.objects:
                return 409, f'{plural} "{name}" already exists'
            created = copy.deepcopy(body)
            created["metadata"] |= {
                "uid": f"uid-{len(self.requests)}",
                "creationTimestamp": now(),
            }
            created["status"] = {}
            self.objects[plural, namespace, name] = created
            return 201, copy.deepcopy(created)

    def list(self, plural, namespace, query):
        """Returns a status and the page of a list."""
        if plural == "jobsets" and not self.has_job_sets:
            return 404, "the server could not find the requested resource"
        start = int(query.get("continue", 0))
        limit = min(int(query.get("limit", 500)), self.page_size)
        with self.lock:
            items = [
                copy.deepcopy(value)
                for key, value in self.objects.items()
                if key[:2] == (plural, namespace)
                and _matches(value, query.get("labelSelector", ""))
            ]
        for item in items:
            item.pop("kind", None)  # Items of a list have none.
        more = str(start + limit) if len(items) > start + limit else ""
        return 200, {
            "kind": "List",
            "metadata": {"continue": more},
            "items": items[start : start + limit],
        }


def now():
    """Returns the time as the API writes it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )


def _matches(value, selector):
    labels = value["metadata"].get("labels", {})
    key, equals, wanted = selector.partition("=")
    if not key:
        return True
    return key in labels and (not equals or labels[key] == wanted)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeKubernetes

    def handle_error(self, request, client_address):
        """Says nothing: connections break on purpose."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # It costs 40 ms an answer.
    server: _Server

    def do_GET(self):
        self._serve("GET")

    def do_POST(self):
        self._serve("POST")

    def do_DELETE(self):
        self._serve("DELETE")

    def log_message(self, *_):
        pass

    def _serve(self, method):
        fake = self.server.fake
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        fault = fake.fault_of(method, self.path)
        if fault == "reset":
            self._break()
            return
        if isinstance(fault, int):
            self._answer(fault, "not now", {"Retry-After": "0"})
            return
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        match = _PATH.fullmatch(url.path)
        if not match:
            self._answer(404, "the server could not find the requested path")
            return
        if match["log"]:
            self._send_log(match, query, fault)
            return
        with fake.lock:
            status, answer = self._do(method, match, query, body)
        if fault == "lose":
            self._break()
            return
        self._answer(status, answer)

    def _do(self, method, match, query, body):
        fake = self.server.fake
        plural, namespace, name = match.group("plural", "namespace", "name")
        if method == "POST":
            strict = query.get("fieldValidation") == "Strict"
            return fake.create(plural, namespace, body, strict)
        if not name:
            return fake.list(plural, namespace, query)
        found = fake.objects.get((plural, namespace, name))
        if not found:
            return 404, f'{plural} "{name}" not found'
        if method == "DELETE":
            if query.get("propagationPolicy") != "Foreground":
                return 400, "the pods would stay"
            found["metadata"]["deletionTimestamp"] = now()
        return 200, copy.deepcopy(found)

    def _send_log(self, match, query, fault):
        fake = self.server.fake
        key = ("pods", match["namespace"], match["name"])
        if key not in fake.objects:
            self._answer(404, f'pods "{match["name"]}" not found')
            return
        if fake.objects[key]["status"]["phase"] == "Pending":
            self._answer(400, "container is waiting to start: PodInitializing")
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while True:
            lines = fake.logs.get(match["name"], [])[sent:]
            phase = fake.objects.get(key, {}).get("status", {}).get("phase")
            for moment, text in lines:
                self._chunk(f"{moment} {text}\n".encode())
                sent += 1
                if fault == "cut" and sent == 2:
                    self._chunk(b"2026-01-01T00:00:00Z half a li")
                    self._break()
                    return
                if fault == "end" and sent == 2:
                    self._chunk(b"")
                    return
            following = query.get("follow") == "true" and phase == "Running"
            if not following or fake.stopping.is_set():
                break
            time.sleep(0.01)
        self._chunk(b"")

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _break(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def _answer(self, status, answer, headers=None):
        if isinstance(answer, str):
            answer = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": _REASONS.get(status, ""),
                "message": answer,
                "code": status,
            }
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
