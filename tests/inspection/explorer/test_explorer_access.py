"""Whom the explorer answers: every route, by token, host and origin, asked of the real server."""

import base64
import json
import re
from urllib.parse import urlparse

import pytest
from explorer_server import ask, serving, session_token, status, websocket

ROUTES = [
    "",
    "ws",
    "metadata",
    "autoload.js?bokeh-autoload-element=x",
    "static/js/bokeh.min.js",
    "static/extensions/panel/images/favicon.ico",
    "export/aaaa/episodes.csv",
    "components/panel.io.server/Server/__doc__/x",
    "favicon.ico",
    "liveness",
    "?bokeh-session-id=chosen",
    "?" + "a" * 8000,
]
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
REFUSED = """Gatokit answers only the address that gatokit inspect --serve printed, with all that follows the port.
It changes with every start: if this page was open before, open the address of the server that runs now.
"""


@pytest.fixture(scope="module")
def address(small):
    with serving(small.built, "--dataset", "grid") as (address, _):
        yield address


@pytest.fixture(scope="module")
def root(address):
    """The path of the explorer: its token between two slashes."""
    return urlparse(address).path


@pytest.fixture(scope="module")
def session(address, root):
    """The token of a page's session."""
    return session_token(ask(address, root).text)


@pytest.fixture(scope="module")
def own(address):
    return urlparse(address).netloc


def test_the_token_has_128_bits_and_the_address_one_line(address):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[0-9a-f]{32}/", address)
    assert len(address) < 80


def test_another_start_has_another_token(address, small):
    with serving(small.built, "--dataset", "grid") as (other, _):
        assert urlparse(other).path != urlparse(address).path
        assert status(other, urlparse(address).path) == 403


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_without_the_token_every_route_is_refused_alike(address, root, method):
    wrong = f"/{root[1:-2]}{'1' if root[-2] == '0' else '0'}/"
    paths = [before + route for before in ("/", wrong, f"/{root}", f"/x{root}") for route in ROUTES]
    answers = [ask(address, path, method=method) for path in paths]
    assert [answer.status for answer in answers] == [403] * 48
    assert {answer.text for answer in answers} == {"" if method == "HEAD" else REFUSED}
    assert len({tuple(name for name in answer.headers) for answer in answers}) == 1


def test_with_the_token_only_what_the_page_needs_is_served(address, root):
    assert {route[:40]: status(address, root + route) for route in ROUTES} == {
        "": 200,
        "ws": 400,
        "metadata": 404,
        "autoload.js?bokeh-autoload-element=x": 404,
        "static/js/bokeh.min.js": 200,
        "static/extensions/panel/images/favicon.i": 200,
        "export/aaaa/episodes.csv": 404,
        "components/panel.io.server/Server/__doc__"[:40]: 404,
        "favicon.ico": 404,
        "liveness": 404,
        "?bokeh-session-id=chosen": 403,
        ("?" + "a" * 39): 200,
    }
    moved = ask(address, root[:-1])
    assert (moved.status, moved.headers["Location"]) == (301, root)


HOSTS = {
    "127.0.0.1:{port}": 200,
    "localhost:{port}": 200,
    "LOCALHOST:{port}": 200,
    "[::1]:{port}": 200,
    "127.0.0.1:1": 200,
    "127.0.0.1": 200,
    "evil.example:{port}": 403,
    "127.0.0.1.evil.example:{port}": 403,
    "evil.example": 403,
    "127.0.0.2:{port}": 403,
    "0.0.0.0:{port}": 403,
    "localhost.:{port}": 403,
    "127.0.0.1:{port}@evil.example": 400,
    "127.0.0.1:{port},evil.example": 400,
    "": 403,
}


@pytest.mark.parametrize(("host", "expected"), HOSTS.items())
def test_a_host_is_judged_by_its_name(address, root, host, expected):
    host = host.format(port=urlparse(address).port)
    answers = [status(address, root + route, {"Host": host}) for route in ("", "static/js/bokeh.min.js")]
    assert answers == [expected] * 2


def test_two_hosts_are_refused(address, root, own):
    assert status(address, root, {"Host": f"{own}\r\nHost: {own}"}) == 400


ORIGINS = {
    None: 101,
    "http://{own}": 101,
    "http://localhost:{port}": 403,
    "http://127.0.0.1:1": 403,
    "https://{own}": 403,
    "http://evil.example": 403,
    "http://evil.example:{port}": 403,
    "http://{own}.evil.example": 403,
    "http://{own}@evil.example": 403,
    "null": 403,
    "": 403,
    "file://": 403,
}


@pytest.mark.parametrize("fetch_site", [None, "none", "same-origin", "same-site", "cross-site"])
@pytest.mark.parametrize(("origin", "expected"), ORIGINS.items())
def test_a_websocket_is_open_to_its_own_page_alone(address, root, session, own, origin, expected, fetch_site):
    headers = websocket(session)
    if origin is not None:
        headers["Origin"] = origin.format(own=own, port=urlparse(address).port)
    if fetch_site is not None:
        headers["Sec-Fetch-Site"] = fetch_site
    if fetch_site in ("same-site", "cross-site"):
        expected = 403
    assert status(address, root + "ws", headers) == expected
    assert status(address, root + "ws", {**headers, "Host": f"evil.example:{urlparse(address).port}"}) == 403
    assert status(address, "/ws", headers) == 403


def test_a_page_of_a_forwarded_port_has_its_websocket(address, root):
    headers = websocket(session_token(ask(address, root, {"Host": "localhost:8000"}).text))
    assert status(address, root + "ws", {**headers, "Host": "localhost:8000", "Origin": "http://localhost:8000"}) == 101


@pytest.mark.parametrize(
    ("fetched", "expected"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "script"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "script"}, 200),
    ],
)
def test_another_page_may_link_to_it_and_no_more(address, root, fetched, expected):
    assert status(address, root, fetched) == expected


def test_a_session_is_signed_and_nobody_chooses_its_id(address, root, session):
    content = json.loads(base64.urlsafe_b64decode(session.split(".")[0] + "=="))
    content["session_id"] = "chosen"
    forged = base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")
    resigned = f"{forged}.{session.split('.')[1]}"
    for wrong in (forged, resigned, f"{session.split('.')[0]}.AAAA"):
        assert status(address, f"{root}?bokeh-token={wrong}") == 403
    assert status(address, f"{root}?bokeh-token={session}") == 200
    assert status(address, root, {"Bokeh-Session-Id": "chosen"}) == 403


def test_a_page_tells_nothing_of_its_request(address, root):
    page = ask(address, root, {"Cookie": "other=private", "X-Private": "private"})
    payload = base64.urlsafe_b64decode(session_token(page.text).split(".")[0] + "==")
    assert b"session_id" in payload
    assert b"private" not in payload
    assert "Set-Cookie" not in page.headers


@pytest.mark.parametrize("path", ["", "static/js/bokeh.min.js", "nowhere", "export/aaaa/episodes.csv", "../", "ws"])
def test_every_answer_has_the_same_headers(address, root, path):
    headers = ask(address, root + path).headers
    assert headers["Content-Security-Policy"] == POLICY
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "Server" not in headers
    assert "Access-Control-Allow-Origin" not in headers
    assert headers.get("Cache-Control") == (None if path.startswith("static/") else "no-store")
