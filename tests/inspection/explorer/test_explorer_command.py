"""``gatokit inspect --serve`` as a command: what it refuses, whom it answers, how it ends."""

import signal
import socket
import subprocess
import sys
from urllib.parse import urlparse

import pytest
from explorer_server import COMMAND, serving, status

from gatokit.cli.main import main


def test_it_answers_this_machine_alone_and_ends_on_sigterm(small):
    command = [*COMMAND, str(small.built), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        first, address, last = (server.stdout.readline().removesuffix("\n") for _ in range(3))
        assert first == f"{small.built} is at this address, on this machine alone; Ctrl-C stops it."
        assert last == "Whoever has the address sees what you see; it ends with the server."
        assert status(address, urlparse(address).path) == 200
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", urlparse(address).port), timeout=5)
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
