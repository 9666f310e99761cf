"""A small HTTP server on loopback whose answers a test may spoil. The Google stand-ins are built on it."""

import json
import re
import socket
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    """What a client asked. ``path`` is as it was sent, percent signs included; ``query`` is decoded."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The path decoded: what fault patterns and tests look at."""
        return urllib.parse.unquote(self.path)

    def json(self) -> Any:
        """The body, an empty one being an empty object."""
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Response:
    """What the server answers."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: object, status: int = 200, **headers: str) -> Self:
        """A value as JSON."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=UTF-8", **headers})

    @classmethod
    def error(cls, status: int, message: str) -> Self:
        """An error in the form of Google's JSON APIs."""
        return cls.of(
            {"error": {"code": status, "message": message, "errors": [{"reason": "stand-in", "message": message}]}},
            status,
        )


@dataclass
class Fault:
    """Spoils the next ``times`` requests whose method is ``method`` ("" is any) and whose ``name?query`` holds a match
    of ``pattern``. ``hits`` says how many it has spoilt."""

    kind: str
    times: int
    method: str
    pattern: str
    value: int = 0
    hits: int = 0

    def matches(self, method: str, target: str) -> bool:
        """Whether it spoils this one."""
        return self.times > 0 and self.method in ("", method) and re.search(self.pattern, target) is not None


class LoopbackServer:
    """Answers HTTP on a free port of localhost from threads, one request at a time inside ``answer``.

    ``log`` holds every request with the status of its answer, 0 for a dropped connection.
    """

    def __init__(self) -> None:
        self.log: list[tuple[Request, int]] = []
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._open: set[socket.socket] = set()
        outer = self

        class Handler(_Handler):
            owner = outer

        # Clients must say "localhost": Beam takes another host for a Dataflow service of its own.
        self._server = ThreadingHTTPServer(("localhost", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        with self.lock:
            for connection in self._open:
                # The peer may have gone already.
                _quietly(lambda connection=connection: connection.shutdown(socket.SHUT_RDWR))

    def prepare(self, request: Request) -> None:
        """Called before ``answer`` and not under ``lock``: the place to wait."""

    def answer(self, request: Request) -> Response:
        """What to answer; called under ``lock``."""
        raise NotImplementedError

    def partial(self, request: Request) -> None:
        """A request whose connection broke after the part of the body that ``request`` holds; under ``lock``."""

    def requests(self, method: str = "", pattern: str = "") -> list[Request]:
        """The requests so far with that method and a match of ``pattern`` in ``name?query``, oldest first."""
        with self.lock:
            return [
                request
                for request, _ in self.log
                if method in ("", request.method) and re.search(pattern, target(request))
            ]

    # Faults.

    def fail(self, times: int = 1, status: int = 503, method: str = "", pattern: str = "") -> Fault:
        """Answers ``status`` in place of doing anything."""
        return self._spoil(Fault("fail", times, method, pattern, status))

    def truncate(self, times: int = 1, keep: int = 0, method: str = "GET", pattern: str = "alt=media") -> Fault:
        """Announces the whole body, sends its first ``keep`` bytes and closes the connection."""
        return self._spoil(Fault("truncate", times, method, pattern, keep))

    def trickle(self, times: int = 1_000_000, piece: int = 7, method: str = "GET", pattern: str = "alt=media") -> Fault:
        """Sends the body as many packets of ``piece`` bytes, without waiting between them."""
        return self._spoil(Fault("trickle", times, method, pattern, piece))

    def drop(self, times: int = 1, after: int = 0, method: str = "", pattern: str = "uploadType|upload_id") -> Fault:
        """Closes the connection once ``after`` bytes of the request's body have come."""
        return self._spoil(Fault("drop", times, method, pattern, after))

    def lose_answer(self, times: int = 1, method: str = "", pattern: str = "") -> Fault:
        """Does what was asked and closes the connection instead of saying so."""
        return self._spoil(Fault("lose_answer", times, method, pattern))

    def flip(self, times: int = 1, at: int = 0, method: str = "", pattern: str = "uploadType|upload_id") -> Fault:
        """Flips a bit of the byte ``at`` of the payload on its way to the server; a negative ``at`` counts from the
        end. See ``StorageServer.trusting`` for whether the server says so."""
        return self._spoil(Fault("flip", times, method, pattern, at))

    def heal(self) -> None:
        """Forgets every fault."""
        with self.lock:
            self._faults.clear()

    def _spoil(self, fault: Fault) -> Fault:
        with self.lock:
            self._faults.append(fault)
        return fault

    def fault(self, method: str, target: str, kinds: tuple[str, ...]) -> Fault | None:
        """Takes one of the given kinds that is due."""
        with self.lock:
            for fault in self._faults:
                if fault.kind in kinds and fault.matches(method, target):
                    fault.times -= 1
                    fault.hits += 1
                    return fault
        return None


def target(request: Request) -> str:
    """What patterns are matched with: ``name?query``."""
    return request.name + "?" + "&".join(f"{key}={value}" for key, value in request.query.items())


class _Handler(BaseHTTPRequestHandler):
    owner: LoopbackServer
    protocol_version = "HTTP/1.1"
    # One packet an answer: without these two every answer waits 40 ms for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.owner.lock:
            self.owner._open.add(self.request)

    def finish(self) -> None:
        with self.owner.lock:
            self.owner._open.discard(self.request)
        _quietly(super().finish)

    def handle(self) -> None:
        # The client may have gone already.
        _quietly(super().handle)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the log is ``LoopbackServer.log``."""

    def _serve(self) -> None:
        owner = self.owner
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        request = Request(self.command, url.path, query, self.headers, b"")
        where = target(request)
        drop = owner.fault(self.command, where, ("drop",))
        body = self._body(drop.value if drop else None)
        request = Request(self.command, url.path, query, self.headers, body)
        if drop is not None:
            with owner.lock:
                owner.partial(request)
                owner.log.append((request, 0))
            self._hang_up()
            return
        fault = owner.fault(self.command, where, ("fail", "truncate", "trickle", "lose_answer"))
        owner.prepare(request)
        with owner.lock:
            fails = fault is not None and fault.kind == "fail"
            response = Response.error(fault.value, "injected") if fault and fails else self._answer(request)
            lost = fault is not None and fault.kind == "lose_answer"
            owner.log.append((request, 0 if lost else response.status))
        if lost:
            self._hang_up()
            return
        self._send(response, fault)

    def _answer(self, request: Request) -> Response:
        try:
            return self.owner.answer(request)
        except Exception:
            # No client tries this one again.
            return Response.error(400, f"the stand-in failed: {traceback.format_exc()}")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _body(self, limit: int | None) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)[:limit]
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if limit is None else min(limit, length))

    def _send(self, response: Response, fault: Fault | None) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if response.status != 204:
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else response.body
        if fault is not None and fault.kind == "truncate":
            self.wfile.write(body[: fault.value])
            self.wfile.flush()
            self._hang_up()
        elif fault is not None and fault.kind == "trickle":
            for begin in range(0, len(body), fault.value):
                self.wfile.write(body[begin : begin + fault.value])
                self.wfile.flush()
        else:
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        _quietly(lambda: self.request.shutdown(socket.SHUT_RDWR))


def _quietly(work: Callable[[], object]) -> None:
    try:
        work()
    except OSError:
        return
