"""The opened episode or document: its index row, its steps to play with plots, its parts to read, all its tokens.

A new view is a name in ``VIEWS``, an item of ``Opened.panel`` and a branch of ``Opened._show``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import panel as pn
from bokeh.events import Tap
from bokeh.models import BasicTicker, ColumnDataSource, HoverTool, Legend, Span
from bokeh.plotting import figure

from gatokit.inspection.explorer.query import columns_of, value_of
from gatokit.inspection.explorer.widgets import WIDGET_STYLE, Parts, Player, Table, Words, column, table_data
from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.read.index import EpisodeRow
from gatokit.inspection.read.values import (
    DecodedDocument,
    DecodedEpisode,
    Line,
    data_url,
    flag_names,
    kind_name,
    number_text,
    short_name,
)
from gatokit.schemas.errors import GatokitError, RejectedError
from gatokit.schemas.tokens import EncodedImage, TokenKind
from gatokit.schemas.words import counted, shown, visible
from gatokit.tokenizers.image_codec import probe

CONTENT, TOKENS, ROW = "content", "tokens", "index row"
VIEWS = (CONTENT, TOKENS, ROW)
THIS_STEP, THIS_RECORD, ALL = "this step", "its record", "all"
MOST_NUMBERS = 400
"""Of a field in a step."""
MOST_POINTS = 2_000
"""Of a line."""
MOST_ACTIONS = 8
"""Components of an action that are drawn."""
_MOST_CHARACTERS = 50_000
"""Of a document that are shown as text."""
_TOKENS_A_PAGE = 50
_TOKEN_COLUMNS = [
    column("token", number=True, about="counted from the first token"),
    column("record", number=True, about="counted from the first record"),
    column("step", number=True),
    column("id", number=True, about="65535 is an image patch"),
    column("kind", style="word"),
    column("field", style="word"),
    column("value", style="wide", about="what the token decodes to: a number, a text piece, a patch's row and column"),
    column("position", number=True, about="within the step's observation"),
    column("target", about="whether tokens of this kind are predicted"),
]
_COLORS = ("#2f86a6", "#d07d31", "#7a9a3a", "#a05fa5", "#c0564b", "#5b74c9", "#9a8438", "#4a9c8c")
_SOFT = "#848b98"
"""Of axes; it can be read on white and on black."""
_EDGE = ":host { clip-path: inset(1px 0 0 2px); }"
"""Bokeh clears a canvas up to half a pixel from its edge, and would leave there what was drawn before."""


class Opened:
    """What is open in one session."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._episode: DecodedEpisode | None = None
        self._tokens: DecodedEpisode | DecodedDocument | None = None
        self._step = 0
        self._marks: list[Span] = []
        self._title = Words(data={"lines": ["Click a row to open it."], "style": "title"})
        self._fault = Words(visible=False)
        style: dict[str, Any] = {"stylesheets": [WIDGET_STYLE], "margin": (6, 0), "visible": False}
        self._view = pn.widgets.RadioButtonGroup(options=list(VIEWS), value=CONTENT, **style)
        self._player = Player({"step": self.go}, visible=False)
        self._figures = pn.Column(sizing_mode="stretch_width", visible=False, margin=(10, 0, 0, 0))
        self._parts = Parts(visible=False)
        self._scope = pn.widgets.RadioButtonGroup(options=[THIS_STEP, THIS_RECORD, ALL], **style)
        self._token_table = Table({"begin": self._turn}, visible=False)
        self._row = Table({}, visible=False)
        self._view.param.watch(lambda _: self._show(), "value")
        self._scope.param.watch(lambda _: self._turn(0), "value")
        self.panel = pn.Column(
            self._title, self._fault, self._view, self._player, self._figures, self._parts, self._scope,
            self._token_table, self._row, sizing_mode="stretch_width",
        )  # fmt: skip

    def show(self, dataset: DatasetReader, row: EpisodeRow) -> None:
        """Opens an episode or document."""
        self._episode = self._tokens = None
        self._step, self._marks = 0, []
        self._figures.clear()
        names = [dataset.name] if row.task in (None, dataset.name) else [dataset.name, str(row.task)]
        lines = [row.episode_id, ", ".join([*names, *_facts(row)])]
        self._title.data = {"lines": lines, "style": "title", "reveal": f"{dataset.name} {row.episode_id}"}
        self._row.data = _row_table(dataset, row)
        fault = "" if row.shard is not None else row.why_unstored
        if row.shard is not None:
            try:
                text = self._directory.text
                if dataset.holds_documents:
                    document = dataset.document(row)
                    self._parts.data = {"parts": _part_data(document.parts)}
                    self._tokens = DecodedDocument(document, text)
                else:
                    self._episode = self._tokens = DecodedEpisode(dataset.episode(row), text)
                    self.go(0)
            except GatokitError as error:
                fault = str(error)
        self._fault.param.update(visible=bool(fault), data={"lines": [fault], "style": "wrong"})
        self._show()

    def go(self, step: int) -> None:
        """Shows a step."""
        if self._episode is None:
            return
        episode = self._episode.episode
        self._step = min(max(int(step), 0), episode.steps - 1)
        about = {"episode": episode.row.episode_id, "steps": episode.steps}
        self._player.data = about | step_data(self._episode, self._step)
        for mark in self._marks:
            mark.location = self._step
        if self._view.value == TOKENS:
            self._turn(0)

    def _show(self) -> None:
        view = ROW if self._tokens is None else self._view.value
        self._view.visible = self._tokens is not None
        self._player.visible = view in (CONTENT, TOKENS) and self._episode is not None
        self._figures.visible = view == CONTENT and self._episode is not None
        if self._figures.visible and self._episode is not None and not self._figures.objects:
            for drawn, mark in _plots(self._episode, self._step, self.go):
                self._figures.append(pn.pane.Bokeh(drawn, sizing_mode="stretch_width"))
                self._marks.append(mark)
        self._parts.visible = view == CONTENT and self._episode is None
        self._scope.visible = view == TOKENS and self._episode is not None
        self._token_table.visible = view == TOKENS
        self._row.visible = view == ROW
        if view == TOKENS:
            self._turn(0)

    def _turn(self, begin: int) -> None:
        """Shows the page of tokens that begins with the one at ``begin`` of those in scope."""
        tokens = self._tokens
        if tokens is None:
            return
        if isinstance(tokens, DecodedDocument) or self._scope.value == ALL:
            scope = range(len(tokens))
        else:
            step = tokens.of_step(self._step)
            scope = step if self._scope.value == THIS_STEP else tokens.of_record(step.start)
        begin = min(max(int(begin), 0), max(len(scope) - 1, 0))
        rows = [
            [
                *map(shown, (token.at, token.record, token.step)), str(token.id), kind_name(token.kind), token.field,
                _quoted(token.value) if token.kind == TokenKind.TEXT else token.value, shown(token.position),
                "yes" if token.is_target else "no",
            ]
            for token in tokens.named(scope[begin : begin + _TOKENS_A_PAGE])
        ]  # fmt: skip
        self._token_table.data = table_data(
            _TOKEN_COLUMNS, rows, begin=begin, total=len(scope), size=_TOKENS_A_PAGE, opens=False, unit="tokens"
        )


def _facts(row: EpisodeRow) -> list[str]:
    """The line below the id, in parts."""
    facts = [f"agent {row.agent}"] if row.agent else []
    if row.steps is not None:
        facts.append(counted(row.steps, "step"))
    if row.episode_return is not None:
        facts.append(f"return {shown(row.episode_return)}")
    if row.threshold is not None:
        facts.append(f"threshold {shown(row.threshold)}")
    if row.tokens is not None:
        facts.append(counted(row.tokens, "token"))
    if row.record_tokens:
        first, last = row.first_record or 0, (row.first_record or 0) + len(row.record_tokens) - 1
        facts.append(f"record {first}" if first == last else f"records {first} to {last}")
    return [*facts, *([row.split] if row.split else []), *([f"of {row.shard}"] if row.shard else [])]


def _row_table(dataset: DatasetReader, row: EpisodeRow) -> dict[str, Any]:
    lines = [[name, shown(value_of(row, name)), about.about] for name, about in columns_of(dataset).items()]
    sizes = "–" if row.record_tokens is None else ", ".join(f"{size:,}" for size in row.record_tokens[:1000])
    lines.append(["record_tokens", sizes, "tokens of each of its records"])
    columns = [column("column"), column("value", style="wide"), column("what it is", style="note")]
    return table_data(columns, lines, opens=False)


def step_data(decoded: DecodedEpisode, step: int) -> dict[str, Any]:
    """What ``Player`` draws of a step: images, and values as text."""
    episode, images, observation, action = decoded.episode, [], [], []
    for field, value in decoded.values(step):
        name = short_name(field)
        if isinstance(value, EncodedImage):
            images.append({"name": name, "height": value.height, "width": value.width} | _image_data(value))
        elif field.is_action:
            label = name if name == "action" else f"action {name}"
            action.append((f"action/{name}", label, field.kind, _text(value)))
        else:
            observation.append((f"observation/{name}", name, field.kind, _text(value)))
    numbers = {}
    if episode.reward is not None and decoded.returns_so_far is not None:
        numbers = {"reward": episode.reward[step], "return so far": decoded.returns_so_far[step]}
    lines = [*action, *((name, name, "number", f"{number:.6g}") for name, number in numbers.items())]
    lines.append(("flags", "flags", "word", ", ".join(flag_names(int(episode.flags[step]))) or "none"))
    if episode.discount is not None:
        lines.append(("discount", "discount", "number", f"{episode.discount[step]:.6g}"))
    keys = ("field", "name", "kind", "text")
    values = [dict(zip(keys, line, strict=True)) for line in [*lines, *observation]]
    return {"step": step, "images": images, "values": values}


def _part_data(parts: Sequence[str | EncodedImage]) -> list[dict[str, str]]:
    """What ``Parts`` draws of a document."""
    data: list[dict[str, str]] = []
    left = _MOST_CHARACTERS
    for part in parts:
        if not isinstance(part, str):
            data.append(_image_data(part))
        elif left > 0:
            more = f"\n… and {len(part) - left:,} characters more; its tokens are all there" if len(part) > left else ""
            data.append({"text": part[:left] + more})
            left -= len(part)
    return data


def _image_data(image: EncodedImage) -> dict[str, str]:
    """``url``, which holds the image's bytes, empty if they are of no image; and ``about``, its size and form."""
    size = f"{image.height} x {image.width}"
    try:
        codec = probe(image.data).codec
    except RejectedError as error:
        return {"url": "", "about": f"{size}, {error.detail}"}
    return {"url": data_url(image.data, codec), "about": f"{size} {codec}, {len(image.data):,} bytes"}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    numbers = np.asarray(value).ravel()
    more = f" … ({len(numbers):,})" if len(numbers) > MOST_NUMBERS else ""
    return "  ".join(map(number_text, numbers[:MOST_NUMBERS])) + more


def _quoted(text: str) -> str:
    """A text piece with visible spaces and line ends."""
    return f"“{visible(text)}”"


# --- plots ----------------------------------------------------------------------------------------------------------


def _plots(decoded: DecodedEpisode, step: int, go: Callable[[int], None]) -> list[tuple[figure, Span]]:
    """Plots of reward, return and actions, each with the mark of a step; a click on one calls ``go`` with a step."""
    last, components = decoded.episode.steps - 1, decoded.actions(MOST_POINTS)
    is_discrete = all(field.kind == "discrete" for field in decoded.episode.spec.action)
    title = f"{MOST_ACTIONS} of {len(components)} components of the action" if len(components) > MOST_ACTIONS else ""
    plots = [_plot("", [line], False, 120, last) for line in decoded.rewards(MOST_POINTS)]
    plots.append(_plot(title, components[:MOST_ACTIONS], is_discrete, 170, last))
    marked = []
    for drawn in plots:
        mark = Span(location=step, dimension="height", line_color=_COLORS[4], line_width=1.5, line_dash="4 2")
        drawn.add_layout(mark)
        drawn.on_event(Tap, lambda event: go(min(max(round(event.x), 0), last)))
        marked.append((drawn, mark))
    return marked


def _plot(title: str, lines: Sequence[Line], is_discrete: bool, height: int, last: int) -> figure:
    """Lines over the steps 0 to ``last``, discrete ones as stairs."""
    drawn = figure(
        title=title or None,
        height=height,
        sizing_mode="stretch_width",
        tools="xpan,xwheel_zoom,reset",
        toolbar_location=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        stylesheets=[_EDGE],
        x_range=(-0.5, max(last, 1) + 0.5),
    )
    draw, more = (drawn.step, {"mode": "center"}) if is_discrete else (drawn.line, {})
    items = []
    for color, line in zip(_COLORS, lines, strict=False):
        source = ColumnDataSource({"step": line.steps, "value": line.values})
        glyph = draw("step", "value", source=source, color=color, line_width=1.6, name=visible(line.name), **more)
        items.append((visible(line.name), [glyph]))
    legend = Legend(
        items=items, orientation="horizontal", label_text_color=_SOFT, label_text_font_size="11px",
        background_fill_color=None, border_line_color=None, padding=0, margin=0, spacing=10, glyph_width=14,
    )  # fmt: skip
    drawn.add_layout(legend, "above")
    drawn.add_tools(HoverTool(tooltips=[("$name", "@value{0.[00000]}"), ("step", "@step")], mode="mouse"))
    if title:
        drawn.title.update(text_color=_SOFT, text_font_style="normal", text_font_size="12px")
    drawn.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    if is_discrete:
        drawn.yaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    for axis in (*drawn.xaxis, *drawn.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = _SOFT
        axis.major_label_text_color = _SOFT
    drawn.grid.grid_line_color = _SOFT
    drawn.grid.grid_line_alpha = 0.2
    return drawn
