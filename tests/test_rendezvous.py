"""Workers that meet: threads of this process, over real sockets."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time

import pytest

from trainer import errors, meeting, rendezvous
from trainer.cluster import Cluster

# Long enough for any machine; only what fails takes so long.
_PATIENCE_SECS = 60.0


@pytest.fixture
def addresses():
    """Addresses of four workers, at ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("", 0))) for _ in range(4)
        ]
        ports = [s.getsockname()[1] for s in sockets]
    return tuple(f"127.0.0.1:{port}" for port in ports)


@pytest.fixture
def start():
    """Starts a worker and returns the future of its outcome."""
    end = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor()

    def start(
        addresses,
        index,
        *,
        facts=None,
        timeout_secs=_PATIENCE_SECS,
        should_stop=None,
        say=print,
    ):
        return pool.submit(
            rendezvous.meet,
            Cluster(addresses, index),
            facts=facts or {},
            timeout_secs=timeout_secs,
            should_stop=should_stop or end.is_set,
            say=say,
        )

    yield start
    end.set()
    pool.shutdown()


@pytest.fixture
def connect(addresses):
    """Connects to the chief as a stranger would, once it listens."""
    with contextlib.ExitStack() as stack:

        def connect(data=b""):
            host, port = addresses[0].split(":")
            deadline = time.monotonic() + _PATIENCE_SECS
            while True:
                try:
                    connection = socket.create_connection((host, int(port)))
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            stack.enter_context(connection)
            connection.settimeout(_PATIENCE_SECS)
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            return connection

        yield connect


def _hello(index, **facts):
    message = {"index": index, "facts": facts}
    return json.dumps(message).encode() + b"\n"


def _verdict(connection):
    with connection.makefile() as lines:
        return json.loads(lines.readline())


def _is_closed_by_the_other_side(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def _error(future):
    return future.exception(timeout=_PATIENCE_SECS)


def _result(future):
    return future.result(timeout=_PATIENCE_SECS)


@pytest.mark.parametrize("num_workers", [2, 4])
def test_all_workers_meet(addresses, start, num_workers):
    addresses = addresses[:num_workers]
    facts = {"batch_size": "64"}
    futures = [start(addresses, i, facts=facts) for i in range(num_workers)]
    assert [_result(future) for future in futures] == [True] * num_workers


def test_a_single_worker_has_nobody_to_wait_for(addresses, start):
    assert _result(start(addresses[:1], 0, timeout_secs=0)) is True


def test_workers_meet_over_ipv6(addresses, start):
    port = addresses[0].split(":")[1]
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    addresses = (f"[::1]:{port}", addresses[1])
    futures = [start(addresses, i) for i in range(2)]
    assert [_result(future) for future in futures] == [True, True]


@pytest.mark.parametrize("late", [0, 1, 2])
def test_nobody_goes_ahead_before_the_last_has_come(addresses, start, late):
    early = [start(addresses[:3], i) for i in range(3) if i != late]
    done, _ = concurrent.futures.wait(early, timeout=0.5)
    assert not done
    futures = [*early, start(addresses[:3], late)]
    assert [_result(future) for future in futures] == [True] * 3


def test_facts_that_differ_end_every_worker(addresses, start):
    facts = [
        {"batch_size": "64", "tensorflow": "2.21.0"},
        {"batch_size": "64", "tensorflow": "2.21.0"},
        {"batch_size": "32", "tensorflow": "2.21.0", "extra": "yes"},
    ]
    futures = [start(addresses[:3], i, facts=facts[i]) for i in range(3)]
    for future in futures:
        error = _error(future)
        assert isinstance(error, errors.UsageError)
        where = f"worker 2 ({addresses[2]})"
        assert f"{where}: batch_size is '32', but '64' at the" in str(error)
        assert f"{where}: extra is 'yes', but absent at the" in str(error)
        assert "same command" in str(error)
        assert "tensorflow" not in str(error)
        assert "worker 1" not in str(error)


def test_many_and_long_differences_are_cut_short(addresses, start):
    futures = [
        start(
            addresses[:2],
            i,
            facts={f"flag{n}": f"{i}" * 999 for n in "abcdefgh"},
        )
        for i in range(2)
    ]
    for future in futures:
        message = str(_error(future))
        assert "flage is" in message
        assert "flagf" not in message
        assert "and 3 more" in message
        assert len(message) < 2000


def test_clusters_of_different_sizes_are_a_difference(
    addresses, start, connect
):
    # The chief waits for a third worker that the others know nothing of.
    chief = start(addresses[:3], 0, timeout_secs=1)
    connect()
    worker = start(addresses[:2], 1)
    for future in (chief, worker):
        assert isinstance(_error(future), errors.UsageError)
        assert "the number of workers is '2', but '3'" in str(_error(future))


def test_a_missing_worker_stalls_those_who_are_there(addresses, start, connect):
    began = time.monotonic()
    chief = start(addresses[:4], 0, timeout_secs=1)
    connect()
    worker = start(addresses[:4], 2)
    for future in (chief, worker):
        error = _error(future)
        assert isinstance(error, errors.StalledError)
        assert "After 1 s" in str(error)
        assert f"worker 1 ({addresses[1]})" in str(error)
        assert f"worker 3 ({addresses[3]})" in str(error)
        assert "worker 2" not in str(error)
        assert "firewall" in str(error)
    assert 1 <= time.monotonic() - began < _PATIENCE_SECS / 2


def test_a_missing_chief_stalls_the_others(addresses, start):
    error = _error(start(addresses[:2], 1, timeout_secs=0.5))
    assert isinstance(error, errors.StalledError)
    assert f"worker 0 ({addresses[0]}) did not answer" in str(error)
    assert "After 0.5 s" in str(error)


def test_a_worker_that_gives_up_says_that_the_chief_was_there(
    addresses, start, connect
):
    start(addresses[:3], 0)
    connect()
    error = _error(start(addresses[:3], 1, timeout_secs=1))
    assert isinstance(error, errors.StalledError)
    assert f"worker 0 ({addresses[0]}) answered, but" in str(error)


def test_a_long_wait_is_announced_and_repeated(addresses, start, monkeypatch):
    monkeypatch.setattr(rendezvous, "_SECS_BETWEEN_LINES", 0.5)
    lines = []
    chief = start(addresses[:3], 0, timeout_secs=3.5, say=lines.append)
    assert isinstance(_error(chief), errors.StalledError)
    missing = f"worker 1 ({addresses[1]}), worker 2 ({addresses[2]})"
    assert set(lines) == {f"Waiting for {missing}..."}
    # After 2 s, 2.5 s, 3 s and 3.5 s, or fewer where the machine is busy.
    assert 2 <= len(lines) <= 4


def test_a_short_wait_is_silent(addresses, start):
    lines = []
    for index in range(2):
        _error(start(addresses, index, timeout_secs=0.5, say=lines.append))
    assert not lines


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_wait_can_be_stopped(addresses, start, index):
    stop = threading.Event()
    if index == 2:
        start(addresses[:4], 0)
    future = start(addresses[:4], index, should_stop=stop.is_set)
    assert not concurrent.futures.wait([future], timeout=0.5).done
    stop.set()
    assert future.result(timeout=_PATIENCE_SECS / 4) is False


def test_a_slow_name_server_does_not_delay_a_stop(
    addresses, start, monkeypatch
):
    answered = threading.Event()
    asked = threading.Event()

    def look_up(*args, **kwargs):
        asked.set()
        answered.wait(_PATIENCE_SECS)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        future = start(addresses[:2], 1, should_stop=asked.is_set)
        assert future.result(timeout=_PATIENCE_SECS / 4) is False
    finally:
        answered.set()


@pytest.mark.filterwarnings(
    "error::pytest.PytestUnhandledThreadExceptionWarning"
)
@pytest.mark.parametrize(
    "error", [socket.gaierror("unknown"), UnicodeError("label too long")]
)
def test_a_name_that_is_not_known_yet_is_asked_for_again(
    addresses, start, monkeypatch, error
):
    monkeypatch.setattr(rendezvous, "_RETRY_SECS", 0.05)
    look_up = socket.getaddrinfo
    failures = [error, error]

    def look_up_late(*args, **kwargs):
        if failures:
            raise failures.pop()
        return look_up(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_late)
    futures = [start(addresses[:2], i) for i in range(2)]
    assert [_result(future) for future in futures] == [True, True]
    assert not failures


def test_strangers_are_dropped_and_block_nobody(addresses, start, connect):
    chief = start(addresses[:3], 0)
    other = start(addresses[:3], 2)
    half_open = [connect(), connect(b'{"index": 1')]
    strangers = [
        connect(data)
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff\xfe\n",
            b"\n",
            b"null\n",
            b"[1]\n",
            b"{}\n",
            b"[" * 60_000 + b"\n",
            b'{"index": 0, "facts": {}}\n',
            b'{"index": "1", "facts": {}}\n',
            b'{"index": 1, "facts": []}\n',
            b"x" * 200_000,
        )
    ]
    connect().close()
    for stranger in strangers:
        assert _is_closed_by_the_other_side(stranger)
    assert not chief.done()
    futures = [chief, start(addresses[:3], 1), other]
    assert [_result(future) for future in futures] == [True] * 3
    for stranger in half_open:
        assert _is_closed_by_the_other_side(stranger)


def test_a_silent_stranger_is_dropped_in_time(
    addresses, start, connect, monkeypatch
):
    monkeypatch.setattr(meeting, "_HELLO_SECS", 0.2)
    chief = start(addresses[:2], 0)
    assert _is_closed_by_the_other_side(connect(b'{"index"'))
    assert not chief.done()


def test_a_hello_may_come_in_pieces(addresses, start, connect):
    facts = {"flags": "x" * 60_000}
    chief = start(addresses[:2], 0, facts=facts)
    numbers = {"the number of workers": "2"}
    hello = _hello(1, **numbers, **facts)
    connection = connect(hello[:30_000])
    time.sleep(0.3)
    connection.sendall(hello[30_000:])
    assert _verdict(connection)["error"] is None
    connection.close()
    assert _result(chief) is True


def test_the_last_hello_of_an_index_counts(addresses, start, connect):
    chief = start(addresses[:3], 0)
    former = connect(_hello(1, learning_rate="old"))
    time.sleep(0.3)  # Time to be heard; without it, all still meet.
    again = start(addresses[:3], 1)
    assert _is_closed_by_the_other_side(former)
    futures = [chief, again, start(addresses[:3], 2)]
    assert [_result(future) for future in futures] == [True] * 3


def test_a_worker_that_has_left_again_is_missing(addresses, start, connect):
    chief = start(addresses[:3], 0, timeout_secs=2)
    connect(_hello(1)).close()
    time.sleep(0.3)  # Time to be heard before all are there.
    other = start(addresses[:3], 2)
    for future in (chief, other):
        assert isinstance(_error(future), errors.StalledError)
        assert f"worker 1 ({addresses[1]})" in str(_error(future))


@pytest.mark.parametrize("answer", [b"", b"\n", b"not JSON\n", b'{"a": 1}\n'])
def test_a_worker_tries_again_until_it_hears_a_verdict(
    addresses, start, monkeypatch, answer
):
    monkeypatch.setattr(rendezvous, "_RETRY_SECS", 0.05)
    port = int(addresses[0].split(":")[1])
    with socket.create_server(("", port)) as chief:
        chief.settimeout(_PATIENCE_SECS)
        worker = start(addresses[:2], 1)
        for line in (answer, answer, b'{"error": null}\n'):
            connection, _ = chief.accept()
            with connection:
                assert connection.recv(4096)
                connection.sendall(line)
    assert _result(worker) is True


def test_a_port_in_use_is_an_error_with_a_remedy(addresses, start):
    port = int(addresses[0].split(":")[1])
    with socket.create_server(("", port)):
        error = _error(start(addresses[:2], 0))
    assert isinstance(error, errors.UsageError)
    assert addresses[0] in str(error)
    assert "in use" in str(error)
    assert "TF_CONFIG" in str(error)


def test_the_port_is_free_once_a_worker_knows_the_verdict(
    addresses, start, connect
):
    chief = start(addresses[:2], 0)
    worker = connect(_hello(1, **{"the number of workers": "2"}))
    assert _verdict(worker)["error"] is None
    port = int(addresses[0].split(":")[1])
    socket.create_server(("", port)).close()
    worker.close()
    assert _result(chief) is True


def test_nothing_keeps_the_port_after_the_meeting(addresses, start, connect):
    chief = start(addresses[:2], 0)
    strangers = [connect(), connect(b"junk\n")]
    worker = start(addresses[:2], 1)
    assert _result(chief) is True
    for connection in strangers:
        connection.close()
    port = int(addresses[0].split(":")[1])
    with socket.socket() as listener:
        # Without SO_REUSEADDR, a connection in TIME_WAIT would be in the way.
        listener.bind(("", port))
        listener.listen()
    assert _result(worker) is True


def test_a_worker_that_does_not_leave_holds_nobody_up(
    addresses, start, connect
):
    chief = start(addresses[:2], 0)
    connect(_hello(1, **{"the number of workers": "2"}))
    assert chief.result(timeout=_PATIENCE_SECS / 2) is True


def test_a_port_in_use_is_an_error_on_all(addresses, start):
    with socket.create_server(("", int(addresses[1].rpartition(":")[2]))):
        meetings = [start(addresses[:2], index) for index in range(2)]
        for meeting in meetings:
            with pytest.raises(errors.UsageError) as caught:
                meeting.result(_PATIENCE_SECS)
            for text in ("worker 1", addresses[1], "port is in use"):
                assert text in str(caught.value)
