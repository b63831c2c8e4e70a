"""The life of a job on Vertex AI: its real client, and a server of ours."""

import json
import sys
import time
from collections.abc import Iterator

import google.auth
import pytest
from google.auth import credentials
from google.auth import exceptions as auth_exceptions
from google.cloud.aiplatform_v1 import types

from launch import main, platforms, vertex_client, vertex_logs, vertex_request
from tests.fake_vertex import FakeVertex, Fault

_PLACE = ("--platform=vertex", "--project=p", "--region=us-central1")
_JOB = (
    *_PLACE,
    "--service_account=trainer@p.iam.gserviceaccount.com",
    "--workdir=gs://bucket/runs/first",
    f"--image=registry.example.com/gan-trainer@sha256:{'0' * 64}",
    "--accelerator=l4",
    "--spot",
)
_JOBS = "/v1/projects/p/locations/us-central1/customJobs"


@pytest.fixture(name="vertex")
def _vertex(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVertex]:
    anonymous = (credentials.AnonymousCredentials(), None)
    monkeypatch.setattr(google.auth, "default", lambda scopes: anonymous)
    monkeypatch.setattr(vertex_client, "_FIRST_WAIT_SECS", 0.01)
    monkeypatch.setattr(vertex_client, "_GIVE_UP_SECS", 2.0)
    monkeypatch.setattr(vertex_logs, "_FIRST_WAIT_SECS", 0.01)
    monkeypatch.setattr(vertex_logs, "_POLL_SECS", 0.01)
    monkeypatch.setattr(main, "_POLL_SECS", 0.01)
    monkeypatch.setattr(platforms, "_LOOK_AGAIN_SECS", (0.0, 0.01))
    with FakeVertex() as server:
        monkeypatch.setattr(vertex_request, "_ENDPOINT", server.url)
        monkeypatch.setattr(vertex_logs, "_ENDPOINT", server.url)
        yield server


class _Command:
    """Runs `launch.main` in this process, and keeps what it has said."""

    def __init__(self, capsys: pytest.CaptureFixture) -> None:
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def __call__(self, *arguments: str) -> int:
        self._capsys.readouterr()
        code = main.main(["main", *arguments])
        self.out, self.err = self._capsys.readouterr()
        return code

    def submit(self, *flags: str) -> dict:
        """Submits the job, and returns what is said of it."""
        code = self("submit", *_JOB, "--json", *flags, "--", "--epochs=9")
        assert code == 0, self.err
        return json.loads(self.out)

    def state(self, name: str) -> str:
        """Returns the state of a job."""
        assert self("status", name, *_PLACE, "--json") == 0, self.err
        return json.loads(self.out)["state"]


@pytest.fixture(name="command")
def _command(capsys: pytest.CaptureFixture) -> _Command:
    return _Command(capsys)


def test_what_is_submitted_is_what_was_rendered(
    vertex: FakeVertex, command: _Command
) -> None:
    assert command("render", *_JOB, "--", "--epochs=9") == 0
    request = json.loads(command.out)
    job = command.submit()
    assert request["url"] == f"{vertex.url}{_JOBS}"
    assert vertex.requests[-1] == f"{request['method']} {_JOBS}"
    [sent] = vertex.jobs.values()
    sent = {k: v for k, v in sent.items() if k in request["body"]}
    # Constants go as numbers.
    assert types.CustomJob.from_json(
        json.dumps(sent)
    ) == types.CustomJob.from_json(json.dumps(request["body"]))
    assert job["name"] == request["body"]["displayName"]
    assert job["state"] == "queued"
    assert f"/training/{job['resource'].rpartition('/')[2]}" in job["address"]


def test_a_job_is_queued_runs_is_preempted_goes_on_and_succeeds(
    vertex: FakeVertex, command: _Command
) -> None:
    name = command.submit()["name"]
    assert command.state(name) == "queued"
    vertex.set_state("PENDING")
    assert command.state(name) == "queued"
    vertex.set_state("RUNNING", startTime="2030-01-01T00:01:00Z")
    assert command.state(name) == "running"
    vertex.set_state("PENDING")
    assert command.state(name) == "preempted"
    vertex.set_state("RUNNING")
    assert command.state(name) == "running"
    vertex.set_state("SUCCEEDED")
    assert command.state(name) == "succeeded"
    # There is nothing to do for the same job.
    again = command.submit()
    assert (again["name"], again["state"]) == (name, "succeeded")
    assert again["created"] is False
    # Which Vertex AI does not tell.
    assert again["restarts"] is None
    command("status", name, *_PLACE)
    assert "restarts" not in command.out
    assert vertex.created == 1


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("FAILED", "failed"),
        ("EXPIRED", "failed"),
        ("CANCELLED", "cancelled"),
    ],
)
def test_a_job_that_has_failed_is_started_again(
    vertex: FakeVertex, command: _Command, state: str, expected: str
) -> None:
    first = command.submit()
    vertex.set_state(state, error={"code": 3, "message": "code 3: data"})
    assert command("status", first["name"], *_PLACE) == 0
    assert command.out.startswith(f"{first['name']}: {expected}\n")
    assert "code 3: data" in command.out
    second = command.submit()
    assert second["name"] == f"{first['name']}-2"
    assert command.submit()["name"] == second["name"]
    assert vertex.created == 2
    # The first is still found by its name.
    assert command.state(first["name"]) == expected


def test_a_job_that_is_there_is_not_started_again(
    vertex: FakeVertex, command: _Command
) -> None:
    first = command.submit()
    vertex.set_state("RUNNING")
    again = command.submit()
    assert (again["resource"], again["state"]) == (first["resource"], "running")
    # But another job is another.
    assert command.submit("--num_workers=2")["resource"] != first["resource"]
    assert vertex.created == 2


@pytest.mark.parametrize("status", [0, 500, 503])
def test_a_lost_answer_starts_no_second_job(
    vertex: FakeVertex, command: _Command, status: int
) -> None:
    vertex.faults.append(Fault(f"POST {_JOBS}", status, done=True))
    job = command.submit()
    assert vertex.created == 1
    assert job["resource"] == list(vertex.jobs)[0]
    assert command.submit()["resource"] == job["resource"]
    assert vertex.created == 1


@pytest.mark.parametrize("status", [0, 503, 429])
def test_what_was_not_done_is_tried_again(
    vertex: FakeVertex, command: _Command, status: int
) -> None:
    vertex.faults += [Fault(f"POST {_JOBS}", status)] * 2
    command.submit()
    assert vertex.created == 1
    assert not vertex.faults


def test_what_nobody_answers_may_be_submitted_again(
    vertex: FakeVertex, command: _Command
) -> None:
    vertex.faults += [Fault(f"POST {_JOBS}", 503)] * 3
    assert command("submit", *_JOB) == 1
    assert "Submit it again" in command.err
    assert command("submit", *_JOB) == 0
    assert vertex.created == 1


@pytest.mark.parametrize("status", [0, 429, 503])
def test_looking_is_tried_again(
    vertex: FakeVertex, command: _Command, status: int
) -> None:
    name = command.submit()["name"]
    vertex.faults += [Fault(f"GET {_JOBS}", status)] * 3
    assert command.state(name) == "queued"
    assert not vertex.faults


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, "Vertex AI refuses: "),
        (401, "gcloud auth application-default login"),
        (403, "roles/iam.serviceAccountUser"),
    ],
)
def test_a_refusal_is_told_at_once(
    vertex: FakeVertex, command: _Command, status: int, text: str
) -> None:
    vertex.faults.append(Fault(f"POST {_JOBS}", status))
    assert command("submit", *_JOB) == 1
    assert text in command.err
    assert vertex.created == 0
    assert vertex.requests.count(f"POST {_JOBS}") == 1


def test_without_credentials_the_remedy_is_told(
    vertex: FakeVertex, command: _Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(scopes: list[str]) -> None:
        raise auth_exceptions.DefaultCredentialsError("none found.")

    monkeypatch.setattr(google.auth, "default", fail)
    assert command("submit", *_JOB) == 1
    assert "gcloud auth application-default login" in command.err


def test_without_the_client_the_extra_is_named(
    vertex: FakeVertex, command: _Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform_v1", None)
    assert command("submit", *_JOB) == 2
    assert "gan-trainer[vertex]" in command.err


def test_list_reads_all_pages(vertex: FakeVertex, command: _Command) -> None:
    names = [command.submit(f"--labels=n={i}")["name"] for i in range(5)]
    # Somebody else's job.
    foreign = {"displayName": "other", "labels": {"team": "x"}}
    vertex.serve("POST", _JOBS, {}, foreign)
    assert command("list", *_PLACE, "--json") == 0
    listed = [job["name"] for job in json.loads(command.out)]
    assert listed == names[::-1]
    assert command("list", *_PLACE) == 0
    assert [line.split()[0] for line in command.out.splitlines()] == listed


def test_a_name_that_does_not_exist_is_an_error_of_the_user(
    vertex: FakeVertex, command: _Command
) -> None:
    for verb in ("status", "logs", "cancel"):
        assert command(verb, "train-00000000", *_PLACE) == 2
        assert "There is no job 'train-00000000'" in command.err


def test_cancel_waits_for_the_end(
    vertex: FakeVertex, command: _Command
) -> None:
    name = command.submit()["name"]
    vertex.set_state("RUNNING", startTime="2030-01-01T00:01:00Z")
    looks = 0

    def on_request(request: str) -> None:
        nonlocal looks
        if vertex.jobs and "CANCELLING" in [*vertex.jobs.values()][0]["state"]:
            looks += 1
            if looks == 4:
                vertex.set_state("CANCELLED")

    vertex.on_request = on_request
    assert command("cancel", name, *_PLACE) == 0
    assert looks >= 4
    assert command.err.splitlines() == [
        f"{name}: cancelling",
        f"{name}: cancelled",
    ]
    # And there is nothing to cancel any more.
    cancels = [r for r in vertex.requests if r.endswith(":cancel")]
    assert command("cancel", name, *_PLACE) == 0
    assert [r for r in vertex.requests if r.endswith(":cancel")] == cancels


def test_cancel_ends_both_that_were_submitted_at_the_same_moment(
    vertex: FakeVertex, command: _Command
) -> None:
    name = command.submit()["name"]
    [first] = vertex.jobs.values()
    second = vertex.add_double(first)
    vertex.set_state("RUNNING", number=0)
    vertex.set_state("RUNNING", number=1)

    def on_request(request: str) -> None:
        if request.startswith("GET") and "CANCELLING" in second["state"]:
            # The newer ends first, and must not be taken for both.
            second["state"] = "JOB_STATE_CANCELLED"
        elif "CANCELLED" in second["state"] and "CANCEL" in first["state"]:
            first["state"] = "JOB_STATE_CANCELLED"

    vertex.on_request = on_request
    assert command("cancel", name, *_PLACE) == 0
    assert first["state"] == second["state"] == "JOB_STATE_CANCELLED"


def test_ctrl_c_while_cancelling_says_that_the_job_has_not_ended(
    vertex: FakeVertex, command: _Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = command.submit()["name"]
    monkeypatch.setattr(time, "sleep", _interrupt)
    assert command("cancel", name, *_PLACE) == 130
    assert "has not ended yet" in command.err


def _interrupt(secs: float) -> None:
    raise KeyboardInterrupt


def _text(command: _Command) -> list[str]:
    return [line.split(" ", 1)[1] for line in command.out.splitlines()]


def test_logs_are_those_so_far(vertex: FakeVertex, command: _Command) -> None:
    name = command.submit()["name"]
    for second in range(5):
        vertex.log(f"2030-01-01T00:02:0{second}Z", f"line {second}\n")
    vertex.log(
        "2030-01-01T00:02:05.5Z",
        "",
        jsonPayload={"message": "of worker 1"},
        resource={"labels": {"task_name": "workerpool1-0"}},
    )
    assert command("logs", name, *_PLACE) == 0
    assert _text(command) == [
        *[f"line {second}" for second in range(5)],
        "[workerpool1-0] of worker 1",
    ]


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1)])
def test_following_loses_no_line_and_says_none_twice(
    vertex: FakeVertex, command: _Command, state: str, code: int
) -> None:
    name = command.submit()["name"]
    looks = 0

    def on_request(request: str) -> None:
        nonlocal looks
        if not request.endswith("entries:list"):
            return
        looks += 1
        if looks == 1:
            vertex.log("2030-01-01T00:02:00.1Z", "first")
            vertex.log("2030-01-01T00:02:00.1Z", "at the same time")
        elif looks == 2:
            vertex.faults += [
                Fault("POST /v2/entries:list", 503),
                Fault("POST /v2/entries:list", 429),
                Fault("POST /v2/entries:list", 0),
                Fault(f"GET {_JOBS}/1000", 0),
            ]
        elif looks == 6:
            vertex.log("2030-01-01T00:01:50Z", "late")
            vertex.log("2030-01-01T00:02:03Z", "last but one")
        elif looks == 8:
            # What it says last comes when it has ended.
            vertex.set_state(state)
        elif looks == 12:
            vertex.log("2030-01-01T00:02:04Z", "last")

    vertex.on_request = on_request
    assert command("logs", name, *_PLACE, "--follow") == code
    assert _text(command) == [
        *("first", "at the same time", "late", "last but one", "last"),
    ]
    assert not vertex.faults
    assert command.err.startswith(f"{name}: {state.lower()}")


def test_ctrl_c_while_following_leaves_the_job_and_says_so(
    vertex: FakeVertex, command: _Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = command.submit()["name"]
    monkeypatch.setattr(time, "sleep", _interrupt)
    assert command("logs", name, *_PLACE, "--follow") == 130
    assert f"detached: {name} goes on" in command.err
    assert f"launch.main cancel {name} --platform=vertex" in command.err
    assert not [r for r in vertex.requests if "cancel" in r]


def test_logs_that_are_refused_name_the_role(
    vertex: FakeVertex, command: _Command
) -> None:
    name = command.submit()["name"]
    vertex.faults.append(Fault("POST /v2/entries:list", 403))
    assert command("logs", name, *_PLACE) == 1
    assert "roles/logging.viewer" in command.err
