"""The remote store: what a bucket holds after every way to fail."""

import json
import os
import threading

import google_crc32c
import pytest

from tests.fake_gcs import PLACES, empty_bucket
from trainer import errors
from trainer.storage import files, finder, manifest
from trainer.storage.bucket import Bucket
from trainer.storage.cloud_requests import Patience
from trainer.storage.manifest import BadCheckpointError
from trainer.storage.remote import RemoteStore

NAME = "bucket"
STEP = "step-000000350"
ROOT = f"runs/a/checkpoints/{STEP}"
DAY_SECS = 24 * 3600
PATIENCE = Patience(request_secs=20, retry_secs=60, first_delay_secs=0.01)


def make_store(cache, bucket=NAME):
    bucket = Bucket(bucket, prefix="runs/a", patience=PATIENCE)
    return RemoteStore(bucket, cache=cache)


@pytest.fixture
def store(fake, tmp_path):
    return make_store(tmp_path / "cache")


@pytest.fixture(params=PLACES)
def anywhere(request, monkeypatch, tmp_path):
    with empty_bucket(request.param, monkeypatch) as name:
        yield make_store(tmp_path / "cache", name)


def put(store, *, step=350, attempt="a1", content=b"weights"):
    """Commits a checkpoint and returns its manifest."""
    name = manifest.checkpoint_name(step)
    staging = store.stage(name, attempt=attempt)
    (staging / "state.index").write_bytes(b"index")
    (staging / "state.data").write_bytes(content)
    (staging / "host_state.json").write_text(json.dumps({"step": step}))
    record = files.describe(
        staging, step=step, attempt=attempt, config_digest="c0ffee"
    )
    try:
        store.commit(staging, record)
    except BaseException:
        store.discard(staging)
        raise
    return record


def assert_good(store, *names):
    assert sorted(store.list_names()) == sorted(names)
    for name in names:
        assert store.problems(store.read_manifest(name)) == []


def test_a_commit_makes_it_exist(anywhere, tmp_path):
    assert anywhere.list_names() == []
    assert not (tmp_path / "cache").exists(), "a reader must create nothing"
    record = put(anywhere)
    assert_good(anywhere, STEP)
    assert anywhere.read_manifest(STEP) == record
    assert os.listdir(tmp_path / "cache") == []
    directory = anywhere.fetch(record)
    assert (directory / "state.data").read_bytes() == b"weights"
    assert sorted(os.listdir(directory)) == [
        "MANIFEST.json",
        "host_state.json",
        "state.data",
        "state.index",
    ]
    anywhere.delete(STEP)
    assert anywhere.list_names() == []
    assert os.listdir(tmp_path / "cache") == []
    assert anywhere.free_bytes() is None


def test_the_manifest_comes_last(store, fake):
    put(store)
    uploads = [r.split()[-1] for r in fake.requests if r.startswith("POST")]
    assert sorted(uploads) == sorted(fake.objects.names(NAME))
    assert uploads[-1] == f"{ROOT}/MANIFEST.json"
    assert fake.objects.names(NAME) == [
        f"{ROOT}/MANIFEST.json",
        f"{ROOT}/a1/host_state.json",
        f"{ROOT}/a1/state.data",
        f"{ROOT}/a1/state.index",
    ]


def test_a_commit_never_replaces(anywhere):
    first = put(anywhere, content=b"first")
    for attempt in ("a1", "a2"):
        with pytest.raises(errors.StorageError, match="another process"):
            put(anywhere, attempt=attempt, content=b"second")
    assert_good(anywhere, STEP)
    directory = anywhere.fetch(anywhere.read_manifest(STEP))
    assert (directory / "state.data").read_bytes() == b"first"
    assert anywhere.read_manifest(STEP) == first


def test_of_two_writers_at_once_one_succeeds(anywhere, tmp_path, monkeypatch):
    # Both have seen that there is no manifest, and uploaded all their data.
    both = threading.Barrier(2)
    upload_bytes = Bucket.upload_bytes

    def upload_together(*args, **options):
        both.wait(timeout=60)
        return upload_bytes(*args, **options)

    monkeypatch.setattr(Bucket, "upload_bytes", upload_together)
    other = RemoteStore(anywhere._bucket, cache=tmp_path / "other")
    results = {}

    def write(store, attempt):
        try:
            put(store, attempt=attempt, content=attempt.encode())
            results[attempt] = "committed"
        except errors.StorageError as error:
            results[attempt] = str(error)

    threads = [
        threading.Thread(target=write, args=arguments)
        for arguments in ((anywhere, "a1"), (other, "a2"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = anywhere.read_manifest(STEP).attempt
    loser = {"a1": "a2", "a2": "a1"}[winner]
    assert results[winner] == "committed"
    assert "another process wrote it" in results[loser]
    assert f"checkpoints/{STEP}/MANIFEST.json" in results[loser]
    assert_good(anywhere, STEP)
    directory = other.fetch(anywhere.read_manifest(STEP))
    assert (directory / "state.data").read_bytes() == winner.encode()
    left = {file.name for file in anywhere._bucket.list_objects("")}
    assert not [name for name in left if f"/{loser}/" in name]


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_answer_to_the_commit_is_found_out(store, fake, times):
    fault = fake.fail("POST", "MANIFEST", "lose_response", times=times)
    put(store)
    assert fault.times == 0
    assert fake.count("POST", "MANIFEST") == times + 1
    assert_good(store, STEP)


FAULTS = [
    ("POST", "state.data", "status", 503, 3),
    ("POST", "MANIFEST", "status", 429, 2),
    ("ANY", "", "status", 408, 2),
    ("ANY", "", "reset", 0, 3),
    ("ANY", "", "reset_mid_body", 0, 3),
    ("ANY", "", "lose_response", 0, 3),
    ("POST", "state.data", "corrupt", 0, 2),
    ("POST", "MANIFEST", "corrupt", 0, 2),
    ("GET", "alt=media.*", "corrupt", 0, 2),
]


@pytest.mark.parametrize(
    ("method", "pattern", "kind", "value", "times"), FAULTS
)
def test_what_may_pass_does_not_show(
    store, fake, method, pattern, kind, value, times
):
    fault = fake.fail(method, pattern, kind, value, times=times)
    record = put(store, content=b"x" * 100_000)
    assert_good(store, STEP)
    directory = store.fetch(record)
    assert (directory / "state.data").read_bytes() == b"x" * 100_000
    assert fault.times == 0
    store.delete(STEP)
    assert fake.objects.names(NAME) == []


def requests_of(fake, action):
    fake.clear()
    action()
    # The client library asks for the bucket itself once, in the background.
    return fake.count("ANY", "/o")


def test_a_commit_that_fails_anywhere_leaves_none_or_a_good_one(
    store, fake, tmp_path
):
    put(store, step=300)
    total = requests_of(fake, lambda: put(store))
    outcomes = set()
    for index in range(total):
        store.delete(STEP)
        fake.clear()
        # The process that wrote a2 dies; nobody cleans up for it.
        fake.fail("ANY", "/o", "status", 403, times=10**6, skip=index)
        try:
            put(make_store(tmp_path / f"{index}"), attempt="a2")
        except errors.StorageError:
            pass
        fake.clear()
        committed = STEP in store.list_names()
        outcomes.add(committed)
        assert_good(store, "step-000000300", *([STEP] if committed else []))
        if not committed:
            put(store, attempt="a3")
            assert_good(store, "step-000000300", STEP)
    assert outcomes == {True, False}


def test_a_delete_that_fails_anywhere_leaves_none_or_a_good_one(store, fake):
    put(store)
    total = requests_of(fake, lambda: store.delete(STEP))
    outcomes = set()
    for index in range(total):
        fake.clear()
        if STEP not in store.list_names():
            put(store)
        fake.clear()
        fault = fake.fail("ANY", "/o", "status", 403, times=10**6, skip=index)
        with pytest.raises(errors.StorageError, match="objectUser"):
            store.delete(STEP)
        assert fault.times < 10**6
        fake.clear()
        names = store.list_names()
        outcomes.add(tuple(names))
        assert_good(store, *names)
    assert outcomes == {(), (STEP,)}


def test_a_commit_sends_as_much_whatever_is_there(store, fake):
    sent = [
        requests_of(fake, lambda step=step: put(store, step=step))
        for step in (2, 3, 4)
    ]
    # One listing before, three files and a manifest, one listing after.
    assert sent[1:] == [6, 6]


def test_what_a_delete_left_goes_with_the_next_commit(store, fake):
    put(store)
    fake.fail("DELETE", "state", "status", 403, times=2)
    with pytest.raises(errors.StorageError):
        store.delete(STEP)
    fake.clear()
    assert store.list_names() == []
    assert any("/a1/" in name for name in fake.objects.names(NAME))
    put(store, step=400)
    assert not any(ROOT in name for name in fake.objects.names(NAME))
    assert_good(store, "step-000000400")


def test_what_others_left_goes_after_a_day(store, fake):
    old, new = DAY_SECS + 60, DAY_SECS - 3600
    committed = put(store, step=300, attempt="a0")
    good = f"runs/a/checkpoints/{committed.name}"
    for name in fake.objects.names(NAME):
        fake.objects.put(
            NAME, name, fake.objects.get(NAME, name).data, age_secs=9 * old
        )
    leftovers = {
        f"{ROOT}/dead/state.data": old,
        f"{ROOT}/alive/state.index": old,
        f"{ROOT}/alive/state.data": new,
        f"{ROOT}/a1/state.data": 0,
        f"{good}/loser/state.data": old,
        "runs/a/checkpoints/scratch-dead/step-000000001/dead/x": old,
        "runs/a/checkpoints/scratch-alive/step-000000001/alive/x": new,
        "runs/a/checkpoints/notes/mine/x": old,
        "runs/a/checkpoints/x": old,
        "runs/a/config.json": old,
    }
    for name, age_secs in leftovers.items():
        fake.objects.put(NAME, name, b"1", age_secs=age_secs)
    put(store, step=400, attempt="a1")
    left = [name for name in leftovers if name in fake.objects.names(NAME)]
    assert left == [
        f"{ROOT}/alive/state.index",
        f"{ROOT}/alive/state.data",
        "runs/a/checkpoints/scratch-alive/step-000000001/alive/x",
        "runs/a/checkpoints/notes/mine/x",
        "runs/a/checkpoints/x",
        "runs/a/config.json",
    ]
    assert_good(store, "step-000000300", "step-000000400")


def test_the_data_beside_a_damaged_manifest_stays(store, fake):
    for attempt in ("a0", "a1"):
        fake.objects.put(
            NAME, f"{ROOT}/{attempt}/state.data", b"1", age_secs=9 * DAY_SECS
        )
    fake.objects.put(NAME, f"{ROOT}/MANIFEST.json", b"{}")
    put(store, step=400)
    assert len([n for n in fake.objects.names(NAME) if ROOT in n]) == 3


def test_a_failing_clean_up_fails_no_commit(store, fake):
    fake.objects.put(NAME, f"{ROOT}/a1/state.data", b"1")
    fault = fake.fail("DELETE", "", "status", 403, times=9)
    put(store, step=400)
    assert fault.times < 9
    assert_good(store, "step-000000400")


def test_problems_are_found_without_a_download(store, fake):
    record = put(store, content=b"weights")
    fake.objects.drop(NAME, f"{ROOT}/a1/state.index")
    fake.objects.put(NAME, f"{ROOT}/a1/state.data", b"Weights")
    fake.objects.put(NAME, f"{ROOT}/a1/host_state.json", b"")
    fake.clear()
    crcs = [
        google_crc32c.Checksum(data).digest().hex()
        for data in (b"Weights", b"weights")
    ]
    assert store.problems(record) == [
        "host_state.json has 0 bytes, not 13",
        f"state.data has crc32c {crcs[0]}, not {crcs[1]}",
        "state.index is missing",
    ]
    assert fake.count("GET", "alt=media") == 0


def test_the_newest_good_one_is_found(store, fake, tmp_path):
    for step in (300, 350, 400, 450):
        put(store, step=step)
    base = "runs/a/checkpoints"
    fake.objects.put(NAME, f"{base}/step-000000450/MANIFEST.json", b"{}")
    fake.objects.drop(NAME, f"{base}/step-000000400/a1/state.data")
    reader = make_store(tmp_path / "reader")
    found = finder.find_newest(reader, config_digest="c0ffee")
    assert found.name == STEP
    assert found.host_state == {"step": 350}
    assert (found.directory / "state.data").read_bytes() == b"weights"
    for name in fake.objects.names(NAME):
        if name.endswith("MANIFEST.json"):
            fake.objects.put(NAME, name, b"{}")
    with pytest.raises(errors.CheckpointError, match="None of the 4"):
        finder.find_newest(reader, config_digest="c0ffee")


def test_what_is_fetched_and_good_is_not_fetched_again(store, fake):
    record = put(store)
    directory = store.fetch(record)
    fake.clear()
    assert store.fetch(record) == directory
    assert fake.requests == []
    (directory / "state.data").write_bytes(b"Weights")
    assert (store.fetch(record) / "state.data").read_bytes() == b"weights"
    assert fake.count("GET", "alt=media") == 3


def test_another_checkpoint_of_the_same_name_is_fetched_again(store):
    store.fetch(put(store, content=b"first"))
    store.delete(STEP)
    record = put(store, attempt="a2", content=b"second")
    assert (store.fetch(record) / "state.data").read_bytes() == b"second"


@pytest.mark.parametrize("fault", ["missing", "damaged", "refused"])
def test_a_fetch_that_fails_leaves_nothing(store, fake, tmp_path, fault):
    record = put(store)
    expected = errors.StorageError
    if fault == "missing":
        fake.objects.drop(NAME, f"{ROOT}/a1/state.data")
        expected = BadCheckpointError
    elif fault == "damaged":
        fake.fail("GET", "state.data.*alt=media", "corrupt", times=3)
    else:
        fake.fail("GET", "state.data.*alt=media", "status", 403)
    with pytest.raises(expected, match="state.data"):
        store.fetch(record)
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"not json", b" " * ((1 << 20) + 1)]
)
def test_a_hostile_manifest_is_a_bad_checkpoint(store, fake, data):
    put(store)
    fake.objects.put(NAME, f"{ROOT}/MANIFEST.json", data)
    with pytest.raises(BadCheckpointError, match="MANIFEST.json"):
        store.read_manifest(STEP)
    assert store.list_names() == [STEP]
    store.delete(STEP)
    assert store.list_names() == []
    with pytest.raises(BadCheckpointError, match="missing"):
        store.read_manifest(STEP)


def test_a_listing_has_all_pages(store, fake):
    for step in (300, 350, 400):
        put(store, step=step)
    fake.objects.max_page = 2
    assert len(store.list_names()) == 3
    assert store.problems(store.read_manifest(STEP)) == []


def test_trials_are_invisible_and_gone_afterwards(anywhere, tmp_path):
    put(anywhere)
    with anywhere.scratch(attempt="a1") as scratch:
        assert scratch.list_names() == []
        record = put(scratch, content=b"trial")
        assert_good(scratch, STEP)
        directory = scratch.fetch(record)
        assert (directory / "state.data").read_bytes() == b"trial"
        assert_good(anywhere, STEP)
        assert anywhere.read_manifest(STEP) != record
        put(anywhere, step=400, attempt="a2")
        assert_good(scratch, STEP)
    assert_good(anywhere, STEP, "step-000000400")
    names = [file.name for file in anywhere._bucket.list_objects("")]
    assert not [name for name in names if "scratch" in name]
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_bucket_that_refuses_says_nothing_about_checkpoints(
    store, fake, status
):
    record = put(store)
    fake.fail("ANY", "/o", "status", status, times=10**6)
    actions = [
        store.list_names,
        lambda: store.read_manifest(STEP),
        lambda: store.problems(record),
        lambda: store.fetch(record),
        lambda: store.delete(STEP),
        lambda: put(store, step=400),
    ]
    for action in actions:
        with pytest.raises(errors.StorageError) as caught:
            action()
        assert f"gs://{NAME}/runs/a" in str(caught.value)
    fake.clear()
    assert_good(store, STEP)


def test_many_saves_leave_nothing_behind(store, fake, tmp_path):
    steps = range(0, 80, 10)
    for step in steps:
        put(store, step=step)
        if step >= 20:
            store.delete(manifest.checkpoint_name(step - 20))
    assert len(fake.objects.names(NAME)) == 2 * 4
    assert os.listdir(tmp_path / "cache") == []
