"""Which requests the explorer answers: those that carry its token, and that another site's page did not make.

The token is the first part of every path. A cookie would do less: a browser sends those of 127.0.0.1 to every port, so
also to the server of another user of this machine.
"""

import hmac
import re
import secrets
from typing import Any

from bokeh.server.tornado import BokehTornado
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import Router
from tornado.web import OutputTransform, RedirectHandler, RequestHandler

_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
"""Names of this machine. The port is free, because ssh forwards from any."""
_SERVED = re.compile(r"/|/ws|/(static|export)/.+")
"""Paths behind the token: Bokeh's others (a page for other sites to embed, metadata) are not served."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_REFUSED = """Gatokit answers only the address that gatokit inspect --serve printed, with all that follows the port.
It changes with every start: if this page was open before, open the address of the server that runs now.
"""


class Access(Router):
    """Stands before a Bokeh application, and lets its handlers see only requests that are allowed."""

    def __init__(self, application: BokehTornado, token: str) -> None:
        self._application = application
        self._token = token

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate | None:
        """The handler of a request. All that are refused get the same answer, 403."""
        given, separator, rest = request.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(given.encode(), self._token.encode()) or not _is_own(request.headers):
            return self._application.get_handler_delegate(request, _Refused, {"status": 403})
        if not separator:
            return self._application.get_handler_delegate(request, RedirectHandler, {"url": f"/{given}/"})
        if not _SERVED.fullmatch(separator + rest):
            return self._application.get_handler_delegate(request, _Refused, {"status": 404})
        return self._application.find_handler(request, **kwargs)


def new_token() -> str:
    """A random token of 128 bits, in characters that a double click selects whole."""
    return secrets.token_hex(16)


def _is_own(headers: HTTPHeaders) -> bool:
    """Whether a request names this machine, and no page of another origin made it.

    Any page may link to the explorer; a script, image or frame of another page gets nothing.
    """
    hosts = headers.get_list("Host")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return False
    if any(origin != f"http://{hosts[0]}" for origin in headers.get_list("Origin")):
        return False
    made_by = headers.get("Sec-Fetch-Site", "none")
    return made_by in ("none", "same-origin") or headers.get("Sec-Fetch-Dest") == "document"


class _Refused(RequestHandler):
    """Answers every method with a status and a sentence."""

    def initialize(self, status: int) -> None:
        self._status = status

    def prepare(self) -> None:
        self.set_status(self._status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(_REFUSED if self._status == 403 else "There is no such page.\n")


class PrivateHeaders(OutputTransform):
    """Puts headers on every response: other sites do not frame, read or store it, nor learn its address."""

    def __init__(self, request: HTTPServerRequest) -> None:
        self._is_static = request.path.split("/")[2:3] == ["static"]

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """The response with its headers."""
        headers.pop("Server", None)
        for name, value in _HEADERS.items():
            headers[name] = value
        if not self._is_static or status_code >= 400:
            headers["Cache-Control"] = "no-store"
        return status_code, headers, chunk
