"""The life of a job on Kubernetes: the real client library, a fake server."""

import pathlib
import re
import subprocess
import sys
import threading
import time

import pytest
import yaml

from launch import kubernetes, kubernetes_calls, kubernetes_logs, platforms
from launch.job_spec import JobSpec, Place
from launch.platforms import State
from tests import kubernetes_schema
from tests.fake_cluster import FakeCluster
from tests.fake_kubernetes import FakeKubernetes

_PLACE = Place(platform="kubernetes")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with FakeKubernetes() as fake:
        path = tmp_path / "kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [
                        {"name": "c", "cluster": {"server": fake.url}}
                    ],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [
                        {
                            "name": "here",
                            "context": {"cluster": "c", "user": "u"},
                        }
                    ],
                }
            )
        )
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.setattr(
            "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
            str(path),
        )
        monkeypatch.setattr(kubernetes_calls, "_FIRST_WAIT_SECS", 0.01)
        monkeypatch.setattr(kubernetes_calls, "_MAX_WAIT_SECS", 0.02)
        monkeypatch.setattr(kubernetes_calls, "_GIVE_UP_SECS", 5.0)
        monkeypatch.setattr(kubernetes_logs, "_POLL_SECS", 0.01)
        monkeypatch.setattr(platforms, "_LOOK_AGAIN_SECS", (0.0,))
        yield fake


@pytest.fixture
def cluster(server):
    return FakeCluster(server)


def _spec(**fields):
    return JobSpec(
        **{
            "platform": "kubernetes",
            "image": f"gan-trainer@sha256:{'0' * 64}",
            "workdir": "gs://bucket/runs/first",
            **fields,
        }
    )


def _submit(**fields):
    return kubernetes.submit(_spec(**fields)).name


def _status(name):
    return kubernetes.status(_PLACE, name)


def _state(name):
    return _status(name).state


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_job_waits_runs_and_succeeds(cluster, num_workers):
    submitted = kubernetes.submit(_spec(num_workers=num_workers))
    assert submitted.state is State.QUEUED
    name = submitted.name
    assert name == _spec(num_workers=num_workers).job_name
    assert _state(name) is State.QUEUED

    cluster.make_pods(name, why="0/3 nodes have nvidia.com/gpu")
    status = _status(name)
    assert status.state is State.QUEUED
    assert status.detail == "Unschedulable: 0/3 nodes have nvidia.com/gpu"

    cluster.start(name)
    status = _status(name)
    assert status.state is State.RUNNING
    assert status.detail == f"{num_workers} of {num_workers} workers run"
    assert not status.state.is_final

    for _ in range(num_workers):
        cluster.end(name, 0)
    status = _status(name)
    assert status.state is State.SUCCEEDED
    assert (status.exit_code, status.restarts) == (0, 0)
    assert kubernetes.submit(_spec(num_workers=num_workers)) == status


def test_a_job_that_waits_in_a_queue_says_so(cluster):
    name = _submit(queue="gpus")
    cluster.suspend(name)
    status = _status(name)
    assert status.state is State.QUEUED
    assert status.detail == "JobSuspended: Job suspended"


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("exit_code", "disrupted"), [(143, False), (137, True)]
)
def test_a_preempted_job_starts_again_any_number_of_times(
    cluster, num_workers, exit_code, disrupted
):
    name = _submit(num_workers=num_workers, max_restarts=0, spot=True)
    cluster.make_pods(name)
    for restarts in (1, 2, 3):
        cluster.start(name)
        assert _state(name) is State.RUNNING
        cluster.end(name, exit_code, disrupted=disrupted)
        status = _status(name)
        assert status.state is State.PREEMPTED
        assert status.restarts == restarts
    cluster.start(name)
    for _ in range(num_workers):
        cluster.end(name, 0)
    assert _state(name) is State.SUCCEEDED


def test_peers_that_stall_before_a_lost_machine_is_noticed_do_not_count(
    cluster,
):
    name = _submit(num_workers=2, max_restarts=0)
    cluster.make_pods(name)
    for restarts in (1, 3):
        cluster.start(name)
        # The node of worker 0 has vanished: its pod still seems to run.
        cluster.end(name, 142, index=1)
        status = _status(name)
        assert status.state is State.PREEMPTED
        assert status.restarts == restarts
        cluster.start(name)
        cluster.end(name, 137, index=0, disrupted=True)
        assert _status(name).restarts == restarts + 1
    cluster.start(name)
    cluster.end(name, 0)
    cluster.end(name, 0)
    assert _state(name) is State.SUCCEEDED


@pytest.mark.parametrize(
    ("num_workers", "exit_code"),
    [(1, 142), *((n, code) for n in (1, 2) for code in (1, 7, 137))],
)
def test_a_job_that_stalls_or_crashes_starts_again_a_few_times(
    cluster, num_workers, exit_code
):
    name = _submit(num_workers=num_workers, max_restarts=2)
    cluster.make_pods(name)
    for _ in range(2):
        cluster.start(name)
        cluster.end(name, exit_code)
        assert not _state(name).is_final
    cluster.start(name)
    cluster.end(name, exit_code)
    status = _status(name)
    assert status.state is State.FAILED
    assert status.restarts == 2
    assert "BackoffLimitExceeded" in status.detail


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("exit_code", [2, 3, 4, 5, 6])
def test_what_no_restart_helps_fails_at_once_and_says_why(
    cluster, num_workers, exit_code
):
    name = _submit(num_workers=num_workers)
    cluster.make_pods(name)
    cluster.start(name)
    message = "error: the data is not there"
    cluster.end(name, exit_code, index=num_workers - 1, message=message)
    status = _status(name)
    assert status.state is State.FAILED
    assert status.restarts == 0
    assert "PodFailurePolicy" in status.detail
    expected = f"worker {num_workers - 1} has ended with exit code {exit_code}"
    assert f"{expected}: {message}" in status.detail
    assert status.exit_code == exit_code


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_job_that_takes_too_long_does_not_start_again(cluster, num_workers):
    name = _submit(num_workers=num_workers, timeout_secs=60)
    cluster.make_pods(name)
    cluster.start(name)
    cluster.exceed_deadline(name)
    status = _status(name)
    assert status.state is State.FAILED
    assert "DeadlineExceeded" in status.detail


def test_submitting_twice_starts_one_job(server, cluster):
    name = _submit()
    cluster.make_pods(name)
    cluster.start(name)
    again = kubernetes.submit(_spec())
    assert (again.name, again.state) == (name, State.RUNNING)
    assert again.created is False
    assert server.count("POST") == 1


def test_submitting_what_has_failed_starts_another_attempt(cluster):
    name = _submit()
    cluster.make_pods(name)
    cluster.start(name)
    cluster.end(name, 3)
    again = kubernetes.submit(_spec())
    assert (again.name, again.attempt) == (f"{name}-2", 2)
    assert _state(again.name) is State.QUEUED


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("kind", ["lose", "reset", 429, 503])
def test_a_lost_answer_starts_no_second_job(server, num_workers, kind):
    server.fail("POST", "jobs", kind, times=2)
    name = _submit(num_workers=num_workers)
    assert server.count("POST") >= 2
    assert [job.name for job in kubernetes.list_jobs(_PLACE)] == [name]


def test_two_who_submit_at_once_start_one_job(server):
    names = []
    threads = [
        threading.Thread(target=lambda: names.append(_submit()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 4
    assert [job.name for job in kubernetes.list_jobs(_PLACE)] == names[:1]


def test_a_server_that_never_answers_is_given_up(server, monkeypatch):
    monkeypatch.setattr(kubernetes_calls, "_GIVE_UP_SECS", 0.1)
    server.fail("POST", "jobs", "reset", times=1000)
    with pytest.raises(platforms.AnswerLostError, match="does not answer"):
        _submit()


def test_somebody_elses_job_of_the_name_is_left_alone(server):
    theirs = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": _spec().job_name, "labels": {}},
        "spec": {},
    }
    server.create("jobs", "default", theirs, strict=False)
    with pytest.raises(platforms.PlatformError, match="another Job named"):
        _submit()


@pytest.mark.parametrize("kind", [429, 503, "reset"])
def test_reading_goes_on_when_the_server_is_back(server, kind):
    name = _submit()
    for pattern in ("/jobs", "/jobsets", "/pods"):
        server.fail("GET", pattern, kind)
    assert _state(name) is State.QUEUED
    assert len(kubernetes.list_jobs(_PLACE)) == 1


def test_the_list_has_all_pages_and_the_newest_first(server, cluster):
    server.page_size = 2
    names = [_submit(name=f"job-{i}") for i in range(5)]
    names.append(_submit(num_workers=2))
    for i, name in enumerate(names):
        cluster.job(name)["metadata"]["creationTimestamp"] = (
            f"2026-01-01T00:00:0{i}Z"
        )
        cluster.make_pods(name)
    cluster.start(names[1])
    other = {"kind": "Job", "metadata": {"name": "not-ours"}, "spec": {}}
    server.create("jobs", "default", other, strict=False)
    # An old token, once.
    server.fail("GET", "/jobs.*continue=2", 410)
    jobs = kubernetes.list_jobs(_PLACE)
    assert [job.name for job in jobs] == names[::-1]
    assert [job.state for job in jobs if job.name == names[1]] == [
        State.RUNNING
    ]
    assert server.count("GET", "/pods.*continue=") >= 3


def test_a_cluster_without_job_sets_serves_single_workers(server):
    server.has_job_sets = False
    name = _submit()
    assert _state(name) is State.QUEUED
    assert len(kubernetes.list_jobs(_PLACE)) == 1
    with pytest.raises(platforms.PlatformError, match="need JobSet, 0.10"):
        _submit(num_workers=2)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_cancelled_job_lets_its_pods_save_and_is_gone(cluster, num_workers):
    name = _submit(num_workers=num_workers)
    cluster.make_pods(name)
    cluster.start(name)
    kubernetes.cancel(_PLACE, name)
    assert _state(name) is State.CANCELLING
    cluster.finish_deletion(name)
    with pytest.raises(platforms.JobNotFoundError):
        _status(name)
    assert kubernetes.submit(_spec(num_workers=num_workers)).name == name


def test_cancelling_what_has_ended_keeps_its_record(server, cluster):
    name = _submit()
    cluster.make_pods(name)
    cluster.start(name)
    cluster.end(name, 0)
    kubernetes.cancel(_PLACE, name)
    assert _state(name) is State.SUCCEEDED
    assert server.count("DELETE") == 0


@pytest.mark.parametrize("kind", [503, "lose", "reset"])
def test_cancelling_goes_on_when_the_server_is_back(server, cluster, kind):
    name = _submit()
    server.fail("DELETE", "jobs", kind)
    kubernetes.cancel(_PLACE, name)
    assert _state(name) is State.CANCELLING


@pytest.mark.parametrize(
    "verb",
    [
        lambda: kubernetes.status(_PLACE, "nobody"),
        lambda: kubernetes.cancel(_PLACE, "nobody"),
        lambda: list(kubernetes.logs(_PLACE, "nobody", follow=True)),
    ],
)
def test_a_job_that_is_not_there_is_named(server, verb):
    with pytest.raises(platforms.JobNotFoundError, match="no job 'nobody'"):
        verb()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not know you"),
        (403, "You need create, get"),
        (422, "not now"),
    ],
)
def test_what_the_server_refuses_is_said_at_once(server, status, words):
    server.fail("POST", "jobs", status)
    with pytest.raises(platforms.PlatformError, match=re.escape(words)):
        _submit()
    assert server.count("POST") == 1


def test_a_kubeconfig_of_no_use_is_said(server, monkeypatch, tmp_path):
    with pytest.raises(platforms.PlatformError, match="nowhere"):
        kubernetes.submit(_spec(kube_context="nowhere"))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
        str(tmp_path / "none"),
    )
    with pytest.raises(platforms.PlatformError, match="kubectl get jobs"):
        _submit()


def test_the_logs_so_far_are_those_of_all_workers(server, cluster):
    name = _submit(num_workers=2)
    cluster.make_pods(name)
    assert list(kubernetes.logs(_PLACE, name, follow=False)) == []
    cluster.start(name)
    cluster.say(name, "epoch 1")
    cluster.say(name, "epoch 2")
    cluster.say(name, "error: no data", index=1)
    server.fail("GET", "/log", "cut")
    assert list(kubernetes.logs(_PLACE, name, follow=False)) == [
        "epoch 1",
        "epoch 2",
        "[worker 1] error: no data",
    ]


def _wait_for(is_true):
    deadline_secs = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline_secs
        time.sleep(0.005)


@pytest.mark.parametrize("kind", ["cut", "end"])
def test_following_goes_over_lost_connections_and_restarts(
    server, cluster, kind
):
    name = _submit()
    lines = []
    thread = threading.Thread(
        target=lambda: lines.extend(kubernetes.logs(_PLACE, name, follow=True))
    )

    # It breaks off after two lines, and the third has the same time.
    server.fail("GET", "/log", kind)
    thread.start()
    cluster.make_pods(name)
    cluster.start(name)
    for text in ("1", "2", "3"):
        cluster.say(name, text, "2026-01-01T00:00:01Z")
    cluster.say(name, "4", "2026-01-01T00:00:01.5Z")
    cluster.say(name, "5", "2026-01-01T00:00:01.500000001Z")
    _wait_for(lambda: server.count("GET", "/log.*sinceSeconds") >= 1)
    cluster.say(name, "preempted", "2026-01-01T00:00:02Z")
    cluster.end(name, 143)
    cluster.start(name)
    # A second connection, of the next pod.
    cluster.say(name, "6", "2026-01-01T00:01:00Z")
    server.fail("GET", "/log", 503)
    cluster.end(name, 0)
    thread.join(20)
    assert not thread.is_alive()
    assert lines == ["1", "2", "3", "4", "5", "preempted", "6"]


def test_following_ends_when_the_job_is_cancelled(cluster, server):
    name = _submit()
    cluster.make_pods(name)
    cluster.start(name)
    cluster.say(name, "epoch 1")
    following = kubernetes.logs(_PLACE, name, follow=True)
    assert next(following) == "epoch 1"
    kubernetes.cancel(_PLACE, name)
    cluster.finish_deletion(name)
    assert list(following) == []


def test_render_needs_no_client_library():
    code = (
        "import sys; sys.modules['kubernetes'] = None\n"
        "from launch import kubernetes\n"
        "from launch.job_spec import JobSpec\n"
        "spec = JobSpec(platform='kubernetes', image='i', workdir='gs://b/r')\n"
        "print(kubernetes.render(spec))\n"
        "assert 'tensorflow' not in sys.modules\n"
        "try:\n"
        "    kubernetes.submit(spec)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error, file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert yaml.safe_load(result.stdout)["kind"] == "Job"
    assert result.stderr.startswith("UsageError --platform=kubernetes needs")
    assert "pip install 'gan-trainer[kubernetes]'" in result.stderr


def _asked_for(requests):
    """Returns (group, resource, verb) of requests, as a cluster counts them."""
    pattern = (
        r"(\w+) /(?:api|apis/([a-z0-9.-]+))/v\w+/namespaces/[a-z]+/(\w+)"
        r"(/[a-z0-9-]+)?(/log)?(\?.*)?"
    )
    asked = set()
    for request in requests:
        match = re.fullmatch(pattern, request)
        assert match, request
        method, group, resource, name, log, _ = match.groups()
        verb = {"POST": "create", "DELETE": "delete"}.get(
            method, "get" if name else "list"
        )
        asked.add((group or "", resource + (log or ""), verb))
    return asked


def test_the_submitters_role_is_all_that_is_asked_for_and_no_more(
    server, cluster
):
    path = pathlib.Path(kubernetes.__file__).parent.parent
    text = (path / "docs" / "kubernetes-submitter.yaml").read_text()
    role, binding = yaml.safe_load_all(text)
    for manifest in (role, binding):
        assert kubernetes_schema.problem(manifest) == ""
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    for num_workers in (1, 2):
        name = _submit(num_workers=num_workers)
        cluster.make_pods(name)
        cluster.start(name)
        cluster.say(name, "hello")
        list(kubernetes.logs(_PLACE, name, follow=False))
        kubernetes.status(_PLACE, name)
        kubernetes.list_jobs(_PLACE)
        kubernetes.cancel(_PLACE, name)
    name = _submit(workdir="gs://bucket/runs/other")
    cluster.make_pods(name)
    cluster.start(name)
    cluster.say(name, "epoch 1")
    following = kubernetes.logs(_PLACE, name, follow=True)
    assert next(following) == "epoch 1"
    cluster.end(name, 0)
    assert list(following) == []
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert _asked_for(server.requests) == allowed
