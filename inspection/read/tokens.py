"""Every token of a stored episode or document by name: its record, step and field, and the value that it came from.

Legend: S time steps, T tokens, N records.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatokit.inspection.read.document import StoredDocument
from gatokit.inspection.read.episode import StoredEpisode
from gatokit.schemas.episode import FieldSpec
from gatokit.schemas.tokens import NO_POSITION, PREDICTED, TokenKind, TokenSequence
from gatokit.tokenizers.episode import FieldValues
from gatokit.tokenizers.layout import StepLayout
from gatokit.tokenizers.text import TextTokenizer

SEPARATOR = "observation | action"
"""The value of a separator, which comes from no field."""


@dataclass(frozen=True)
class NamedToken:
    """A token of an episode or document.

    ``at`` counts from its first token, ``record`` from its first record; ``step`` is None in a document. ``field`` has
    the component's number where the field has several; ``value`` is what the token decodes to: a number, a text piece,
    the patch's row and column. ``is_target`` says whether the kind is predicted.
    """

    at: int
    record: int
    step: int | None
    id: int
    kind: TokenKind
    field: str
    value: str
    position: int | None
    is_target: bool


class EpisodeTokens:
    """Names the tokens of an episode; ``values`` are those of ``episode.decode()``."""

    def __init__(self, episode: StoredEpisode, values: dict[str, FieldValues], text: TextTokenizer | None) -> None:
        """``text`` names pieces of text. ValueError where the tokens are not of the spec."""
        self.sequence = episode.sequence
        self._values = values
        self._text = text
        self._layout = StepLayout(episode.spec)
        self._begin = self._layout.arrangement_of(episode.sequence).begin
        self._ends = _record_ends(episode.row.record_tokens, len(self.sequence.tokens))

    def __len__(self) -> int:
        return len(self.sequence.tokens)

    def of_step(self, step: int) -> range:
        """The tokens of one time step."""
        begins = self.sequence.step_begin
        return range(int(begins[step]), int(begins[step + 1]) if step + 1 < len(begins) else len(self))

    def of_record(self, at: int) -> range:
        """The tokens of the record that holds token ``at``."""
        record = int(np.searchsorted(self._ends, at, side="right"))
        return range(int(self._ends[record - 1]) if record else 0, int(self._ends[record]))

    def named(self, tokens: Iterable[int]) -> list[NamedToken]:
        """Some of the T tokens by their ordinals."""
        return [self._named(at) for at in tokens]

    def _named(self, at: int) -> NamedToken:
        step = int(np.searchsorted(self.sequence.step_begin, at, side="right")) - 1
        begin = self._begin if self._begin.ndim == 1 else self._begin[step]
        within = at - int(self.sequence.step_begin[step])
        block = int(np.searchsorted(begin, within, side="right")) - 1
        field = self._layout.fields.get(block)
        if field is None:
            name, value = "", SEPARATOR
        else:
            name, value = self._value(field, step, within - int(begin[block]), at)
        return _token(self.sequence, at, self._ends, step, name, value)

    def _value(self, field: FieldSpec, step: int, place: int, at: int) -> tuple[str, str]:
        name = short_name(field)
        if field.kind == "text":
            return name, _piece(self._text, int(self.sequence.tokens[at]))
        if field.image is not None:
            return name, _patch(place, field.image.grid[1])
        numbers = np.asarray(self._values[field.path][step]).ravel()
        return name if len(numbers) == 1 else f"{name} {place}", number_text(numbers[place])


class DocumentTokens:
    """Names the tokens of a document."""

    def __init__(self, document: StoredDocument, text: TextTokenizer) -> None:
        self.sequence = document.sequence
        self._text = text
        self._ends = _record_ends(document.row.record_tokens, len(self.sequence.tokens))
        self._first = np.array([placed.token for placed in self.sequence.images], np.int64)

    def __len__(self) -> int:
        return len(self.sequence.tokens)

    def named(self, tokens: Iterable[int]) -> list[NamedToken]:
        """Some of the T tokens by their ordinals."""
        return [self._named(at) for at in tokens]

    def _named(self, at: int) -> NamedToken:
        if self.sequence.kinds[at] != TokenKind.IMAGE:
            name, value = "text", _piece(self._text, int(self.sequence.tokens[at]))
        else:
            number = int(np.searchsorted(self._first, at, side="right")) - 1
            placed = self.sequence.images[number]
            name, value = f"picture {number}", _patch(at - placed.token, placed.grid[1])
        return _token(self.sequence, at, self._ends, None, name, value)


def short_name(field: FieldSpec) -> str:
    """The key path below ``observation`` or ``action``, or that word alone."""
    return field.path if len(field.components) == 1 else "/".join(field.components[1:])


def kind_name(kind: TokenKind) -> str:
    """A kind in words."""
    return kind.name.lower().replace("_", " ")


def number_text(value: Any) -> str:
    """A number in six digits; whole ones and truths as they are."""
    number = value.item() if isinstance(value, np.generic) else value
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def _token(sequence: TokenSequence, at: int, ends: np.ndarray, step: int | None, field: str, value: str) -> NamedToken:
    kind, position = TokenKind(int(sequence.kinds[at])), int(sequence.positions[at])
    return NamedToken(
        at=at,
        record=int(np.searchsorted(ends, at, side="right")),
        step=step,
        id=int(sequence.tokens[at]),
        kind=kind,
        field=field,
        value=value,
        position=None if position == NO_POSITION else position,
        is_target=kind in PREDICTED,
    )


def _record_ends(sizes: Sequence[int] | None, tokens: int) -> np.ndarray:
    """Where each record ends, int64 (N,)."""
    return np.cumsum(np.array(sizes or [tokens], np.int64))


def _patch(place: int, columns: int) -> str:
    return f"patch {place // columns}, {place % columns}"


def _piece(text: TextTokenizer | None, id_: int) -> str:
    return "" if text is None else text.piece(id_)
