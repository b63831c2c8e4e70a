"""The fake server does what Cloud Storage is documented to do."""

import os
import re

import pytest
import requests

from tests.fake_gcs import FakeGcs

KIB = 1 << 10
MULTIPART = (
    b'--sep\r\ncontent-type: application/json\r\n\r\n{"name": "d/x"}\r\n'
    b"--sep\r\ncontent-type: text/plain\r\n\r\n%b\r\n--sep--"
)


@pytest.fixture
def fake():
    with FakeGcs() as fake:
        fake.objects.add_bucket("b")
        yield fake


def upload(fake, data=b"1", **query):
    return requests.post(
        f"{fake.url}/upload/storage/v1/b/b/o",
        params={"uploadType": "multipart", **query},
        data=MULTIPART % data,
        headers={"Content-Type": 'multipart/related; boundary="sep"'},
        timeout=20,
    )


def call(fake, method, path="b/b/o/d%2Fx", headers=None, **query):
    return requests.request(
        method,
        f"{fake.url}/storage/v1/{path}",
        params=query,
        headers=headers,
        timeout=20,
    )


def test_a_create_with_generation_0_works_once(fake):
    created = upload(fake, ifGenerationMatch=0)
    assert created.status_code == 200
    assert upload(fake, b"2", ifGenerationMatch=0).status_code == 412
    assert call(fake, "GET", alt="media").content == b"1"
    assert call(fake, "DELETE").status_code == 204
    assert upload(fake, ifGenerationMatch=0).status_code == 200


def test_every_write_has_a_larger_generation(fake):
    generations = [int(upload(fake).json()["generation"]) for _ in range(3)]
    assert generations == sorted(set(generations))
    old, _, new = generations
    assert upload(fake, ifGenerationMatch=old).status_code == 412
    assert call(fake, "GET", generation=old).status_code == 404
    for method in ("GET", "DELETE"):
        answer = call(fake, method, ifGenerationMatch=old)
        assert answer.status_code == 412
        answer = call(fake, method, ifMetagenerationMatch=2)
        assert answer.status_code == 412
    assert call(fake, "DELETE", ifGenerationMatch=new).status_code == 204
    assert call(fake, "DELETE", ifGenerationMatch=new).status_code == 404


def test_what_is_not_there_is_404(fake):
    for path in ("b/b/o/none", "b/none/o", "b/none/o/d%2Fx", "b/none"):
        assert call(fake, "GET", path).status_code == 404
    assert "bucket" in call(fake, "GET", "b/none/o").text


def test_checksums_are_those_of_the_content(fake):
    upload(fake, b"123456789")
    described = call(fake, "GET").json()
    # The published crc32c of these digits, and their MD5.
    assert described["crc32c"] == "4waSgw=="
    assert described["md5Hash"] == "JfnnlDI7RTiF9RgfG2JNCw=="
    assert described["size"] == "9"
    media = call(fake, "GET", alt="media")
    assert media.headers["x-goog-hash"] == (
        "crc32c=4waSgw==,md5=JfnnlDI7RTiF9RgfG2JNCw=="
    )
    assert media.headers["x-goog-generation"] == described["generation"]


@pytest.mark.parametrize(
    ("span", "status", "content"),
    [
        ("bytes=0-3", 206, b"1234"),
        ("bytes=7-99", 206, b"89"),
        ("bytes=8-", 206, b"9"),
        ("bytes=9-", 416, None),
    ],
)
def test_a_range_is_a_part(fake, span, status, content):
    upload(fake, b"123456789")
    answer = call(fake, "GET", headers={"Range": span}, alt="media")
    assert answer.status_code == status
    if content is not None:
        assert answer.content == content
        assert answer.headers["Content-Range"].endswith("/9")


def test_listings_have_prefixes_and_pages(fake):
    for name in ("a", "d/e/1", "d/e/2", "d/f", "d/g/3", "e"):
        fake.objects.put("b", name, b"")
    found, token = [], {}
    while True:
        page = call(
            fake,
            "GET",
            "b/b/o",
            prefix="d/",
            delimiter="/",
            maxResults=1,
            **token,
        ).json()
        found += [item["name"] for item in page["items"]] + page["prefixes"]
        if "nextPageToken" not in page:
            break
        token = {"pageToken": page["nextPageToken"]}
    assert found == ["d/e/", "d/f", "d/g/"]


def begin(fake, **query):
    answer = requests.post(
        f"{fake.url}/upload/storage/v1/b/b/o",
        params={"uploadType": "resumable", **query},
        json={"name": "d/x"},
        timeout=20,
    )
    assert answer.status_code == 200
    return answer.headers["Location"]


def send(session, span, data=b""):
    return requests.put(
        session, data=data, headers={"Content-Range": span}, timeout=20
    )


def test_an_upload_in_parts_exists_when_it_is_complete(fake):
    data = os.urandom(600 * KIB)
    session = begin(fake, ifGenerationMatch=0)
    total = len(data)
    assert "Range" not in send(session, f"bytes */{total}").headers
    first = send(session, f"bytes 0-{512 * KIB - 1}/{total}", data[: 512 * KIB])
    assert first.status_code == 308
    assert first.headers["Range"] == f"bytes=0-{512 * KIB - 1}"
    # Neither a gap, nor an odd size before the end.
    assert (
        send(session, f"bytes 550000-550000/{total}", b"1").status_code == 400
    )
    assert fake.objects.names("b") == []
    # From before what has arrived, as after a lost answer.
    rest = data[256 * KIB :]
    span = f"bytes {256 * KIB}-{total - 1}/{total}"
    for _ in range(2):
        assert send(session, span, rest).json()["size"] == str(total)
    assert fake.objects.get("b", "d/x").data == data


def test_an_upload_in_parts_keeps_its_precondition_to_the_end(fake):
    session = begin(fake, ifGenerationMatch=0)
    upload(fake, b"other")
    assert send(session, "bytes 0-0/1", b"1").status_code == 412
    assert fake.objects.get("b", "d/x").data == b"other"


def test_a_broken_part_is_kept_up_to_a_quantum(fake):
    data = os.urandom(1024 * KIB)
    session = begin(fake)
    fake.fail("PUT", "d/x", "reset_mid_body")
    span = f"bytes 0-{len(data) - 1}/{len(data)}"
    with pytest.raises(requests.ConnectionError):
        send(session, span, data)
    kept = send(session, f"bytes */{len(data)}").headers.get("Range", "")
    assert re.fullmatch(rf"bytes=0-{512 * KIB - 1}", kept)


def test_faults_hit_as_often_as_asked_and_are_counted(fake):
    fake.fail("GET", "d/x", "status", 503, times=2, skip=1)
    upload(fake)
    statuses = [call(fake, "GET").status_code for _ in range(4)]
    assert statuses == [200, 503, 503, 200]
    assert fake.count("GET", "d/x") == 4
    assert fake.count("POST", "multipart d/x$") == 1


@pytest.mark.parametrize(
    ("kind", "is_done"), [("reset", False), ("lose_response", True)]
)
def test_a_broken_connection_says_nothing_of_what_was_done(fake, kind, is_done):
    upload(fake)
    fake.fail("DELETE", "d/x", kind)
    with pytest.raises(requests.ConnectionError):
        call(fake, "DELETE")
    assert (fake.objects.names("b") == []) is is_done


def test_a_download_that_breaks_ends_in_an_error(fake):
    upload(fake, b"x" * 100_000)
    fake.fail("GET", "media", "reset_mid_body")
    with pytest.raises(
        (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
    ):
        call(fake, "GET", alt="media")


def test_latency_is_added_to_each_request(fake):
    upload(fake)
    fake.latency_secs = 0.2
    assert call(fake, "GET").elapsed.total_seconds() >= 0.2
