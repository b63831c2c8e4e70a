"""The lease: of two writers, one at a time, whatever the network does."""

import json
import time

import pytest

from trainer import errors
from trainer.storage import lease_object
from trainer.storage.bucket import Bucket
from trainer.storage.cloud_requests import Patience
from trainer.storage.lease import Lease

NAME = "bucket"
OBJECT = "runs/a/lease.json"
LIMIT_SECS = 30.0
PATIENCE = Patience(request_secs=20, retry_secs=60, first_delay_secs=0.01)
IMPATIENT = Patience(request_secs=1, retry_secs=0.2, first_delay_secs=0.01)


@pytest.fixture
def make_lease(fake):
    leases = []

    def make_lease(attempt, *, duration_secs=60.0, patience=PATIENCE):
        lease = Lease(
            Bucket(NAME, prefix="runs/a", patience=patience),
            attempt=attempt,
            holder=f"host-{attempt}, process 1",
            duration_secs=duration_secs,
        )
        leases.append(lease)
        return lease

    yield make_lease
    fake.clear()
    for lease in leases:
        lease.release(LIMIT_SECS)


def wait_until(condition):
    deadline = time.monotonic() + LIMIT_SECS
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def put(fake, attempt, *, age_secs=0.0, duration_secs=60.0):
    """Stores the lease of another process."""
    claim = lease_object.Claim(
        holder="host-b, process 2",
        attempt=attempt,
        duration_secs=duration_secs,
    )
    return fake.objects.put(NAME, OBJECT, claim.to_bytes(), age_secs=age_secs)


def test_it_is_taken_and_given_back(fake, make_lease):
    lease = make_lease("a1")
    assert not lease.held
    lease.acquire()
    assert lease.held
    assert json.loads(fake.objects.get(NAME, OBJECT).data) == {
        "holder": "host-a1, process 1",
        "attempt": "a1",
        "duration_secs": 60.0,
    }
    lease.release(LIMIT_SECS)
    assert not lease.held
    assert lease.lost is None
    assert fake.objects.names(NAME) == []
    make_lease("a2").acquire()


def test_a_live_lease_of_another_is_respected(fake, make_lease):
    make_lease("a1").acquire()
    with pytest.raises(errors.StorageError) as caught:
        make_lease("a2").acquire()
    message = str(caught.value)
    assert "gs://bucket/runs/a" in message
    assert "host-a1, process 1 (attempt a1)" in message
    assert "expires in 60 s" in message or "expires in 5" in message
    assert "End that process" in message
    assert json.loads(fake.objects.get(NAME, OBJECT).data)["attempt"] == "a1"
    assert fake.objects.names(NAME) == [OBJECT], "the clock's object is gone"


@pytest.mark.parametrize(("age_secs", "taken"), [(50, False), (70, True)])
def test_only_an_expired_lease_is_taken_over(fake, make_lease, age_secs, taken):
    put(fake, "b1", age_secs=age_secs)
    lease = make_lease("a1", duration_secs=1.0)
    if not taken:
        with pytest.raises(errors.StorageError, match="expires in (10|9|8) s"):
            lease.acquire()
        assert not lease.held
        return
    lease.acquire()
    assert lease.lost is None
    assert json.loads(fake.objects.get(NAME, OBJECT).data)["attempt"] == "a1"


def test_the_clock_of_this_machine_does_not_matter(
    fake, make_lease, monkeypatch
):
    put(fake, "b1", age_secs=30)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10_000)
    with pytest.raises(errors.StorageError, match="host-b, process 2"):
        make_lease("a1").acquire()


def test_a_lease_renewed_during_the_take_over_stays(
    fake, make_lease, monkeypatch
):
    put(fake, "b1", age_secs=70)
    age_secs = lease_object.age_secs

    def renew_too(*args, **options):
        result = age_secs(*args, **options)
        put(fake, "b1")
        return result

    monkeypatch.setattr(lease_object, "age_secs", renew_too)
    with pytest.raises(errors.StorageError, match="host-b, process 2"):
        make_lease("a1").acquire()
    assert json.loads(fake.objects.get(NAME, OBJECT).data)["attempt"] == "b1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"x" * 10_000,
        b'{"holder": "x", "attempt": "y", "duration_secs": 1e9}',
        b'{"holder": "\\u001b[2J", "attempt": "y", "duration_secs": 600}',
    ],
)
def test_a_lease_that_makes_no_sense_lasts_a_minute(fake, make_lease, data):
    fake.objects.put(NAME, OBJECT, data, age_secs=50)
    with pytest.raises(errors.StorageError, match="an unknown process"):
        make_lease("a1").acquire()
    fake.objects.put(NAME, OBJECT, data, age_secs=70)
    make_lease("a2").acquire()


def test_it_is_renewed_without_being_asked(fake, make_lease):
    lease = make_lease("a1", duration_secs=0.6)
    lease.acquire()
    first = fake.objects.get(NAME, OBJECT).generation
    end = time.monotonic() + 0.7
    wait_until(lambda: time.monotonic() > end and lease.held)
    assert fake.objects.get(NAME, OBJECT).generation > first
    # A third of the duration, however fast the machine is.
    assert (
        fake.count("POST", OBJECT) <= 2 + (time.monotonic() - end + 0.7) / 0.2
    )


def test_a_lease_taken_by_another_is_noticed(fake, make_lease):
    lease = make_lease("a1", duration_secs=0.6)
    lease.acquire()
    theirs = put(fake, "b1")
    wait_until(lambda: lease.lost)
    assert not lease.held
    assert "host-b, process 2 (attempt b1)" in lease.lost
    assert "gs://bucket/runs/a" in lease.lost
    lease.release(LIMIT_SECS)
    assert fake.objects.get(NAME, OBJECT) == theirs, "not ours to delete"


def test_a_lease_that_somebody_removed_is_lost(fake, make_lease):
    lease = make_lease("a1", duration_secs=0.6)
    lease.acquire()
    fake.objects.drop(NAME, OBJECT)
    wait_until(lambda: lease.lost)
    assert "an unknown process" in lease.lost


def test_a_short_failure_of_the_network_does_not_show(fake, make_lease):
    lease = make_lease("a1", duration_secs=3.0, patience=IMPATIENT)
    lease.acquire()
    first = fake.objects.get(NAME, OBJECT).generation
    fault = fake.fail("POST", OBJECT, "status", 403, times=2)
    wait_until(lambda: fake.objects.get(NAME, OBJECT).generation > first)
    assert fault.times == 0
    assert lease.lost is None


def test_it_is_not_held_while_the_network_is_down_and_held_again(
    fake, make_lease
):
    lease = make_lease("a1", duration_secs=0.6, patience=IMPATIENT)
    lease.acquire()
    fake.fail("ANY", "", "reset", times=10**6)
    wait_until(lambda: not lease.held)
    assert lease.lost is None
    fake.clear()
    wait_until(lambda: lease.held)
    assert lease.lost is None


def test_a_lost_answer_to_a_renewal_is_found_out(fake, make_lease):
    lease = make_lease("a1", duration_secs=0.6)
    lease.acquire()
    fault = fake.fail("POST", OBJECT, "lose_response", times=2)
    wait_until(lambda: fault.times == 0)
    generation = fake.objects.get(NAME, OBJECT).generation
    wait_until(lambda: fake.objects.get(NAME, OBJECT).generation > generation)
    wait_until(lambda: lease.held)
    assert lease.lost is None


def test_what_an_earlier_renewal_wrote_counts_as_old(fake):
    bucket = Bucket(NAME, prefix="runs/a", patience=PATIENCE)
    first = lease_object.write(bucket, b"ours", generation=0)
    unheard = fake.objects.put(NAME, OBJECT, b"ours", age_secs=50)
    second = lease_object.write(bucket, b"ours", generation=first.generation)
    assert second.generation > unheard.generation


def test_to_give_it_back_takes_no_longer_than_allowed(fake, make_lease):
    lease = make_lease("a1")
    lease.acquire()
    fake.fail("DELETE", OBJECT, "stall", 5)
    start = time.monotonic()
    lease.release(0.3)
    assert time.monotonic() - start < 4
    assert not lease.held


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_bucket_that_refuses_is_the_users_to_mend(fake, make_lease, status):
    fake.fail("ANY", "", "status", status, times=10**6)
    with pytest.raises(errors.StorageError, match="gs://bucket/runs/a"):
        make_lease("a1").acquire()


def test_the_lease_of_one_that_died_is_waited_for(fake, make_lease):
    dead = lease_object.Claim(holder="host-b", attempt="b1", duration_secs=2.0)
    fake.objects.put(NAME, OBJECT, dead.to_bytes())
    lease = make_lease("a1")
    start_secs = time.monotonic()
    lease.acquire(wait_secs=20.0)
    assert lease.held
    assert time.monotonic() - start_secs >= 2.0


def test_the_lease_of_a_live_one_is_not_waited_for(fake, make_lease):
    live = make_lease("b1", duration_secs=6.0)
    live.acquire()
    start_secs = time.monotonic()
    with pytest.raises(errors.StorageError, match="host-b1"):
        make_lease("a1").acquire(wait_secs=20.0)
    # It was renewed after a third of its duration.
    assert time.monotonic() - start_secs < 6.0
    assert live.held


def test_whoever_waits_for_it_can_be_stopped(fake, make_lease):
    put(fake, "dead", duration_secs=20.0)
    lease = make_lease("a1")
    start = time.monotonic()

    def check_stop():
        raise errors.StoppedError(143)

    with pytest.raises(errors.StoppedError):
        lease.acquire(wait_secs=60, check_stop=check_stop)
    assert time.monotonic() - start < 10
    assert not lease.held


def test_a_start_waits_for_the_network_until_it_is_stopped(fake, make_lease):
    fake.fail("ANY", "lease", "status", 503, times=10_000)
    lease = make_lease("a1", patience=IMPATIENT)
    # More than its patience of 0.2 s while it renews.
    deadline = time.monotonic() + 1.5

    def check_stop():
        if time.monotonic() > deadline:
            raise errors.StoppedError(143)

    with pytest.raises(errors.StoppedError):
        lease.acquire(check_stop=check_stop)
    fake.clear()
    lease.acquire()
    assert lease.held
