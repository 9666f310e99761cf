"""``gatokit inspect --serve`` as a command: what it refuses, whom it answers, how it ends."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import pytest

from gatokit.cli.main import main

COMMAND = [sys.executable, "-m", "gatokit.cli.main", "inspect"]


@contextmanager
def serving(directory: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The first line of an explorer in a process of its own, and that."""
    command = [*COMMAND, str(directory), "--serve", "--port", "0", "--dataset", "grid"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline(), server
    finally:
        server.kill()
        server.communicate()


def handshake(port: int, origin: str) -> str:
    """The status line that a websocket of a page at ``origin`` is answered with."""
    page = urlopen(f"http://127.0.0.1:{port}/").read().decode()
    token = page.partition('"token":"')[2].partition('"')[0]
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: bokeh, {token}",
        f"Origin: {origin}",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return connection.recv(200).decode().splitlines()[0]


def status(address: str) -> int:
    try:
        return urlopen(address).status
    except HTTPError as error:
        return error.code


def test_it_answers_this_machine_alone_and_ends_on_sigterm(small):
    with serving(small.built) as (line, server):
        address = next(word for word in line.split() if word.startswith("http"))
        port = urlparse(address).port
        stops = f"{small.built} is at http://127.0.0.1:{port}/ on this machine alone; Ctrl-C stops it\n"
        assert line == stops
        assert "101" in handshake(port, f"http://127.0.0.1:{port}")
        assert "101" in handshake(port, f"http://localhost:{port}")
        assert "403" in handshake(port, "http://example.com")
        assert "403" in handshake(port, f"http://127.0.0.1:{port + 1}")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        assert status(f"{address}export/nobody/episodes.csv") == 404
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=30)
        assert (server.returncode, out) == (0, "")
        assert "Traceback" not in err


def test_ctrl_c_ends_it_cleanly(small):
    with serving(small.built) as (_, server):
        server.send_signal(signal.SIGINT)
        assert (server.communicate(timeout=30), server.returncode) == (("", ""), 0)


def test_a_port_that_is_taken_is_a_sentence(small, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["inspect", str(small.built), "--serve", "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"gatokit: --port {port}: is taken; give another one, or 0 for any that is free\n"


def test_a_port_that_is_none_is_a_sentence(small, capsys):
    assert main(["inspect", str(small.built), "--serve", "--port", "70000"]) == 2
    assert capsys.readouterr().err.startswith("gatokit: --port 70000: cannot be had (")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--serve --task reach", "--serve and --task exclude each other: give one of them"),
        ("--serve --at 0.9", "--serve and --at exclude each other: give one of them"),
        ("--serve --step 1", "--serve and --step exclude each other: give one of them"),
        ("--serve --html x.html", "--serve and --html exclude each other: give one of them"),
        ("--serve --card x.md", "--serve and --card exclude each other: give one of them"),
        ("--serve --run tiny", "--serve and --run exclude each other: give one of them"),
        ("--port 5006", "--port belongs to --serve: give --serve as well"),
    ],
)
def test_other_views_beside_it_are_refused(small, words, sentence, capsys):
    assert main(["inspect", str(small.built), *words.split()]) == 2
    assert capsys.readouterr().err == f"gatokit: {sentence}\n"


def test_without_panel_the_extra_is_named(small):
    program = (
        "import sys; sys.modules['panel'] = None; from gatokit.cli.main import main; "
        f"sys.exit(main({['inspect', str(small.built), '--serve']!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "gatokit: panel is not installed; run in a checkout of gatokit: pip install '.[serve]'\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_as_json_the_address_is_an_object(small):
    command = [*COMMAND, str(small.scanned), "--serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = json.loads(server.stdout.readline())["address"]
        assert status(address) == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
