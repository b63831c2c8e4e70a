"""A Vertex AI and a Cloud Logging server, with the faults one asks for."""

import dataclasses
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

_PAGE_SIZE = 2
_JOBS = re.compile(r"/v1/(projects/[^/]+/locations/[^/]+)/customJobs")
_JOB = re.compile(r"/v1/(.+/customJobs/[0-9]+)(:cancel)?")
_FILTER = re.compile(r'labels\.([a-z-]+)(?:="([^"]*)"|:\*)')
_LOG_FILTER = re.compile(
    r'resource\.type="ml_job" AND resource\.labels\.job_id="([0-9]+)"'
    r'(?: AND timestamp>="([^"]*)")?'
)


@dataclasses.dataclass
class Fault:
    """What happens to a request that begins with `start`, once.

    Attributes:
        start: "METHOD /path".
        status: It is answered with this status and not done; 0: the connection
            breaks without an answer.
        done: It is done before that.
    """

    start: str
    status: int
    done: bool = False


class FakeVertex:
    """The server, which runs while entered.

    Attributes:
        url: Its address.
        jobs: The CustomJobs by name, in the form of their JSON.
        entries: The log entries by the job's number.
        requests: "METHOD /path" of each request so far.
        faults: Those to come; each is used once.
        on_request: Called with each request before it is served.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.entries: dict[str, list[dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.on_request: Callable[[str], None] = lambda request: None
        self._server = http.server.ThreadingHTTPServer(
            ("localhost", 0), _handler(self)
        )
        self.url = f"http://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeVertex":
        thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def created(self) -> int:
        """How many requests have created a job."""
        return len(self.jobs)

    def set_state(self, state: str, number: int = -1, **fields: Any) -> None:
        """Brings a job, by default the newest, into a state."""
        job = list(self.jobs.values())[number]
        job.update(fields, state=f"JOB_STATE_{state}")

    def add_double(self, job: dict[str, Any]) -> dict[str, Any]:
        """Creates what somebody else has submitted at the same moment."""
        fields = ("displayName", "labels", "jobSpec")
        parent = job["name"].partition("/customJobs/")[0]
        return self._create(parent, {name: job[name] for name in fields})

    def log(self, time: str, text: str, **fields: Any) -> None:
        """Adds an entry to the newest job's log."""
        job = list(self.jobs)[-1].rpartition("/")[2]
        entries = self.entries.setdefault(job, [])
        entry = {"timestamp": time, "insertId": f"id{len(entries)}"}
        entries.append({**entry, "textPayload": text, **fields})

    def serve(
        self, method: str, path: str, query: dict[str, str], body: Any
    ) -> Any:
        """Returns the answer's object.

        Raises:
            LookupError: there is no such thing; the request is not known.
        """
        jobs = _JOBS.fullmatch(path)
        job = _JOB.fullmatch(path)
        if method == "POST" and jobs:
            return self._create(jobs[1], body)
        if method == "GET" and jobs:
            return self._list(jobs[1], query)
        if method == "GET" and job:
            return self.jobs[job[1]]
        if method == "POST" and job and job[2]:
            self.jobs[job[1]]["state"] = "JOB_STATE_CANCELLING"
            return {}
        if method == "POST" and path == "/v2/entries:list":
            return self._entries(body)
        raise LookupError(path)

    def _create(self, parent: str, body: dict[str, Any]) -> dict[str, Any]:
        number = 1000 + len(self.jobs)
        name = f"{parent}/customJobs/{number}"
        self.jobs[name] = {
            **body,
            "name": name,
            "state": "JOB_STATE_QUEUED",
            "createTime": f"2030-01-01T00:00:00.{number}Z",
        }
        return self.jobs[name]

    def _list(self, parent: str, query: dict[str, str]) -> dict[str, Any]:
        condition = _FILTER.fullmatch(query["filter"])
        if not condition:
            raise LookupError(query["filter"])
        found = [
            job
            for name, job in self.jobs.items()
            if name.startswith(f"{parent}/")
            and condition[1] in job.get("labels", {})
            and condition[2] in (None, job["labels"][condition[1]])
        ]
        start = int(query.get("pageToken") or 0)
        end = start + _PAGE_SIZE
        answer: dict[str, Any] = {"customJobs": found[start:end]}
        if end < len(found):
            answer["nextPageToken"] = str(end)
        return answer

    def _entries(self, body: dict[str, Any]) -> dict[str, Any]:
        condition = _LOG_FILTER.fullmatch(body["filter"])
        if not condition or body["orderBy"] != "timestamp asc":
            raise LookupError(body["filter"])
        found = [
            entry
            for entry in self.entries.get(condition[1], [])
            if entry["timestamp"] >= (condition[2] or "")
        ]
        found.sort(key=lambda entry: entry["timestamp"])
        start = int(body["pageToken"] or 0)
        end = start + _PAGE_SIZE
        answer: dict[str, Any] = {"entries": found[start:end]}
        if end < len(found):
            answer["nextPageToken"] = str(end)
        return answer


def _handler(fake: FakeVertex) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "null")
            request = f"{self.command} {url.path}"
            fake.requests.append(request)
            fake.on_request(request)
            fault = next(
                (f for f in fake.faults if request.startswith(f.start)), None
            )
            if fault:
                fake.faults.remove(fault)
                if fault.done:
                    fake.serve(self.command, url.path, query, body)
                if fault.status:
                    self._answer(fault.status, _error(fault.status, "fault"))
                # Else the connection is closed without an answer.
                self.close_connection = True
                return
            try:
                answer = fake.serve(self.command, url.path, query, body)
            except LookupError as error:
                self._answer(404, _error(404, str(error)))
            else:
                self._answer(200, answer)

        def _answer(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message}}
