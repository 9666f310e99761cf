"""The opened episode or document: its index row, its steps to play, its parts to read, all its tokens.

A new view is a name in ``VIEWS``, an item of ``panel`` and a branch of ``_show``.
"""

from collections.abc import Sequence
from typing import Any

import panel as pn

from gatokit.inspection.explorer.columns import COLUMNS, value_of
from gatokit.inspection.explorer.playing import PlayedEpisode, StepView
from gatokit.inspection.explorer.plot import StepPlots
from gatokit.inspection.explorer.widgets import WIDGET_STYLE, Parts, Player, Table, Words, column, table_data
from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.read.index import EpisodeRow
from gatokit.inspection.read.values import DocumentTokens, EpisodeTokens, data_url, kind_name
from gatokit.schemas.errors import GatokitError, RejectedError
from gatokit.schemas.tokens import EncodedImage, TokenKind
from gatokit.schemas.words import counted, shown
from gatokit.tokenizers.image_codec import probe

CONTENT, TOKENS, ROW = "content", "tokens", "index row"
VIEWS = (CONTENT, TOKENS, ROW)
THIS_STEP, THIS_RECORD, ALL = "this step", "its record", "all"
_TOKENS_A_PAGE = 50
_MOST_CHARACTERS = 50_000
"""Of a document that are shown as text."""
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


class Opened:
    """What is open in one session."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._played: PlayedEpisode | None = None
        self._tokens: EpisodeTokens | DocumentTokens | None = None
        self._plots: StepPlots | None = None
        self._step = 0
        self._title = Words(data={"lines": ["Click a row to open it."], "style": "title"})
        self._fault = Words(visible=False)
        style: dict[str, Any] = {"stylesheets": [WIDGET_STYLE], "margin": (6, 0)}
        self._view = pn.widgets.RadioButtonGroup(options=list(VIEWS), value=CONTENT, visible=False, **style)
        self._player = Player({"step": self.go}, visible=False)
        self._figures = pn.Column(sizing_mode="stretch_width", visible=False, margin=(10, 0, 0, 0))
        self._parts = Parts(visible=False)
        self._scope = pn.widgets.RadioButtonGroup(options=[THIS_STEP, THIS_RECORD, ALL], visible=False, **style)
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
        self._played = self._tokens = self._plots = None
        self._step = 0
        names = [dataset.name] if row.task in (None, dataset.name) else [dataset.name, str(row.task)]
        lines = [row.episode_id, ", ".join([*names, *_facts(row)])]
        self._figures.clear()
        self._title.data = {"lines": lines, "style": "title", "reveal": f"{dataset.name} {row.episode_id}"}
        self._row.data = _row_table(row)
        fault = "" if row.shard is not None else row.why_unstored
        if row.shard is not None:
            try:
                self._read(dataset, row)
            except GatokitError as error:
                fault = str(error)
        self._fault.param.update(visible=bool(fault), data={"lines": [fault], "style": "wrong"})
        self._show()

    def go(self, step: int) -> None:
        """Shows a step."""
        if self._played is None:
            return
        episode = self._played.episode
        self._step = min(max(int(step), 0), episode.steps - 1)
        step_data = _step_data(self._played.view(self._step))
        self._player.data = {"episode": episode.row.episode_id, "steps": episode.steps, **step_data}
        if self._plots is not None:
            self._plots.mark(self._step)
        if self._view.value == TOKENS:
            self._turn(0)

    def _read(self, dataset: DatasetReader, row: EpisodeRow) -> None:
        text = self._directory.text
        if dataset.holds_documents:
            document = dataset.document(row)
            self._parts.data = {"parts": _part_data(document.parts)}
            self._tokens = DocumentTokens(document, text)
        else:
            self._played = PlayedEpisode(dataset.episode(row), text)
            self._tokens = self._played.tokens
            self._plots = StepPlots(self._played, self.go)
            self.go(0)

    def _show(self) -> None:
        view = ROW if self._tokens is None else self._view.value
        self._view.visible = self._tokens is not None
        self._player.visible = view in (CONTENT, TOKENS) and self._played is not None
        self._figures.visible = view == CONTENT and self._plots is not None
        if self._figures.visible and self._plots is not None and not self._figures.objects:
            self._figures.extend(pn.pane.Bokeh(item, sizing_mode="stretch_width") for item in self._plots.figures)
        self._parts.visible = view == CONTENT and self._played is None
        self._scope.visible = view == TOKENS and self._played is not None
        self._token_table.visible = view == TOKENS
        self._row.visible = view == ROW
        if view == TOKENS:
            self._turn(0)

    def _turn(self, begin: int) -> None:
        """Shows the page of tokens that begins with the one at ``begin`` of those in scope."""
        tokens = self._tokens
        if tokens is None:
            return
        if isinstance(tokens, DocumentTokens) or self._scope.value == ALL:
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
    """What stands below the id."""
    facts = [] if not row.agent else [f"agent {row.agent}"]
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


def _row_table(row: EpisodeRow) -> dict[str, Any]:
    lines = [[name, shown(value_of(row, name)), about.about] for name, about in COLUMNS.items()]
    sizes = "–" if row.record_tokens is None else ", ".join(f"{size:,}" for size in row.record_tokens[:1000])
    lines.append(["record_tokens", sizes, "tokens of each of its records"])
    columns = [column("column"), column("value", style="wide"), column("what it is", style="note")]
    return table_data(columns, lines, opens=False)


def _step_data(view: StepView) -> dict[str, Any]:
    """What ``Player`` draws of a step."""
    images = [
        {"name": name, "height": image.height, "width": image.width} | _image_data(image) for name, image in view.images
    ]
    lines = [
        (
            f"action/{value.field}",
            value.field if value.field == "action" else f"action {value.field}",
            value.kind,
            value.text,
        )
        for value in view.action
    ]
    lines += [
        ("reward", "reward", "number", f"{view.reward:.6g}"),
        ("return so far", "return so far", "number", f"{view.return_so_far:.6g}"),
        ("flags", "flags", "word", ", ".join(view.flags) or "none"),
    ]
    if view.discount is not None:
        lines.append(("discount", "discount", "number", f"{view.discount:.6g}"))
    lines += [(f"observation/{value.field}", value.field, value.kind, value.text) for value in view.observation]
    values = [{"field": field, "name": name, "kind": kind, "text": text} for field, name, kind, text in lines]
    return {"step": view.step, "images": images, "values": values}


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


def _quoted(text: str) -> str:
    """A text piece with visible spaces and line ends."""
    escaped = text.replace("\n", "\\n").replace("\t", "\\t")
    return f"“{escaped}”"
