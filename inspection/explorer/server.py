"""The page of a session, and the server that serves it on this machine alone, with the lists that are exported."""

import asyncio
import errno
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import panel as pn
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from panel.io.application import build_applications
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, RequestHandler

from gatokit.inspection.explorer.access import Access, PrivateHeaders, new_token
from gatokit.inspection.explorer.browse import Browse
from gatokit.inspection.explorer.episode import Opened
from gatokit.inspection.explorer.query import Selection, config_lines
from gatokit.inspection.explorer.widgets import WIDGET_STYLE, Words
from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.words import counted, visible

ADDRESS = "127.0.0.1"
LIST = "episodes.csv"
"""The name of an exported list."""
_HINT = "Tick episodes to select them; they become a list for keep: {episodes: FILE}."


def serve(directory: Directory, datasets: Sequence[DatasetReader], port: int, ready: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. ``ready`` is called with the address once it answers. Port 0 is any free one.

    The address has a token that is new at every start; nothing is answered without it.

    Raises ConfigError if the port is taken.
    """
    for dataset in datasets:  # an index that cannot be read is an error here, and would be an empty page later
        dataset.missing_columns()
        _ = dataset.tasks
    try:
        listener = socket.create_server((ADDRESS, port), backlog=128)
    except (OSError, OverflowError) as error:
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is taken" if is_taken else f"cannot be had ({getattr(error, 'strerror', error)})"
        raise ConfigError(f"--port {port}: {reason}; give another one, or 0 for any that is free") from None
    token = new_token()
    selections: dict[str, Selection] = {}

    def new_session() -> pn.Template:
        key = secrets.token_urlsafe(16)
        selections[key] = Selection({dataset.name: dataset for dataset in datasets})
        pn.state.on_session_destroyed(lambda _: selections.__delitem__(key))
        return session_page(directory, datasets, selections[key], f"export/{key}/{LIST}")

    pn.extension(notifications=False)
    application = BokehTornado(
        build_applications({"/": new_session}, title=f"Gatokit: {visible(directory.path.name)}"),
        prefix=token,
        extra_patterns=[(rf"/export/([\w-]+)/{LIST}", _Export, {"selections": selections})],
        extra_websocket_origins=["*"],  # Access compares the origin with the host, whose port ssh may change.
        sign_sessions=True,
        secret_key=secrets.token_bytes(32),
        include_headers=[],
        include_cookies=[],
        transforms=[PrivateHeaders],
        log_function=lambda _: None,
    )
    http_server = HTTPServer(Access(application, token), max_body_size=65_536)
    listener.setblocking(False)
    http_server.add_socket(listener)
    loop = IOLoop.current()
    server = BaseServer(loop, application, http_server)
    server.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.add_callback_from_signal(loop.stop))
    ready(f"http://{ADDRESS}:{listener.getsockname()[1]}/{token}/")
    loop.start()
    server.stop()


class _Export(RequestHandler):
    """A session's selection as a list, which is sent as it is read."""

    def initialize(self, selections: dict[str, Selection]) -> None:
        self._selections = selections

    async def get(self, key: str) -> None:
        if key not in self._selections:
            raise HTTPError(404)
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="{LIST}"')
        chunks = self._selections[key].copy().csv()
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            self.write(chunk)
            await self.flush()


def session_page(
    directory: Directory, datasets: Sequence[DatasetReader], selection: Selection, export: str
) -> pn.Template:
    """The page of a new session; the list of its ``selection`` is at the address ``export``."""
    opened = Opened(directory)
    summary = Words()
    clear = pn.widgets.Button(label="clear", stylesheets=[WIDGET_STYLE], margin=(6, 0, 0, 0), visible=False)

    def draw_selection() -> None:
        counts = selection.counts()
        clear.visible = bool(counts)
        if counts:
            of = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
            summary.data = {
                "lines": [f"{counted(sum(counts.values()), 'episode')} selected: {of}"],
                "link": {"href": export, "name": LIST, "text": f"download {LIST}"},
                "code": config_lines(counts, LIST),
            }
        else:
            summary.data = {"lines": [_HINT], "style": "soft"}

    browse = Browse(datasets, selection, opened.show, draw_selection)

    def clear_all(_: object) -> None:
        selection.clear()
        browse.draw_rows()
        draw_selection()

    clear.on_click(clear_all)
    draw_selection()
    pn.state.onload(browse.refresh)
    names = ("dataset", "task", "kept", "split", "reason", "text", "where", "wrong", "counts", "actions", "rows")
    roots: dict[str, Any] = {name: getattr(browse, name) for name in names}
    roots |= {"tasks": browse.tasks.table, "task_text": browse.tasks.text, "opened": opened.panel}
    roots["selection"] = pn.Column(summary, clear, sizing_mode="stretch_width")
    page = pn.Template(_file("page.html"), items=roots)
    kinds = "a finished build" if directory.manifest.content == "build" else "a scan: no tokens are stored"
    page.add_variable("style", _file("page.css"))
    page.add_variable("name", visible(directory.path.name or str(directory.path)))
    page.add_variable("about", f"{visible(str(directory.path))}: {kinds}, {counted(len(datasets), 'dataset')}")
    return page


def _file(name: str) -> str:
    return (resources.files("gatokit.inspection.explorer") / name).read_text(encoding="utf-8")
