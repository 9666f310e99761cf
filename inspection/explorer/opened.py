"""The opened episode or document: its index row, its steps to play, its parts to read, all its tokens.

A new view is a name in ``VIEWS``, an item of ``panel`` and a branch of ``_show``.
"""

from typing import Any

import panel as pn

from gatokit.inspection.explorer.columns import COLUMNS, value_of
from gatokit.inspection.explorer.playing import PlayedEpisode, StepView
from gatokit.inspection.explorer.plot import StepPlots
from gatokit.inspection.explorer.widgets import WIDGET_STYLE, Parts, Player, Table, Words, column, table_data
from gatokit.inspection.explorer.words import counted, picture, why_unstored
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.directory import Directory
from gatokit.inspection.read.rows import EpisodeRow
from gatokit.inspection.read.tokens import DocumentTokens, EpisodeTokens, kind_name
from gatokit.schemas.errors import GatokitError
from gatokit.schemas.tokens import TokenKind
from gatokit.schemas.words import shown

CONTENT, TOKENS, ROW = "content", "tokens", "index row"
VIEWS = (CONTENT, TOKENS, ROW)
THIS_STEP, THIS_RECORD, ALL = "this step", "its record", "all"
_TOKENS_A_PAGE = 50
_MOST_CHARACTERS = 50_000
"""Of a document that are shown as text."""
_TOKEN_COLUMNS = [
    column("token", number=True, about="from the first token on"),
    column("record", number=True, about="from the first record on"),
    column("step", number=True),
    column("id", number=True, about="65535 stands for an image patch"),
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
        self._step, self._begin = 0, 0
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
        self._step = self._begin = 0
        where = [dataset.name] if row.task in (None, dataset.name) else [dataset.name, str(row.task)]
        lines = [row.episode_id, ", ".join([*where, *_facts(row)])]
        self._figures.clear()
        self._title.data = {"lines": lines, "style": "title", "reveal": f"{dataset.name} {row.episode_id}"}
        self._row.data = _row_table(row)
        fault = "" if row.shard is not None else why_unstored(row)
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
        self._step = min(max(int(step), 0), self._played.episode.steps - 1)
        view = self._played.view(self._step)
        row = self._played.episode.row
        self._player.data = {"episode": row.episode_id, "steps": self._played.episode.steps, **_step_data(view)}
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
        """Shows a page of the tokens that are asked for."""
        if self._tokens is None:
            return
        tokens = self._wanted(self._tokens)
        self._begin = min(max(int(begin), 0), max(len(tokens) - 1, 0))
        rows = [
            [
                *map(shown, (token.at, token.record, token.step)), str(token.id), kind_name(token.kind), token.field,
                _quoted(token.value) if token.kind == TokenKind.TEXT else token.value, shown(token.position),
                "yes" if token.is_target else "no",
            ]
            for token in self._tokens.named(tokens[self._begin : self._begin + _TOKENS_A_PAGE])
        ]  # fmt: skip
        self._token_table.data = table_data(
            _TOKEN_COLUMNS, rows, begin=self._begin, total=len(tokens), size=_TOKENS_A_PAGE, opens=False, unit="tokens"
        )

    def _wanted(self, tokens: EpisodeTokens | DocumentTokens) -> range:
        if isinstance(tokens, DocumentTokens) or self._scope.value == ALL:
            return range(len(tokens))
        step = tokens.of_step(self._step)
        return step if self._scope.value == THIS_STEP else tokens.of_record(step.start)


def _facts(row: EpisodeRow) -> list[str]:
    """What is said below the id."""
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
    names = [*COLUMNS, "record_tokens"]
    values = [value_of(row, name) for name in COLUMNS]
    sizes = "–" if row.record_tokens is None else ", ".join(f"{size:,}" for size in row.record_tokens[:1000])
    lines = [[name, value, COLUMNS[name].about] for name, value in zip(COLUMNS, map(shown, values), strict=True)]
    lines.append([names[-1], sizes, "tokens of each of its records"])
    return table_data(
        [column("column"), column("value", style="wide"), column("what it is", style="note")], lines, opens=False
    )


def _step_data(view: StepView) -> dict[str, Any]:
    pictures = [
        {"name": name, "height": image.height, "width": image.width} | picture(image) for name, image in view.pictures
    ]
    lines = [(f"action/{value.field}", _action_name(value.field), value.kind, value.text) for value in view.action]
    lines += [
        ("reward", "reward", "number", f"{view.reward:.6g}"),
        ("return so far", "return so far", "number", f"{view.so_far:.6g}"),
        ("flags", "flags", "word", ", ".join(view.flags) or "none"),
    ]
    if view.discount is not None:
        lines.append(("discount", "discount", "number", f"{view.discount:.6g}"))
    lines += [(f"observation/{value.field}", value.field, value.kind, value.text) for value in view.observation]
    values = [{"field": field, "name": name, "kind": kind, "text": text} for field, name, kind, text in lines]
    return {"step": view.step, "pictures": pictures, "values": values}


def _action_name(field: str) -> str:
    return field if field == "action" else f"action {field}"


def _part_data(parts: list[Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    left = _MOST_CHARACTERS
    for part in parts:
        if not isinstance(part, str):
            found.append(picture(part))
        elif left > 0:
            more = f"\n… and {len(part) - left:,} characters more; its tokens are all there" if len(part) > left else ""
            found.append({"text": part[:left] + more})
            left -= len(part)
    return found


def _quoted(text: str) -> str:
    """A text piece whose spaces and line ends can be seen."""
    written = text.replace("\n", "\\n").replace("\t", "\\t")
    return f"“{written}”"
