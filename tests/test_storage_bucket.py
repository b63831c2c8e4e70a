"""One bucket, over a network and a server that fail in every way we know."""

import errno
import os
import pathlib
import subprocess
import sys
import time

import google.auth
import google.auth.credentials
import google.auth.exceptions
import pytest
from google.cloud import storage

from tests.fake_gcs import PLACES, FakeGcs, empty_bucket
from trainer import errors
from trainer.storage import cloud_requests, transfers
from trainer.storage.bucket import Bucket
from trainer.storage.cloud_requests import Patience
from trainer.storage.manifest import FileRecord
from trainer.storage.objects import (
    ConflictError,
    MissingObjectError,
    record_of,
)

NAME = "bucket"
# Delays as short as possible; deadlines that a slow machine does not meet.
PATIENCE = Patience(
    request_secs=20, retry_secs=60, credentials_secs=20, first_delay_secs=0.01
)
IMPATIENT = Patience(
    request_secs=0.3, retry_secs=20, credentials_secs=0.1, first_delay_secs=0.01
)
MIB = 1 << 20


@pytest.fixture
def bucket(fake):
    return Bucket(NAME, prefix="runs/a", patience=PATIENCE)


@pytest.fixture(params=PLACES)
def anywhere(request, monkeypatch):
    with empty_bucket(request.param, monkeypatch) as name:
        yield Bucket(name, prefix="/runs/a/", patience=PATIENCE)


@pytest.fixture(scope="module")
def large():
    """More than fits into one request of the client library."""
    return os.urandom(9 * MIB)


def record(data: bytes) -> FileRecord:
    return record_of(data, "x")


def stored(fake, name="x") -> bytes:
    return fake.objects.get(NAME, f"runs/a/{name}").data


@pytest.mark.parametrize("size", [0, 1, 1000, 9 * MIB])
def test_what_is_uploaded_comes_back(anywhere, tmp_path, size):
    data = os.urandom(size)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    uploaded = anywhere.upload_file(source, "d/ä +%2F", record(data))
    assert uploaded.agrees(record(data))
    assert anywhere.list_objects("d") == [uploaded]
    anywhere.download_file("d/ä +%2F", target, record(data))
    assert target.read_bytes() == data
    assert anywhere.read_bytes("d/ä +%2F", size) == data


def test_names_are_below_the_prefix(bucket, fake):
    bucket.upload_bytes(b"1", "d/x", create_only=True)
    Bucket(NAME, prefix="", patience=PATIENCE).upload_bytes(
        b"2", "d/x", create_only=True
    )
    assert fake.objects.names(NAME) == ["d/x", "runs/a/d/x"]
    assert [file.name for file in bucket.list_objects("")] == ["d/x"]
    assert bucket.location == f"gs://{NAME}/runs/a"


def test_create_only_replaces_nothing(anywhere):
    first = anywhere.upload_bytes(b"first", "x", create_only=True)
    with pytest.raises(ConflictError):
        anywhere.upload_bytes(b"other", "x", create_only=True)
    assert anywhere.read_bytes("x", 100) == b"first"
    again = anywhere.upload_bytes(b"first", "x", create_only=True)
    assert again == first
    anywhere.upload_bytes(b"second", "x", create_only=False)
    assert anywhere.read_bytes("x", 100) == b"second"


def test_only_the_generation_that_is_meant_is_deleted(anywhere):
    first = anywhere.upload_bytes(b"1", "x", create_only=True)
    anywhere.upload_bytes(b"2", "x", create_only=False)
    with pytest.raises(ConflictError):
        anywhere.delete("x", generation=first.generation)
    (second,) = anywhere.list_objects("")
    for _ in range(2):
        anywhere.delete("x", generation=second.generation)
        assert anywhere.list_objects("") == []


def test_a_missing_object_is_no_storage_error(anywhere, tmp_path):
    with pytest.raises(MissingObjectError):
        anywhere.read_bytes("x", 100)
    with pytest.raises(MissingObjectError):
        anywhere.download_file("x", tmp_path / "x", record(b"1"))


def test_a_listing_has_all_pages(bucket, fake):
    fake.objects.max_page = 2
    for index in range(5):
        bucket.upload_bytes(b"", f"d/{index}", create_only=True)
    bucket.upload_bytes(b"", "e", create_only=True)
    assert [file.name for file in bucket.list_objects("d/")] == [
        f"d/{index}" for index in range(5)
    ]
    assert fake.count("GET", r"/o\?.*prefix=") == 3


def test_what_is_too_large_is_not_read(bucket, fake):
    bucket.upload_bytes(b"12345", "x", create_only=True)
    with pytest.raises(ValueError, match="5 bytes, more than 4"):
        bucket.read_bytes("x", 4)
    assert fake.count("GET", "alt=media") == 0


def upload_small(bucket, data):
    bucket.upload_bytes(data[:1000], "x", create_only=True)


def upload_large(bucket, data):
    bucket.upload_bytes(data, "x", create_only=True)


def read(bucket, data):
    assert bucket.read_bytes("there", len(data)) == data


def find(bucket, data):
    (file,) = bucket.list_objects("there")
    assert file.agrees(record(data))


def delete(bucket, data):
    (file,) = bucket.list_objects("there")
    bucket.delete("there", generation=file.generation)


# What is done, and the request of it that fails.
REQUESTS = [
    (upload_small, "POST", "uploadType=multipart"),
    (upload_large, "POST", "uploadType=resumable"),
    (upload_large, "PUT", "upload_id"),
    (read, "GET", r"/o/runs/a/there\?(?!alt)"),
    (read, "GET", "alt=media"),
    (find, "GET", r"/o\?.*prefix="),
    (delete, "DELETE", "there"),
]
PASSING = [
    ("status", 503, 3),
    ("status", 429, 2),
    ("status", 408, 1),
    ("status", 500, 1),
    ("status", 502, 1),
    ("status", 504, 1),
    ("reset", 0, 2),
    ("reset_mid_body", 0, 1),
    ("lose_response", 0, 2),
    ("stall", 60, 1),
]


@pytest.mark.parametrize(("kind", "value", "times"), PASSING)
@pytest.mark.parametrize(("action", "method", "pattern"), REQUESTS)
def test_what_may_pass_is_tried_again(
    fake, large, action, method, pattern, kind, value, times
):
    fake.objects.put(NAME, "runs/a/there", large)
    patience = IMPATIENT if kind == "stall" else PATIENCE
    fault = fake.fail(method, pattern, kind, value, times=times)
    action(Bucket(NAME, prefix="runs/a", patience=patience), large)
    assert fault.times == 0
    names = fake.objects.names(NAME)
    if action is upload_small:
        assert stored(fake) == large[:1000]
    elif action is upload_large:
        assert stored(fake) == large
    else:
        assert names == ([] if action is delete else ["runs/a/there"])


@pytest.mark.parametrize(("kind", "value"), [("status", 503), ("reset", 0)])
def test_a_large_upload_goes_on_where_it_broke(
    bucket, fake, large, monkeypatch, kind, value
):
    monkeypatch.setattr(transfers, "UPLOAD_CHUNK_BYTES", MIB)
    fault = fake.fail("PUT", "upload_id", kind, value, skip=4)
    bucket.upload_bytes(large, "x", create_only=True)
    assert fault.times == 0
    assert stored(fake) == large
    assert fake.count("PUT") == 10


@pytest.mark.parametrize("status", [404, 410])
def test_a_lost_upload_session_is_begun_again(bucket, fake, large, status):
    fake.fail("PUT", "upload_id", "status", status)
    bucket.upload_bytes(large, "x", create_only=True)
    assert stored(fake) == large
    assert fake.count("POST", "resumable") == 2


def test_a_download_of_several_chunks_is_whole(
    bucket, fake, large, monkeypatch
):
    monkeypatch.setattr(transfers, "DOWNLOAD_CHUNK_BYTES", 4 * MIB + 1)
    fake.objects.put(NAME, "runs/a/there", large)
    fake.fail("GET", "alt=media", "reset_mid_body", skip=1)
    read(bucket, large)
    assert fake.count("GET", "alt=media") == 4


@pytest.mark.parametrize("times", [2, 3])
def test_a_damaged_download_is_repeated_then_refused(
    bucket, fake, tmp_path, times
):
    data = os.urandom(1000)
    fake.objects.put(NAME, "runs/a/x", data)
    fake.fail("GET", "alt=media", "corrupt", times=times)
    path = tmp_path / "x"
    if times == 2:
        bucket.download_file("x", path, record(data))
        assert path.read_bytes() == data
    else:
        with pytest.raises(errors.StorageError, match="3 times: what"):
            bucket.download_file("x", path, record(data))
    assert fake.count("GET", "alt=media") == 3


@pytest.mark.parametrize("size", [999, 1001])
def test_an_object_of_another_size_is_refused(bucket, fake, tmp_path, size):
    data = os.urandom(1000)
    fake.objects.put(NAME, "runs/a/x", (data + b"1")[:size])
    if size > 1000:
        # Only the expected bytes are asked for.
        bucket.download_file("x", tmp_path / "x", record(data))
        return
    with pytest.raises(errors.StorageError, match="999 bytes arrive, not 1000"):
        bucket.download_file("x", tmp_path / "x", record(data))


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("size", [1000, 9 * MIB])
@pytest.mark.parametrize("create_only", [True, False])
def test_a_damaged_upload_is_repeated_then_refused(
    bucket, fake, large, times, size, create_only
):
    data = large[:size]
    method = "PUT" if size > MIB else "POST"
    fake.fail(method, "x", "corrupt", times=times)
    if times == 2:
        bucket.upload_bytes(data, "x", create_only=create_only)
        assert stored(fake) == data
        return
    with pytest.raises(errors.StorageError, match="3 times"):
        bucket.upload_bytes(data, "x", create_only=create_only)
    if create_only:
        assert fake.objects.names(NAME) == []


def test_a_file_that_is_not_what_was_measured_is_refused(bucket, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"other")
    for expected in (record(b"older"), record(b"longer")):
        with pytest.raises(errors.StorageError, match="3 times"):
            bucket.upload_file(path, "x", expected)


class Account(google.auth.credentials.Credentials):
    """An account whose tokens come after some failures."""

    def __init__(self, *failures):
        super().__init__()
        self.failures = list(failures)

    def refresh(self, request):
        if self.failures:
            raise self.failures.pop(0)
        self.token = "secret-token"


def signed_in(fake, account, patience=PATIENCE):
    client = storage.Client(
        project="p",
        credentials=account,
        client_options={"api_endpoint": fake.url},
    )
    return Bucket(NAME, prefix="runs/a", client=client, patience=patience)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("action", "method", "pattern"), REQUESTS)
def test_a_refusal_is_final_and_says_what_is_needed(
    fake, large, action, method, pattern, status
):
    fake.objects.put(NAME, "runs/a/there", large)
    fake.fail(method, pattern, "status", status, times=99)
    with pytest.raises(errors.StorageError) as caught:
        action(signed_in(fake, Account()), large)
    message = str(caught.value)
    assert caught.value.exit_code == 6
    assert f"{status} by the fault script" in message
    assert f"gs://{NAME}/runs/a" in message
    assert "roles/storage.objectUser" in message
    assert "secret" not in message
    # The client library itself asks for a new token after a 401, twice.
    assert fake.count(method, pattern) <= (3 if status == 401 else 1)


@pytest.mark.parametrize("action", [upload_small, upload_large, read, find])
def test_an_unknown_bucket_is_named(fake, large, action):
    bucket = Bucket("nowhere", prefix="runs/a", patience=PATIENCE)
    with pytest.raises(errors.StorageError) as caught:
        action(bucket, large)
    message = str(caught.value)
    assert "gs://nowhere/runs/a" in message
    assert "must exist" in message


def test_the_deadline_ends_the_tries(fake):
    fake.fail("GET", "prefix=", "status", 503, times=10**6)
    patience = Patience(retry_secs=0.2, first_delay_secs=0.01)
    with pytest.raises(errors.StorageError, match="503 by the fault script"):
        Bucket(NAME, prefix="runs/a", patience=patience).list_objects("")
    assert fake.count("GET", "prefix=") > 1


def test_a_server_that_is_not_there_is_a_storage_error(monkeypatch):
    with FakeGcs() as gone:
        pass
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gone.url)
    patience = Patience(retry_secs=0.1, first_delay_secs=0.01)
    with pytest.raises(errors.StorageError, match="must be reachable"):
        Bucket(NAME, prefix="runs/a", patience=patience).list_objects("")


def test_no_credentials_is_a_storage_error(monkeypatch):
    def default(**_):
        raise google.auth.exceptions.DefaultCredentialsError("none found")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(google.auth, "default", default)
    with pytest.raises(errors.StorageError) as caught:
        Bucket(NAME, prefix="", patience=IMPATIENT)
    assert "none found" in str(caught.value)
    assert "gcloud auth application-default login" in str(caught.value)


def test_credentials_may_come_some_seconds_late(monkeypatch):
    calls = []

    def default(**_):
        calls.append(1)
        if len(calls) < 3:
            raise google.auth.exceptions.DefaultCredentialsError("not yet")
        return Account(), None

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(google.auth, "default", default)
    Bucket(NAME, prefix="", patience=PATIENCE)
    assert len(calls) == 3


def test_tokens_may_come_some_seconds_late(fake):
    late = google.auth.exceptions.RefreshError("not yet")
    bucket = signed_in(fake, Account(late, late))
    assert bucket.list_objects("") == []


def test_an_account_that_never_gets_a_token_is_refused_in_time(fake):
    never = google.auth.exceptions.RefreshError("invalid_grant")
    patience = Patience(
        retry_secs=60, credentials_secs=0.1, first_delay_secs=0.01
    )
    bucket = signed_in(fake, Account(*[never] * 10**5), patience)
    start = time.monotonic()
    with pytest.raises(errors.StorageError, match="invalid_grant"):
        bucket.list_objects("")
    assert time.monotonic() - start < 30
    assert fake.count("GET") == 0


def test_the_address_of_an_upload_is_no_part_of_a_message():
    error = ValueError("PUT http://host/o?upload_id=SECRET&x=1 failed")
    assert cloud_requests.reason(error) == (
        "ValueError: PUT http://host/o?upload_id=...&x=1 failed"
    )


def test_a_full_disk_is_not_blamed_on_the_bucket(bucket, tmp_path, monkeypatch):
    def receive(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfers, "receive", receive)
    with pytest.raises(errors.StorageError, match="free space") as caught:
        bucket.download_file("x", tmp_path / "x", record(b"1"))
    assert f"Cannot write {tmp_path}/x: No space left" in str(caught.value)


def test_without_the_library_the_flag_is_to_blame(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(errors.UsageError, match="pip install") as caught:
        Bucket(NAME, prefix="")
    assert caught.value.exit_code == 2


def test_the_library_is_imported_only_when_a_bucket_is_made():
    code = (
        "import sys, trainer.storage.remote\n"
        "sys.exit('google.cloud.storage' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 0
