"""A run directory and its mirror in a bucket, over a network that fails."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer import errors
from trainer.storage import (
    files,
    finder,
    lease_object,
    manifest,
    mirror_files,
)
from trainer.storage.bucket import Bucket
from trainer.storage.cloud_requests import Patience
from trainer.storage.lease import Lease
from trainer.storage.local import LocalStore
from trainer.storage.mirror import Mirror
from trainer.storage.remote import RemoteStore

NAME = "bucket"
PREFIX = "runs/a/"
PLACE = "gs://bucket/runs/a"
LIMIT_SECS = 30.0
PATIENCE = Patience(request_secs=20, retry_secs=60, first_delay_secs=0.01)
# Gives up within the test.
IMPATIENT = Patience(request_secs=1, retry_secs=0.05, first_delay_secs=0.01)
LEASE_PATIENCE = Patience(request_secs=10, retry_secs=20, first_delay_secs=0.01)


class Machine:
    """A machine with a disk of its own that runs the run."""

    def __init__(
        self,
        root,
        attempt,
        *,
        secs=0.05,
        keep=3,
        keep_every=None,
        patience=PATIENCE,
        duration_secs=60.0,
    ):
        self.root, self.attempt = root, attempt
        self.local = LocalStore(root / "checkpoints")
        self.lease = Lease(
            Bucket(NAME, prefix=PREFIX, patience=LEASE_PATIENCE),
            attempt=attempt,
            holder=f"host-{attempt}",
            duration_secs=duration_secs,
        )
        self.mirror = Mirror(
            root,
            self.local,
            Bucket(NAME, prefix=PREFIX, patience=patience),
            lease=self.lease,
            config_digest="c0ffee",
            attempt=attempt,
            keep_checkpoints=keep,
            keep_every_steps=keep_every,
            seconds_between_file_uploads=secs,
        )

    def start(self):
        self.lease.acquire()
        return self.mirror.download(check_config=lambda: None)

    def write(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def save(
        self, step, *, tell=True, digest="c0ffee", content=None, best=None
    ):
        name = manifest.checkpoint_name(step)
        staging = self.local.stage(name, attempt=self.attempt)
        (staging / "state.index").write_bytes(b"index")
        content = content or b"weights of %d" % step
        (staging / "state.data").write_bytes(content)
        (staging / "host_state.json").write_text(
            json.dumps(
                {"step": step}
                | ({"best_evaluation": {"step": best}} if best else {})
            )
        )
        record = files.describe(
            staging, step=step, attempt=self.attempt, config_digest=digest
        )
        self.local.commit(staging, record)
        if tell:
            self.mirror.checkpoint_saved(name)

    def end(self, deadline_secs=LIMIT_SECS):
        self.mirror.close(deadline_secs)
        self.lease.release(LIMIT_SECS)
        return self.mirror.durability()


@pytest.fixture
def make_machine(fake, tmp_path):
    machines = []

    def make_machine(attempt, *, root=None, **options):
        root = root or tmp_path / attempt
        machines.append(Machine(root, attempt, **options))
        return machines[-1]

    yield make_machine
    fake.clear()
    for machine in machines:
        machine.end()


def wait_until(condition):
    deadline = time.monotonic() + LIMIT_SECS
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def stored(fake, name):
    return fake.objects.get(NAME, PREFIX + name).data


def steps_in_bucket(tmp_path):
    """Lists the good ones as a stranger finds them; there must be no other."""
    store = RemoteStore(
        Bucket(NAME, prefix=PREFIX, patience=PATIENCE),
        cache=tmp_path / "stranger",
    )
    names = store.list_names()
    return sorted(
        finder.verify(store, name, config_digest="c0ffee").step
        for name in names
    )


def is_in_bucket(fake, step):
    path = f"{PREFIX}checkpoints/step-{step:09d}/MANIFEST.json"
    return path in fake.objects.names(NAME)


def run_once(machine, *steps):
    """A whole run that ends well."""
    machine.start()
    machine.write("config.json", b'{"seed": 1}')
    machine.write("environment.json", b"{}")
    machine.write("samples/epoch_0001.png", b"picture")
    machine.write("events/events.out.tfevents.1.host", b"events")
    for step in steps:
        machine.write("metrics.jsonl", b'{"step": %d}\n' % step)
        machine.save(step)
    return machine.end()


def test_a_run_that_ends_is_in_the_bucket_as_a_whole(
    fake, make_machine, tmp_path
):
    machine = make_machine("a1")
    assert run_once(machine, 300, 350) == (
        f"{PLACE} holds everything up to step 350."
    )
    assert steps_in_bucket(tmp_path)[-1] == 350
    for step in (300, 350):
        name = manifest.checkpoint_name(step)
        finder.verify(machine.local, name, config_digest="c0ffee")
    for name in (
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "samples/epoch_0001.png",
        "events/events.out.tfevents.1.host",
    ):
        assert stored(fake, name) == (machine.root / name).read_bytes()
    assert os.listdir(machine.root / ".mirror") == []
    assert machine.mirror.num_failed == 0
    assert not [n for n in fake.objects.names(NAME) if "lease" in n]


def test_nothing_anywhere_is_fine(fake, make_machine):
    machine = make_machine("a1")
    assert machine.start() is None
    assert os.listdir(machine.root) == []
    assert machine.end() == (
        f"{PLACE} holds everything; there is no checkpoint yet."
    )
    assert fake.objects.names(NAME) == []


def test_a_new_machine_gets_the_newest_good_checkpoint(fake, make_machine):
    first = make_machine("a1")
    run_once(first, 300)
    second = make_machine("a2")
    second.start()
    second.save(350)
    second.save(400)
    second.end()
    base = f"{PREFIX}checkpoints/step-000000400"
    fake.objects.put(NAME, f"{base}/a2/state.data", b"damaged")
    third = make_machine("a3")
    said = third.start()
    newest = finder.find_newest(third.local, config_digest="c0ffee")
    expected = 350 if is_in_bucket(fake, 350) else 300
    assert newest.step == expected
    assert newest.host_state == {"step": expected}
    assert (newest.directory / "state.data").read_bytes() == (
        b"weights of %d" % expected
    )
    assert f"{newest.name} came from {PLACE}" in said
    for name in ("config.json", "metrics.jsonl", "samples/epoch_0001.png"):
        assert (third.root / name).read_bytes() == stored(fake, name)
    assert not (third.root / "events").exists()
    assert not (third.root / ".mirror").exists(), "a disk filled twice"
    assert third.end() == f"{PLACE} holds everything up to step {expected}."


def test_what_is_in_the_bucket_is_not_uploaded_again(fake, make_machine):
    machine = make_machine("a1")
    run_once(machine, 300)
    fake.clear()
    for attempt, root in (("a2", machine.root), ("a3", None)):
        machine = make_machine(attempt, root=root)
        machine.start()
        assert machine.end() == f"{PLACE} holds everything up to step 300."
    assert fake.count("POST", "lease") == 2
    # And what is written as a trial.
    others = fake.count("POST", "upload") - fake.count("POST", "scratch")
    assert others == 2


def test_the_config_alone_comes_too(fake, make_machine):
    fake.objects.put(NAME, PREFIX + "config.json", b"{}")
    machine = make_machine("a1")
    assert "Files that came from gs://bucket/runs/a: 1." == machine.start()
    assert (machine.root / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("config.json", (1 << 20) + 1),
        ("samples/.hidden", 1),
        ("samples/a/b.png", 1),
        ("samples/../../evil", 1),
        ("notes.txt", 1),
    ],
)
def test_what_is_not_ours_stays_in_the_bucket(fake, make_machine, name, size):
    fake.objects.put(NAME, PREFIX + name, b"x" * size)
    machine = make_machine("a1")
    machine.start()
    assert os.listdir(machine.root) == []
    assert not (machine.root.parent / "evil").exists()


def test_the_newer_local_state_stays_and_is_uploaded(
    fake, make_machine, tmp_path
):
    machine = make_machine("a1")
    run_once(machine, 300)
    # The upload was cut off.
    machine.save(350, tell=False)
    machine.write("metrics.jsonl", b"newer\n")
    machine.write("config.json", b"mine")
    again = make_machine("a2", root=machine.root)
    said = again.start()
    assert f"step-000000350 in {machine.root} is newer" in said
    assert again.end() == f"{PLACE} holds everything up to step 350."
    assert steps_in_bucket(tmp_path)[-1] == 350
    assert (machine.root / "metrics.jsonl").read_bytes() == b"newer\n"
    assert stored(fake, "metrics.jsonl") == b"newer\n"
    assert stored(fake, "config.json") == b"mine"


def test_with_a_newer_checkpoint_come_its_metrics(fake, make_machine):
    old = make_machine("a1")
    run_once(old, 300)
    new = make_machine("a2")
    new.start()
    new.write("metrics.jsonl", b"of 400\n")
    new.save(400)
    new.end()
    old.write("config.json", b"mine")
    back = make_machine("a3", root=old.root)
    back.start()
    assert (old.root / "metrics.jsonl").read_bytes() == b"of 400\n"
    assert (old.root / "config.json").read_bytes() == b"mine"
    assert finder.find_newest(back.local, config_digest="c0ffee").step == 400


@pytest.mark.parametrize("cut_off", ["metrics.jsonl", "epoch_0001"])
def test_a_download_that_was_cut_off_is_done_again(fake, make_machine, cut_off):
    old = make_machine("a1")
    old.write("samples/epoch_0001.png", b"old picture")
    run_once(old, 300)
    new = make_machine("a2")
    new.start()
    new.write("metrics.jsonl", b"of 400\n")
    new.write("samples/epoch_0001.png", b"new picture")
    new.save(400)
    assert "everything up to step 400" in new.end()
    fake.fail("GET", cut_off, "status", 403, times=9)
    with pytest.raises(errors.StorageError):
        make_machine("a3", root=old.root).start()
    fake.clear()
    fake.objects.drop(NAME, PREFIX + "lease.json")
    again = make_machine("a4", root=old.root)
    again.start()
    assert (old.root / "metrics.jsonl").read_bytes() == b"of 400\n"
    picture = old.root / "samples/epoch_0001.png"
    assert picture.read_bytes() == b"new picture"
    assert finder.find_newest(again.local, config_digest="c0ffee").step == 400
    assert again.end() == f"{PLACE} holds everything up to step 400."
    assert stored(fake, "samples/epoch_0001.png") == b"new picture"


@pytest.mark.parametrize("fault", ["none", "network down"])
def test_a_start_can_be_stopped_and_done_again(
    fake, make_machine, tmp_path, fault
):
    run_once(make_machine("a1"), 300)
    machine = make_machine("a2")
    asked = []

    def check_stop():
        asked.append(fake.count("GET", "alt=media"))
        if asked[-1] or fault == "network down" and len(asked) > 3:
            raise errors.StoppedError(143)

    if fault == "network down":
        fake.fail("GET", "prefix=", "reset", times=10_000)
    machine.lease.acquire()
    with pytest.raises(errors.StoppedError):
        machine.mirror.download(
            check_config=lambda: None, check_stop=check_stop
        )
    assert finder.find_newest(machine.local, config_digest="c0ffee") is None
    fake.clear()
    machine.lease.release(LIMIT_SECS)
    again = make_machine("a3", root=machine.root)
    again.start()
    assert finder.find_newest(again.local, config_digest="c0ffee").step == 300
    # What ends a start ends nothing later.
    again.save(350)
    assert again.end() == f"{PLACE} holds everything up to step 350."


@pytest.mark.parametrize("attempt", ["a1", "a2"])
def test_the_same_step_of_another_way_is_replaced(
    fake, make_machine, tmp_path, attempt
):
    run_once(make_machine("a1", keep=1), 300)
    ours = make_machine(attempt, root=tmp_path / "ours", keep=1)
    ours.start()
    # As after a rollback that drew anew.
    shutil.rmtree(ours.root / "checkpoints")
    first = len(fake.requests)
    ours.save(300, content=b"another way")
    assert ours.end() == f"{PLACE} holds everything up to step 300."
    # There is a good one at any moment: the manifest is never deleted.
    assert not any(
        request.startswith("DELETE") and "300/MANIFEST" in request
        for request in fake.requests[first:]
    )
    third = make_machine("a3")
    third.start()
    data = third.root / "checkpoints/step-000000300/state.data"
    assert data.read_bytes() == b"another way"
    # And of the other one nothing is left.
    assert len([n for n in fake.objects.names(NAME) if "step-" in n]) == len(
        list(data.parent.iterdir())
    )


def test_what_differs_from_the_command_stops_the_start(fake, make_machine):
    run_once(make_machine("a1"), 300)

    def refuse():
        raise errors.UsageError("seed: 0 -> 1")

    second = make_machine("a2")
    second.lease.acquire()
    with pytest.raises(errors.UsageError, match="seed"):
        second.mirror.download(check_config=refuse)
    assert not (second.root / "checkpoints").exists()


def test_a_bucket_that_permits_no_deletion_is_an_error_at_the_start(
    fake, make_machine
):
    fake.fail("DELETE", "checkpoints", "status", 403, times=99)
    with pytest.raises(errors.StorageError, match="objectUser"):
        make_machine("a1").start()


def test_the_end_tries_again_until_all_is_there(fake, make_machine):
    machine = make_machine("a1")
    machine.start()
    machine.save(300, tell=False)
    machine.write("metrics.jsonl", b"300\n")
    fake.fail("POST", "metrics", "status", 403, times=2)
    machine.mirror.checkpoint_saved("step-000000300")
    assert machine.end() == f"{PLACE} holds everything up to step 300."
    assert machine.mirror.num_failed >= 1


@pytest.mark.parametrize(
    "refused", ["epoch_0001", "environment", "metrics", "events.1"]
)
def test_a_file_that_is_refused_holds_up_nothing_else(
    fake, make_machine, refused
):
    machine = make_machine("a1")
    machine.start()
    fake.fail("POST", refused, "status", 403, times=10_000)
    names = {
        *("environment.json", "metrics.jsonl", "samples/epoch_0001.png"),
        *("samples/epoch_0002.png", "events/events.1"),
    }
    for name in names:
        machine.write(name, b"content")
    machine.save(300)
    start = time.monotonic()
    said = machine.end()
    # It is tried again, but not until the deadline.
    assert time.monotonic() - start < LIMIT_SECS / 2
    assert is_in_bucket(fake, 300)
    [missing] = names - {n[len(PREFIX) :] for n in fake.objects.names(NAME)}
    assert refused in missing
    assert f"the newest state of {missing} is only in" in said
    assert machine.mirror.holds_newest


@pytest.mark.parametrize("is_urgent", [True, False])
def test_the_newest_checkpoint_goes_first_where_time_is_short(
    fake, make_machine, is_urgent
):
    machine = make_machine("a1", secs=60.0)
    machine.start()
    machine.write("metrics.jsonl", b"300\n")
    machine.save(300)
    wait_until(lambda: is_in_bucket(fake, 300))
    # Of a round that is under way only what is being sent is finished.
    fake.latency_secs = 0.05
    machine.mirror._uploader._next_round_secs = 0.0
    for number in range(30):
        machine.write(f"samples/epoch_{number:04d}.png", b"picture")
    wait_until(lambda: fake.count("POST", "epoch_0003"))
    machine.save(350)
    machine.mirror.close(LIMIT_SECS, is_urgent=lambda: is_urgent)
    sent = [request for request in fake.requests if request.startswith("POST")]
    [commit] = [i for i, r in enumerate(sent) if "350/MANIFEST" in r]
    last = max(i for i, r in enumerate(sent) if "epoch_" in r)
    assert (commit < last - 20) == is_urgent
    assert machine.end() == f"{PLACE} holds everything up to step 350."


def test_the_checkpoint_does_not_wait_for_what_it_does_not_need(
    fake, make_machine
):
    machine = make_machine("a1", secs=60.0)
    machine.start()
    machine.write("events/events.1", b"events")
    machine.save(300)
    assert machine.end() == f"{PLACE} holds everything up to step 300."
    sent = [request for request in fake.requests if request.startswith("POST")]
    [commit] = [i for i, r in enumerate(sent) if "300/MANIFEST" in r]
    assert commit < min(i for i, r in enumerate(sent) if "events.1" in r)


def test_a_bad_local_checkpoint_is_replaced_by_the_good_one(fake, make_machine):
    machine = make_machine("a1")
    run_once(machine, 300)
    data = machine.root / "checkpoints/step-000000300/state.data"
    data.write_bytes(b"damaged")
    again = make_machine("a2", root=machine.root)
    again.start()
    assert data.read_bytes() == b"weights of 300"


@pytest.mark.parametrize("place", ["here", "there"])
def test_without_any_good_one_the_run_does_not_begin(fake, make_machine, place):
    machine = make_machine("a1")
    if place == "here":
        machine.save(300, tell=False)
        (machine.root / "checkpoints/step-000000300/state.data").unlink()
    else:
        run_once(machine, 300)
        base = f"{PREFIX}checkpoints/step-000000300"
        fake.objects.drop(NAME, f"{base}/a1/state.data")
        machine = make_machine("a2")
    with pytest.raises(errors.CheckpointError, match="None of the 1"):
        machine.start()


def test_a_bad_one_in_the_bucket_is_replaced(fake, make_machine, tmp_path):
    machine = make_machine("a1")
    run_once(machine, 300)
    base = f"{PREFIX}checkpoints/step-000000300"
    fake.objects.drop(NAME, f"{base}/a1/state.data")
    again = make_machine("a2", root=machine.root)
    again.start()
    assert again.end() == f"{PLACE} holds everything up to step 300."
    assert steps_in_bucket(tmp_path) == [300]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_bucket_that_refuses_is_an_error_at_the_start(
    fake, make_machine, status
):
    machine = make_machine("a1")
    fake.fail("ANY", "", "status", status, times=10**6)
    with pytest.raises(errors.StorageError, match=PLACE):
        machine.mirror.download(check_config=lambda: None)


@pytest.mark.parametrize(
    ("kind", "value"), [("reset", 0), ("status", 503), ("status", 403)]
)
def test_while_the_network_is_down_the_run_goes_on(
    fake, make_machine, tmp_path, kind, value
):
    machine = make_machine("a1", patience=IMPATIENT)
    machine.start()
    machine.save(300)
    wait_until(lambda: "everything up to" in machine.mirror.durability())
    fake.fail("ANY", "checkpoints|metrics", kind, value, times=10**6)
    machine.save(350)
    machine.write("metrics.jsonl", b"350\n")
    wait_until(lambda: machine.mirror.num_failed >= 2)
    assert machine.mirror.durability() == (
        f"{PLACE} holds step 300; step 350 is only in {machine.root}: "
        "the same command uploads it."
    )
    machine.save(400)
    fake.clear()
    wait_until(
        lambda: (
            machine.mirror.durability()
            == f"{PLACE} holds everything up to step 400."
        )
    )
    assert steps_in_bucket(tmp_path)[-1] == 400
    assert stored(fake, "metrics.jsonl") == b"350\n"


def test_a_checkpoint_that_failed_is_sent_again(fake, make_machine, tmp_path):
    machine = make_machine("a1")
    machine.start()
    fault = fake.fail("POST", "state.data", "status", 403, times=2)
    machine.save(300)
    machine.local.delete(manifest.checkpoint_name(300))
    wait_until(lambda: is_in_bucket(fake, 300))
    assert fault.times == 0
    assert machine.end() == f"{PLACE} holds everything up to step 300."
    assert steps_in_bucket(tmp_path) == [300]


def test_a_failure_is_logged_once(fake, make_machine, caplog):
    machine = make_machine("a1")
    machine.start()
    fake.fail("POST", "config", "status", 403, times=10**6)
    machine.write("config.json", b"{}")
    wait_until(lambda: machine.mirror.num_failed >= 3)
    lines = [r for r in caplog.records if "the training goes on" in r.message]
    assert len(lines) == 1
    assert "objectUser" in lines[0].message


def test_a_defect_of_ours_ends_nothing(fake, make_machine, monkeypatch):
    machine = make_machine("a1")
    machine.start()
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "upload_file", lambda *_: 1 / 0)
        machine.save(300)
        wait_until(lambda: machine.mirror.num_failed)
    assert machine.end() == f"{PLACE} holds everything up to step 300."


def test_a_checkpoint_comes_after_the_files_that_it_knows(fake, make_machine):
    machine = make_machine("a1", secs=0.3)
    machine.start()
    for step in range(300, 330):
        machine.write("metrics.jsonl", b'{"step": %d}\n' % step)
        machine.save(step)
        time.sleep(0.02)
        names = fake.objects.names(NAME)
        known = [int(n) for s in names for n in re.findall(r"(\d+)/MANI", s)]
        if known:
            record = json.loads(stored(fake, "metrics.jsonl"))
            assert record["step"] >= max(known)
    assert machine.end() == f"{PLACE} holds everything up to step 329."


def test_nothing_is_written_more_often_than_the_rate(fake, make_machine):
    machine = make_machine("a1", secs=0.5)
    start = time.monotonic()
    machine.start()
    for step in range(300, 360):
        machine.write("metrics.jsonl", b"%d\n" % step)
        machine.write("events/events.1", b"%d" % step)
        machine.save(step)
        time.sleep(0.02)
    machine.end()
    rounds = 1 + (time.monotonic() - start) / 0.5
    for name in ("metrics.jsonl", "events.1"):
        assert 2 <= fake.count("POST", name) <= rounds + 1  # 1 at the end
    num_commits = fake.count("POST", r"checkpoints/step-\d+/MANIFEST")
    assert num_commits <= rounds + 1


def test_a_long_file_is_uploaded_more_seldom(fake, make_machine, monkeypatch):
    monkeypatch.setattr(mirror_files, "_BYTES_PER_UPLOAD", 1)
    machine = make_machine("a1")
    machine.start()
    for content in (b"0", b"1"):
        machine.write("events/events.1", content * 100_000)
        machine.write("metrics.jsonl", content)
        wait_until(lambda c=content: stored_or_none(fake) == c)
        wait_until(lambda: stored_or_none(fake, "events/events.1"))
    assert stored(fake, "events/events.1")[:1] == b"0"
    assert machine.mirror.durability() == (
        f"{PLACE} holds no checkpoint; the newest state of events/events.1 is "
        f"only in {machine.root}: the same command uploads it."
    )
    machine.save(300)
    wait_until(lambda: is_in_bucket(fake, 300))
    wait_until(lambda: stored(fake, "events/events.1")[:1] == b"1")
    machine.write("events/events.1", b"2" * 100_000)
    machine.end()
    assert stored(fake, "events/events.1")[:1] == b"2"


def stored_or_none(fake, name="metrics.jsonl"):
    if PREFIX + name not in fake.objects.names(NAME):
        return None
    return stored(fake, name)


def test_new_pictures_do_not_wait(fake, make_machine):
    machine = make_machine("a1", secs=1000.0)
    machine.start()
    machine.write("config.json", b"{}")
    wait_until(lambda: stored_or_none(fake, "config.json"))
    for epoch in range(2):
        name = f"samples/epoch_{epoch:04d}.png"
        machine.write("samples/.hidden.tmp-1", b"half")
        machine.write(name, b"picture")
        wait_until(lambda n=name: stored_or_none(fake, n))
    machine.write("config.json", b"other")
    machine.end()
    assert stored(fake, "config.json") == b"other"
    assert fake.count("POST", "hidden") == 0


def test_what_waits_survives_its_deletion_and_the_newest_goes(
    fake, make_machine, tmp_path
):
    machine = make_machine("a1", secs=1000.0)
    machine.start()
    machine.write("config.json", b"{}")
    wait_until(lambda: stored_or_none(fake, "config.json"))
    for step in (300, 350):
        machine.save(step)
        machine.local.delete(manifest.checkpoint_name(step))
    assert machine.end() == f"{PLACE} holds everything up to step 350."
    assert steps_in_bucket(tmp_path) == [350]
    assert os.listdir(machine.root / ".mirror") == []


def test_one_checkpoint_is_in_flight_at_most(
    fake, make_machine, tmp_path, monkeypatch
):
    machine = make_machine("a1", keep=9)
    machine.start()
    begun, go_on, active = threading.Event(), threading.Event(), []
    commit = RemoteStore.commit

    def slow_commit(store, staging, record):
        active.append(record.step)
        begun.set()
        go_on.wait(LIMIT_SECS)
        commit(store, staging, record)

    monkeypatch.setattr(RemoteStore, "commit", slow_commit)
    machine.save(300)
    assert begun.wait(LIMIT_SECS)
    for step in (350, 400, 450):
        machine.save(step)
    assert active == [300]
    go_on.set()
    machine.end()
    assert active == [300, 450]
    assert steps_in_bucket(tmp_path) == [300, 450]


def test_what_is_to_be_kept_waits_on_a_slow_network(
    fake, make_machine, tmp_path
):
    machine = make_machine("a1", keep=1, keep_every=350)
    machine.start()
    machine.save(300, best=300)
    wait_until(lambda: "step 300." in machine.mirror.durability())
    fake.latency_secs = 0.1
    sent = fake.count("POST", "step-000000310")
    machine.save(310, best=300)
    wait_until(lambda: fake.count("POST", "step-000000310") > sent)
    for step, best in ((320, 320), (350, 300), (400, 320)):
        machine.save(step, best=best)
    fake.latency_secs = 0.02
    assert machine.end() == f"{PLACE} holds everything up to step 400."
    assert steps_in_bucket(tmp_path) == [320, 350, 400]


@pytest.mark.parametrize("is_urgent", [True, False])
def test_after_a_signal_the_newest_goes_before_those_that_wait(
    fake, make_machine, tmp_path, is_urgent
):
    # None but the first is due before the end.
    machine = make_machine("a1", secs=60.0, keep=1, keep_every=350)
    machine.start()
    machine.save(300)
    wait_until(lambda: is_in_bucket(fake, 300))
    for step in (350, 700, 701):
        machine.save(step)
    machine.mirror.close(LIMIT_SECS, is_urgent=lambda: is_urgent)
    commits = [
        step
        for request in fake.requests
        for step in (350, 700, 701)
        if request.startswith("POST") and f"{step}/MANIFEST" in request
    ]
    assert commits == ([701, 700, 350] if is_urgent else [350, 700, 701])
    assert machine.end() == f"{PLACE} holds everything up to step 701."
    assert steps_in_bucket(tmp_path) == [350, 700, 701]


def test_the_bucket_keeps_as_many_as_the_disk(fake, make_machine, tmp_path):
    machine = make_machine("a1", keep=2)
    machine.start()
    for step in (300, 350, 400):
        machine.save(step)
        wait_until(lambda s=step: f"step {s}." in machine.mirror.durability())
    machine.end()
    assert steps_in_bucket(tmp_path) == [350, 400]


def test_the_bucket_keeps_the_best_too(fake, make_machine, tmp_path):
    machine = make_machine("a1", keep=1)
    machine.start()
    for step in (300, 350, 400):
        machine.save(step, best=300)
        wait_until(lambda s=step: f"step {s}." in machine.mirror.durability())
    machine.end()
    assert steps_in_bucket(tmp_path) == [300, 400]


def test_the_end_waits_no_longer_than_the_deadline(
    fake, make_machine, tmp_path
):
    machine = make_machine("a1")
    machine.start()
    machine.save(300)
    wait_until(lambda: "everything up to" in machine.mirror.durability())
    stalled = fake.fail("POST", "metrics", "stall", 3)
    machine.write("metrics.jsonl", b"350\n")
    machine.save(350)
    wait_until(lambda: stalled.times == 0)
    start = time.monotonic()
    machine.mirror.close(0.2)
    assert time.monotonic() - start < 2
    assert machine.mirror.durability() == (
        f"{PLACE} holds step 300; step 350 is only in {machine.root}: "
        "the same command uploads it."
    )
    machine.mirror._uploader._thread.join(LIMIT_SECS)
    assert not is_in_bucket(fake, 350), "uploaded after the deadline"


@pytest.mark.parametrize("signal_secs", [None, 0.0, 0.3])
def test_after_a_signal_the_end_waits_less(fake, make_machine, signal_secs):
    machine = make_machine("a1")
    machine.start()
    stalled = fake.fail("POST", "metrics", "stall", 3)
    machine.write("metrics.jsonl", b"350\n")
    machine.save(350)
    wait_until(lambda: stalled.times == 0)
    start = time.monotonic()

    def is_urgent():
        if signal_secs is None:
            return False
        return time.monotonic() >= start + signal_secs

    machine.mirror.close(
        LIMIT_SECS, urgent_deadline_secs=0.2, is_urgent=is_urgent
    )
    secs = time.monotonic() - start
    machine.mirror._uploader._thread.join(LIMIT_SECS)
    if signal_secs is None:
        assert is_in_bucket(fake, 350)
    else:
        assert signal_secs + 0.2 <= secs < signal_secs + 2
        assert not is_in_bucket(fake, 350), "uploaded after the deadline"


def test_a_stalled_server_does_not_keep_the_process(fake, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_bytes(b"1\n")
    fake.fail("POST", "metrics", "stall", 60, times=9)
    code = """
        import pathlib, sys
        from tests.test_mirror import Machine
        machine = Machine(pathlib.Path(sys.argv[1]), "a1")
        machine.start()
        machine.mirror.close(0.5)
        print(machine.mirror.durability(), flush=True)
    """
    start = time.monotonic()
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "\n".join(map(str.strip, code.split("\n"))),
            str(tmp_path / "run"),
        ],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert time.monotonic() - start < 50
    assert result.returncode == 0, result.stderr
    assert "newest state of metrics.jsonl is only in" in result.stdout


def test_who_loses_the_lease_stops_uploading(fake, make_machine):
    machine = make_machine("a1", duration_secs=0.6)
    machine.start()
    machine.save(300)
    wait_until(lambda: "everything up to" in machine.mirror.durability())
    theirs = lease_object.Claim(
        holder="host-b", attempt="b1", duration_secs=60.0
    )
    fake.objects.put(NAME, PREFIX + "lease.json", theirs.to_bytes())
    wait_until(lambda: machine.lease.lost)
    machine.save(350)
    machine.write("metrics.jsonl", b"350\n")
    said = machine.end()
    assert not is_in_bucket(fake, 350)
    assert stored_or_none(fake) is None
    assert said == (
        f"{PLACE} now belongs to host-b (attempt b1), which took the lease "
        f"over. It got step 300 of this run; step 350 is in {machine.root}."
    )


def test_files_that_cannot_be_read_hold_nothing_up(fake, make_machine):
    machine = make_machine("a1")
    machine.start()
    machine.write("samples/epoch_0001.png", b"picture")
    (machine.root / "samples/link.png").symlink_to("/etc/passwd")
    os.mkfifo(machine.root / "samples/pipe.png")
    (machine.root / "events/sub").mkdir(parents=True)
    machine.save(300)
    assert machine.end() == f"{PLACE} holds everything up to step 300."
    assert fake.count("POST", "link|pipe|sub") == 0


def test_what_cannot_be_packed_does_not_end_the_run(fake, make_machine):
    machine = make_machine("a1")
    machine.start()
    machine.mirror.checkpoint_saved("step-000000300")
    assert machine.mirror.num_failed == 1


def test_a_file_may_grow_while_it_is_uploaded(fake, make_machine, monkeypatch):
    machine = make_machine("a1")
    machine.start()
    machine.write("events/events.1", b"1" * (9 << 20))
    measure = files.measure
    grown = []

    def measure_and_grow(path):
        record = measure(path)
        if path.name == "events.1" and not grown:
            grown.append(path)
            with open(path, "ab") as file:
                file.write(b"2")
        return record

    monkeypatch.setattr(files, "measure", measure_and_grow)
    wait_until(lambda: grown)
    assert machine.end().startswith(f"{PLACE} holds everything;")
    assert machine.mirror.num_failed == 0
    assert stored(fake, "events/events.1") == b"1" * (9 << 20) + b"2"
