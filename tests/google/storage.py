"""Cloud Storage's JSON API on loopback, as far as google-cloud-storage and Beam's ``FileSystems`` use it.

Objects live in memory. What the service checks is checked here too: preconditions (412), checksums that came with
an upload (400), chunks of a resumable upload that are no multiple of 256 KiB (400), pages of at most 1,000 names.
A query parameter that is not known is an error, so that nothing is ignored in silence.
"""

import base64
import bisect
import email.parser
import email.policy
import hashlib
import json
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import google_crc32c

from tests.google.server import LoopbackServer, Request, Response, target

QUANTUM = 256 * 1024
"""Chunks of a resumable upload are multiples of this, and so is what the service keeps of a broken one."""
_FIRST_GENERATION = 1_700_000_000_000_000
_PRECONDITIONS = {"ifGenerationMatch", "ifGenerationNotMatch", "ifMetagenerationMatch", "ifMetagenerationNotMatch"}
_COMMON = {"alt", "fields", "prettyPrint", "projection", "userProject", "predefinedAcl", "kmsKeyName"}
_LIST = {"prefix", "delimiter", "maxResults", "pageToken", "startOffset", "endOffset", "versions"}
_OBJECT = re.compile(r"/b/(?P<bucket>[^/]+)/o/(?P<object>[^/]+)(?P<rest>/.*)?")


@dataclass(frozen=True)
class Blob:
    """A stored object, one generation of it. A generation is its creation in microseconds, as in the service."""

    bucket: str
    name: str
    data: bytes = field(repr=False)
    generation: int
    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def crc32c(self) -> str:
        """As the service writes it: base64 of the big-endian number."""
        return crc32c(self.data)

    @property
    def md5(self) -> str:
        """As the service writes it, in base64."""
        return base64.b64encode(hashlib.md5(self.data, usedforsecurity=False).digest()).decode()

    def resource(self, base: str) -> dict[str, Any]:
        """The object's JSON resource."""
        when = datetime.fromtimestamp(self.generation / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        path = f"b/{self.bucket}/o/{urllib.parse.quote(self.name, safe='')}"
        return {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "selfLink": f"{base}/storage/v1/{path}",
            "mediaLink": f"{base}/download/storage/v1/{path}?generation={self.generation}&alt=media",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "md5Hash": self.md5,
            "etag": f"e{self.generation}",
            "timeCreated": when,
            "updated": when,
            "timeStorageClassUpdated": when,
            **({"metadata": dict(self.metadata)} if self.metadata else {}),
        }


@dataclass
class _Upload:
    bucket: str
    name: str
    properties: dict[str, Any]
    query: Mapping[str, str]
    data: bytearray = field(default_factory=bytearray, repr=False)
    checksums: dict[str, str] = field(default_factory=dict)
    done: Response | None = None


class StorageServer(LoopbackServer):
    """``objects`` maps (bucket, name) to its newest generation; there are no older ones.

    ``page_size`` bounds the names of a listing's page. ``trusting`` makes the server store an upload that disagrees
    with the checksum that came with it and answer with the checksum of what it stored: corruption that the service
    does not notice, so that its client must.
    """

    def __init__(self, *buckets: str, page_size: int = 1000) -> None:
        super().__init__()
        self.objects: dict[tuple[str, str], Blob] = {}
        self.buckets = set(buckets)
        self.page_size = page_size
        self.trusting = False
        self._uploads: dict[str, _Upload] = {}
        self._generation = _FIRST_GENERATION
        self._sorted: dict[str, list[str]] = {}

    # For tests.

    def put(self, bucket: str, name: str, data: bytes, content_type: str = "application/octet-stream") -> Blob:
        """Stores an object behind every client's back."""
        with self.lock:
            return self._keep(Blob(bucket, name, bytes(data), self._generation + 1, content_type))

    def remove(self, bucket: str, name: str) -> None:
        """Deletes an object behind every client's back; KeyError without one."""
        with self.lock:
            del self.objects[bucket, name]
            self._sorted.pop(bucket, None)

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Names in byte order, the order of the service."""
        with self.lock:
            if bucket not in self._sorted:
                self._sorted[bucket] = sorted((key[1] for key in self.objects if key[0] == bucket), key=_order)
            names = self._sorted[bucket]
            begin = bisect.bisect_left(names, _order(prefix), key=_order)
            end = begin
            while end < len(names) and names[end].startswith(prefix):
                end += 1
            return names[begin:end]

    @property
    def open_uploads(self) -> int:
        """Resumable uploads that were begun and neither finished nor cancelled."""
        with self.lock:
            return sum(upload.done is None for upload in self._uploads.values())

    # The service.

    def answer(self, request: Request) -> Response:
        path = request.path
        if path == "/token":
            return Response.of({"access_token": "stand-in", "expires_in": 3600, "token_type": "Bearer"})
        if path == "/batch/storage/v1":
            return self._batch(request)
        if path.startswith("/upload/storage/v1/b/"):
            return self._upload(request, path.removeprefix("/upload/storage/v1"))
        if path.startswith("/download/storage/v1/b/"):
            return self._object(request, path.removeprefix("/download/storage/v1"))
        if path.startswith("/storage/v1/b"):
            path = path.removeprefix("/storage/v1")
            return self._object(request, path) if _OBJECT.fullmatch(path) else self._bucket(request, path)
        return Response.error(404, f"no such path: {path}")

    def partial(self, request: Request) -> None:
        upload = self._uploads.get(request.query.get("upload_id", ""))
        if upload is None or upload.done is not None or request.method != "PUT":
            return
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", request.headers.get("Content-Range", ""))
        if match and int(match[1]) == len(upload.data):
            upload.data += request.body[: len(request.body) // QUANTUM * QUANTUM]

    def _bucket(self, request: Request, path: str) -> Response:
        parts = [urllib.parse.unquote(part) for part in path.split("/")[2:]]
        if not parts and request.method == "POST":
            name = request.json()["name"]
            if name in self.buckets:
                return Response.error(409, f"bucket {name} exists")
            self.buckets.add(name)
            return Response.of(self._bucket_resource(name))
        if not parts:
            return Response.error(501, "buckets are not listed here")
        if parts[0] not in self.buckets:
            return Response.error(404, f"The specified bucket does not exist: {parts[0]}")
        if len(parts) == 1 and request.method == "GET":
            return Response.of(self._bucket_resource(parts[0]))
        if parts[1:] == ["o"] and request.method == "GET":
            return self._list(request, parts[0])
        return Response.error(501, f"{request.method} {path} is not spoken here")

    def _bucket_resource(self, name: str) -> dict[str, Any]:
        return {
            "kind": "storage#bucket",
            "id": name,
            "name": name,
            "location": "US-CENTRAL1",
            "locationType": "region",
            "storageClass": "STANDARD",
            "metageneration": "1",
            "etag": "CAE=",
            "softDeletePolicy": {"retentionDurationSeconds": "0"},
        }

    def _list(self, request: Request, bucket: str) -> Response:
        query = request.query
        if unknown := query.keys() - _LIST - _COMMON:
            return Response.error(501, f"unknown parameters of a listing: {sorted(unknown)}")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = base64.urlsafe_b64decode(query.get("pageToken", "")).decode()
        size = min(int(query.get("maxResults", self.page_size)), self.page_size)
        items: list[dict[str, Any]] = []
        prefixes: list[str] = []
        last = after
        more = False
        for name in self.names(bucket, prefix):
            if _order(name) < _order(query.get("startOffset", "")):
                continue
            if "endOffset" in query and _order(name) >= _order(query["endOffset"]):
                break
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            shown = name if cut < 0 else name[: cut + len(delimiter)]
            if after and _order(shown) <= _order(after):
                continue
            if prefixes and shown == prefixes[-1]:
                continue
            if len(items) + len(prefixes) == size:
                more = True
                break
            last = shown
            if cut < 0:
                items.append(self.objects[bucket, name].resource(self.url))
            else:
                prefixes.append(shown)
        answer: dict[str, Any] = {"kind": "storage#objects"}
        if items:
            answer["items"] = items
        if prefixes:
            answer["prefixes"] = prefixes
        if more:
            answer["nextPageToken"] = base64.urlsafe_b64encode(last.encode()).decode()
        return Response.of(answer)

    def _object(self, request: Request, path: str) -> Response:
        match = _OBJECT.fullmatch(path)
        assert match is not None
        bucket, name, rest = urllib.parse.unquote(match["bucket"]), urllib.parse.unquote(match["object"]), match["rest"]
        if bucket not in self.buckets:
            return Response.error(404, f"The specified bucket does not exist: {bucket}")
        if rest is not None:
            return self._whole(request, bucket, name, rest)
        if unknown := request.query.keys() - _PRECONDITIONS - _COMMON - {"generation"}:
            return Response.error(501, f"unknown parameters of an object: {sorted(unknown)}")
        blob = self.objects.get((bucket, name))
        if blob is None or str(blob.generation) != request.query.get("generation", str(blob.generation)):
            return Response.error(404, f"No such object: {bucket}/{name}")
        if refused := _precondition(request.query, blob):
            return refused
        if request.method == "DELETE":
            self.remove(bucket, name)
            return Response(204)
        if request.method != "GET":
            return Response.error(501, f"{request.method} {path} is not spoken here")
        if request.query.get("alt") == "media":
            return _media(request, blob)
        return Response.of(blob.resource(self.url))

    def _whole(self, request: Request, bucket: str, name: str, rest: str) -> Response:
        """Rewrite, copy and compose: the object is made of whole other ones."""
        if request.method == "POST" and rest == "/compose":
            if refused := _precondition(request.query, self.objects.get((bucket, name))):
                return refused
            sources = [self.objects.get((bucket, source["name"])) for source in request.json()["sourceObjects"]]
            if any(source is None for source in sources):
                return Response.error(404, "a source object does not exist")
            data = b"".join(source.data for source in sources if source is not None)
            return Response.of(self.put(bucket, name, data).resource(self.url))
        match = re.fullmatch(r"/(rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", rest)
        if request.method != "POST" or match is None:
            return Response.error(501, f"{request.method} {rest} is not spoken here")
        source = self.objects.get((bucket, name))
        if source is None:
            return Response.error(404, f"No such object: {bucket}/{name}")
        to = urllib.parse.unquote(match[2]), urllib.parse.unquote(match[3])
        if refused := _precondition(request.query, self.objects.get(to)):
            return refused
        resource = self.put(*to, source.data, source.content_type).resource(self.url)
        if match[1] == "copyTo":
            return Response.of(resource)
        size = str(len(source.data))
        done = {"kind": "storage#rewriteResponse", "done": True, "objectSize": size, "totalBytesRewritten": size}
        return Response.of({**done, "resource": resource})

    def _upload(self, request: Request, path: str) -> Response:
        bucket = urllib.parse.unquote(path.split("/")[2])
        if bucket not in self.buckets:
            return Response.error(404, f"The specified bucket does not exist: {bucket}")
        if "upload_id" in request.query:
            return self._continue(request)
        if request.method != "POST":
            # Google's client cancels an upload at this address instead of the upload's own.
            return Response.error(405, f"{request.method} needs an upload_id")
        known = _PRECONDITIONS | _COMMON | {"uploadType", "name"}
        if unknown := request.query.keys() - known:
            return Response.error(501, f"unknown parameters of an upload: {sorted(unknown)}")
        kind = request.query["uploadType"]
        if kind == "resumable":
            properties = request.json()
            name = request.query.get("name") or properties["name"]
            if refused := _precondition(request.query, self.objects.get((bucket, name))):
                return refused
            properties.setdefault("contentType", request.headers.get("X-Upload-Content-Type"))
            key = f"upload-{len(self._uploads)}"
            self._uploads[key] = _Upload(bucket, name, properties, request.query)
            where = f"{self.url}{request.path}?uploadType=resumable&upload_id={key}"
            return Response(200, b"", {"Location": where, "X-GUploader-UploadID": key})
        if kind == "multipart":
            properties, body = _related(request)
        else:
            properties, body = {"contentType": request.headers.get("Content-Type")}, request.body
        name = request.query.get("name") or properties["name"]
        return self._store(request, bucket, name, properties, body)

    def _continue(self, request: Request) -> Response:
        upload = self._uploads.get(request.query["upload_id"])
        if upload is None:
            return Response.error(404, "no such upload")
        if request.method == "DELETE":
            del self._uploads[request.query["upload_id"]]
            return Response(499)
        if upload.done is not None:
            return upload.done
        match = re.fullmatch(r"bytes (?:\*|(\d+)-(\d+))/(\d+|\*)", request.headers.get("Content-Range", ""))
        if match is None and request.headers.get("Content-Range"):
            return Response.error(400, f"Content-Range {request.headers['Content-Range']!r}")
        begin = int(match[1]) if match and match[1] else len(upload.data) if match else 0
        total = len(request.body) if match is None else None if match[3] == "*" else int(match[3])
        if begin > len(upload.data):
            return Response.error(503, f"the chunk begins at {begin}, {len(upload.data)} bytes are here")
        # What is here already came before a broken answer.
        chunk = self._flipped(request, request.body)[len(upload.data) - begin :]
        if total is None and len(request.body) % QUANTUM:
            return Response.error(400, f"a chunk of {len(request.body)} bytes is no multiple of {QUANTUM}")
        upload.data += chunk
        upload.checksums.update(_hashes(request.headers.get("X-Goog-Hash", "")))
        if total is None or len(upload.data) < total:
            headers = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
            return Response(308, b"", headers)
        properties = upload.properties | {_PROPERTY[name]: value for name, value in upload.checksums.items()}
        answer = self._stored(upload.bucket, upload.name, properties, bytes(upload.data), upload.query)
        if answer.status == 200:
            upload.done = answer
        else:
            del self._uploads[request.query["upload_id"]]
        return answer

    def _store(self, request: Request, bucket: str, name: str, properties: dict[str, Any], body: bytes) -> Response:
        given = {_PROPERTY[key]: value for key, value in _hashes(request.headers.get("X-Goog-Hash", "")).items()}
        return self._stored(bucket, name, properties | given, self._flipped(request, body), request.query)

    def _stored(
        self, bucket: str, name: str, properties: Mapping[str, Any], data: bytes, query: Mapping[str, str]
    ) -> Response:
        if refused := _precondition(query, self.objects.get((bucket, name))):
            return refused
        kind = properties.get("contentType") or "application/octet-stream"
        blob = Blob(bucket, name, data, self._generation + 1, kind, properties.get("metadata") or {})
        for key, here in (("crc32c", blob.crc32c), ("md5Hash", blob.md5)):
            if not self.trusting and properties.get(key) not in (None, here):
                return Response.error(400, f"Provided {key} {properties[key]!r} doesn't match calculated {here!r}.")
        return Response.of(self._keep(blob).resource(self.url))

    def _keep(self, blob: Blob) -> Blob:
        self._generation = blob.generation
        if (blob.bucket, blob.name) not in self.objects:
            self._sorted.pop(blob.bucket, None)
        self.objects[blob.bucket, blob.name] = blob
        return blob

    def _flipped(self, request: Request, body: bytes) -> bytes:
        if not body or (fault := self.fault(request.method, target(request), ("flip",))) is None:
            return body
        flipped = bytearray(body)
        flipped[fault.value] ^= 1
        return bytes(flipped)

    def _batch(self, request: Request) -> Response:
        boundary = "stand-in"
        parts = []
        for part in _parts(request):
            line, _, rest = part.lstrip(b"\r\n").partition(b"\n")
            method, url, _ = line.decode().strip().split(" ")
            fields, _, body = rest.replace(b"\r\n", b"\n").partition(b"\n\n")
            split = urllib.parse.urlsplit(url)
            headers = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(fields + b"\n\n")
            query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
            inner = Request(method, split.path, query, headers, body)
            fault = self.fault(method, target(inner), ("fail",))
            response = Response.error(fault.value, "injected") if fault else self.answer(inner)
            self.log.append((inner, response.status))
            status = f"HTTP/1.1 {response.status} {'OK' if response.status < 300 else 'Error'}"
            shown = "".join(f"{key}: {value}\r\n" for key, value in response.headers.items())
            parts.append(
                f"--{boundary}\r\nContent-Type: application/http\r\n\r\n{status}\r\n{shown}\r\n".encode()
                + response.body
            )
        body = b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
        return Response(200, body, {"Content-Type": f"multipart/mixed; boundary={boundary}"})


_PROPERTY = {"crc32c": "crc32c", "md5": "md5Hash"}


def crc32c(data: bytes) -> str:
    """As the service writes it: base64 of the big-endian number."""
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def _order(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _hashes(header: str) -> dict[str, str]:
    pairs = [item.strip().split("=", 1) for item in header.split(",") if item.strip()]
    return dict(pairs)


def _precondition(query: Mapping[str, str], blob: Blob | None) -> Response | None:
    generation = blob.generation if blob else 0
    wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
    if wanted is not None and int(wanted) != generation:
        return Response.error(412, "At least one of the pre-conditions you specified did not hold.")
    if unwanted is not None and int(unwanted) == generation:
        return Response.error(412, "At least one of the pre-conditions you specified did not hold.")
    if query.get("ifMetagenerationMatch", "1") != "1" or query.get("ifMetagenerationNotMatch") == "1":
        return Response.error(412, "At least one of the pre-conditions you specified did not hold.")
    return None


def _media(request: Request, blob: Blob) -> Response:
    headers = {
        "Content-Type": blob.content_type,
        "X-Goog-Hash": f"crc32c={blob.crc32c},md5={blob.md5}",
        "X-Goog-Generation": str(blob.generation),
        "X-Goog-Metageneration": "1",
        "X-Goog-Stored-Content-Encoding": "identity",
        "X-Goog-Stored-Content-Length": str(len(blob.data)),
        "Accept-Ranges": "bytes",
        "ETag": f"e{blob.generation}",
    }
    size = len(blob.data)
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if asked is None:
        return Response(200, blob.data, headers)
    if asked[1]:
        begin, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else size, size)
    else:
        begin, end = max(0, size - int(asked[2])), size
    if begin >= size:
        error = Response.error(416, "The requested range cannot be satisfied.")
        return Response(416, error.body, {**error.headers, "Content-Range": f"bytes */{size}"})
    return Response(206, blob.data[begin:end], {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{size}"})


def _parts(request: Request) -> list[bytes]:
    """The payloads of a multipart body, each without its own headers."""
    match = re.search(r"boundary=\"?([^\";]+)\"?", request.headers.get("Content-Type", ""))
    assert match is not None
    mark = b"--" + match[1].encode()
    payloads = []
    for part in (b"\n" + request.body).split(b"\n" + mark)[1:]:
        if part.startswith(b"--"):
            break
        payloads.append(re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1].removesuffix(b"\r"))
    return payloads


def _related(request: Request) -> tuple[dict[str, Any], bytes]:
    """Properties and payload of a multipart upload."""
    properties, payload = _parts(request)
    return json.loads(properties), payload
