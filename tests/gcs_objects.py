"""What Cloud Storage does with a request for an object, in memory.

Uploads (multipart and resumable), downloads with ranges, listings by page,
deletes, generations and preconditions of the JSON API. No sockets here.
"""

import base64
import dataclasses
import datetime
import hashlib
import itertools
import json
import re
import threading
import urllib.parse

import google_crc32c

_QUANTUM_BYTES = 256 * 1024
_MEDIA_PATH = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_LIST_PATH = re.compile(r"/storage/v1/b/([^/]+)/o")
_BUCKET_PATH = re.compile(r"/storage/v1/b/([^/]+)")
_UPLOAD_PATH = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


@dataclasses.dataclass
class Stored:
    """An object."""

    data: bytes
    generation: int
    created: datetime.datetime

    def described(self, bucket: str, name: str) -> dict:
        created = self.created.isoformat().replace("+00:00", "Z")
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{self.generation}",
            "bucket": bucket,
            "name": name,
            "generation": str(self.generation),
            "metageneration": "1",
            "size": str(len(self.data)),
            "crc32c": crc32c(self.data),
            "md5Hash": md5(self.data),
            "timeCreated": created,
            "updated": created,
        }


@dataclasses.dataclass
class _Session:
    """A resumable upload."""

    bucket: str
    metadata: dict
    query: dict
    data: bytes = b""
    result: dict | None = None


class Answer(Exception):
    """An answer that ends the handling of a request."""

    def __init__(self, status, body=b"", **headers):
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers


def crc32c(data: bytes) -> str:
    """As the API writes it: big-endian, in base 64."""
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


class Objects:
    """The buckets; any thread may use them.

    Attributes:
        max_page: Objects in one page of a listing, at most.
    """

    def __init__(self) -> None:
        self.max_page = 1000
        self._buckets: dict[str, dict[str, Stored]] = {}
        self._sessions: dict[str, _Session] = {}
        self._generations = itertools.count(1_700_000_000_000_001)
        self._lock = threading.RLock()

    def add_bucket(self, name: str) -> None:
        with self._lock:
            self._buckets.setdefault(name, {})

    def put(self, bucket, name, data, *, age_secs=0.0) -> Stored:
        """Stores an object, as any other client might have done."""
        created = datetime.datetime.now(datetime.timezone.utc)
        created -= datetime.timedelta(seconds=age_secs)
        with self._lock:
            stored = Stored(bytes(data), next(self._generations), created)
            self._buckets[bucket][name] = stored
        return stored

    def get(self, bucket: str, name: str) -> Stored:
        with self._lock:
            return self._buckets[bucket][name]

    def drop(self, bucket: str, name: str) -> None:
        with self._lock:
            del self._buckets[bucket][name]

    def names(self, bucket: str) -> list[str]:
        with self._lock:
            return sorted(self._buckets[bucket])

    def name_of(self, url, head: bytes) -> str:
        """The object's name, where only the body or an upload's id tells."""
        query = dict(urllib.parse.parse_qsl(url.query))
        with self._lock:
            session = self._sessions.get(query.get("upload_id", ""))
        if session is not None:
            return session.metadata["name"]
        found = re.search(rb'"name": ?("(?:[^"\\]|\\.)*")', head)
        return json.loads(found[1]) if found else ""

    def keep_part(self, url, headers, part: bytes) -> None:
        """Takes what arrived of a broken upload, as the real one does."""
        query = dict(urllib.parse.parse_qsl(url.query))
        with self._lock:
            session = self._sessions.get(query.get("upload_id", ""))
            span = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
            if session is not None and span:
                kept = len(part) // _QUANTUM_BYTES * _QUANTUM_BYTES
                session.data = session.data[: int(span[1])] + part[:kept]

    def handle(self, method, url, headers, body, corrupt=False) -> Answer:
        """Does what a request asks for.

        Args:
            method: Of HTTP.
            url: From `urllib.parse.urlsplit`.
            headers: Of the request.
            body: Its whole body.
            corrupt: Whether an upload is stored with a changed byte.
        """
        query = dict(urllib.parse.parse_qsl(url.query))
        try:
            with self._lock:
                if url.path == "/storage/v1/b" and method == "POST":
                    return self._make_bucket(json.loads(body)["name"])
                if match := _BUCKET_PATH.fullmatch(url.path):
                    self._objects(match[1])
                    return _json(_bucket(match[1]))
                if match := _UPLOAD_PATH.fullmatch(url.path):
                    bucket = urllib.parse.unquote(match[1])
                    if method == "PUT":
                        return self._continue(query, headers, body, corrupt)
                    return self._upload(bucket, query, headers, body, corrupt)
                if match := _LIST_PATH.fullmatch(url.path):
                    return self._list(urllib.parse.unquote(match[1]), query)
                if match := _MEDIA_PATH.fullmatch(url.path):
                    bucket, name = map(urllib.parse.unquote, match.groups())
                    return self._object(method, bucket, name, query, headers)
            return failed(404, "Not Found")
        except Answer as answer:
            return answer

    def _objects(self, bucket: str) -> dict[str, Stored]:
        if bucket not in self._buckets:
            raise failed(404, "The specified bucket does not exist.")
        return self._buckets[bucket]

    def _make_bucket(self, name: str) -> Answer:
        if name in self._buckets:
            return failed(409, "The requested bucket name is not available.")
        self.add_bucket(name)
        return _json(_bucket(name))

    def _object(self, method, bucket, name, query, headers) -> Answer:
        objects = self._objects(bucket)
        stored = objects.get(name)
        if stored is None or stored.generation != int(
            query.get("generation", stored.generation)
        ):
            return failed(404, f"No such object: {bucket}/{name}")
        _check_preconditions(query, stored)
        if method == "DELETE":
            del objects[name]
            return Answer(204)
        if method != "GET":
            return failed(405, "Method Not Allowed")
        if query.get("alt") == "media":
            return _media(stored, headers.get("Range"))
        return _json(stored.described(bucket, name))

    def _list(self, bucket, query) -> Answer:
        objects = self._objects(bucket)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        entries = {}  # Names and common prefixes, in one order.
        for name in sorted(objects):
            if not name.startswith(prefix):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if delimiter and found:
                entries[prefix + head + delimiter] = None
            else:
                entries[name] = objects[name].described(bucket, name)
        keys = list(entries)
        if "pageToken" in query:
            last = base64.b64decode(query["pageToken"]).decode()
            keys = [key for key in keys if key > last]
        size = min(int(query.get("maxResults", 1000)), self.max_page)
        page = keys[:size]
        result = {
            "kind": "storage#objects",
            "items": [entries[key] for key in page if entries[key]],
            "prefixes": [key for key in page if not entries[key]],
        }
        if len(keys) > size:
            token = base64.b64encode(page[-1].encode()).decode()
            result["nextPageToken"] = token
        return _json(result)

    def _upload(self, bucket, query, headers, body, corrupt) -> Answer:
        objects = self._objects(bucket)
        if query["uploadType"] == "multipart":
            metadata, data = _split_multipart(headers["Content-Type"], body)
            return _json(self._create(bucket, metadata, query, data, corrupt))
        metadata = json.loads(body)
        metadata.setdefault("name", query.get("name"))
        _check_preconditions(query, objects.get(metadata["name"]))
        upload_id = f"session-{next(self._generations)}"
        self._sessions[upload_id] = _Session(bucket, metadata, query)
        location = (
            f"http://{headers['Host']}/upload/storage/v1/b/{bucket}/o"
            f"?uploadType=resumable&upload_id={upload_id}"
        )
        return Answer(200, Location=location)

    def _continue(self, query, headers, body, corrupt) -> Answer:
        session = self._sessions.get(query.get("upload_id", ""))
        if session is None:
            return failed(404, "No such upload")
        if session.result is not None:
            return _json(session.result)
        span = re.fullmatch(
            r"bytes (?:\*|(\d+)-(\d+))/(\*|\d+)", headers["Content-Range"]
        )
        if span[1] is not None:
            start, end = int(span[1]), int(span[2]) + 1
            if start > len(session.data) or end - start != len(body):
                return failed(400, "The range does not follow what is there.")
            # Some of it may have arrived before.
            session.data = session.data[:start] + body
            if span[3] != str(end) and end % _QUANTUM_BYTES:
                return failed(400, "A chunk must be a multiple of 256 KiB.")
        if span[3] == str(len(session.data)):
            announced = re.search(
                r"crc32c=([^,]+)", headers.get("x-goog-hash", "")
            )
            if announced:
                session.metadata["crc32c"] = announced[1]
            session.result = self._create(
                session.bucket,
                session.metadata,
                session.query,
                session.data,
                corrupt,
            )
            return _json(session.result)
        arrived = {"Range": f"bytes=0-{len(session.data) - 1}"}
        return Answer(308, **(arrived if session.data else {}))

    def _create(self, bucket, metadata, query, data, corrupt) -> dict:
        name = metadata.get("name") or query["name"]
        announced = metadata.get("crc32c")
        if announced and announced != crc32c(data):
            raise failed(
                400,
                f'Provided CRC32C "{announced}" doesn\'t match calculated '
                f'CRC32C "{crc32c(data)}".',
            )
        _check_preconditions(query, self._objects(bucket).get(name))
        stored = self.put(bucket, name, damaged(data) if corrupt else data)
        return stored.described(bucket, name)


def damaged(data: bytes) -> bytes:
    """The bytes with one changed in the middle."""
    middle = len(data) // 2
    return (
        data[:middle]
        + bytes(byte ^ 1 for byte in data[middle : middle + 1])
        + data[middle + 1 :]
    )


def failed(status: int, message: str) -> Answer:
    """An error as the API writes it."""
    error = {"code": status, "message": message, "errors": []}
    return _json({"error": error}, status)


def _bucket(name: str) -> dict:
    return {"kind": "storage#bucket", "name": name, "projectNumber": "1"}


def _json(content: dict, status: int = 200) -> Answer:
    body = json.dumps(content).encode()
    return Answer(status, body, **{"Content-Type": "application/json"})


def _media(stored: Stored, span: str | None) -> Answer:
    size = len(stored.data)
    headers = {
        "Content-Type": "application/octet-stream",
        "x-goog-hash": f"crc32c={crc32c(stored.data)},md5={md5(stored.data)}",
        "x-goog-generation": str(stored.generation),
        "x-goog-stored-content-length": str(size),
    }
    if span is None:
        return Answer(200, stored.data, **headers)
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", span)
    start, end = int(match[1]), min(int(match[2] or size) + 1, size)
    if start >= size:
        raise failed(416, "The requested range cannot be satisfied.")
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Answer(206, stored.data[start:end], **headers)


def _check_preconditions(query: dict, stored: Stored | None) -> None:
    generation = stored.generation if stored else 0
    metageneration = 1 if stored else None
    wanted = query.get("ifGenerationMatch")
    wanted_meta = query.get("ifMetagenerationMatch")
    if (wanted is not None and int(wanted) != generation) or (
        wanted_meta is not None and int(wanted_meta) != metageneration
    ):
        raise failed(
            412,
            "At least one of the pre-conditions you specified did not hold.",
        )


def _split_multipart(content_type: str, body: bytes) -> tuple[dict, bytes]:
    """Returns the metadata and the data of a multipart/related body."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)[1].encode()
    _, first, second = body.split(b"--" + boundary + b"\r\n", 2)
    data = second.partition(b"\r\n\r\n")[2]
    end = data.rindex(b"\r\n--" + boundary + b"--")
    return json.loads(first.partition(b"\r\n\r\n")[2]), data[:end]
