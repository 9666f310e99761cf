"""``gatokit inspect --serve`` in a process of its own, and raw requests to it."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

COMMAND = [sys.executable, "-m", "gatokit.cli.main", "inspect"]


@contextmanager
def serving(directory: Path, *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of an explorer at a free port, and its process."""
    command = [*COMMAND, str(directory), "--serve", "--port", "0", "--json", *words]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield json.loads(server.stdout.readline())["address"], server
    finally:
        server.kill()
        server.communicate()


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    text: str


def ask(address: str, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
    """The answer to a request of ``path`` as it stands; the header Host is the address's unless given."""
    own = {"Host": urlparse(address).netloc, "Connection": "close"}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (own | (headers or {})).items())]
    with socket.create_connection(("127.0.0.1", urlparse(address).port), timeout=30) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        with HTTPResponse(connection, method=method) as response:
            response.begin()
            return Answer(response.status, dict(response.getheaders()), response.read().decode("utf-8", "replace"))


def status(address: str, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> int:
    """The status of that answer."""
    return ask(address, path, headers, method).status


def websocket(session_token: str) -> dict[str, str]:
    """The headers that ask for a session's websocket."""
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": f"bokeh, {session_token}",
    }


def session_token(page: str) -> str:
    """The token of a page's session."""
    return page.partition('"token":"')[2].partition('"')[0]
