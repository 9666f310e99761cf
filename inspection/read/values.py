"""What stored episodes and documents hold, for people: tokens with their record, step, field and value, the values of a
step, numbers over the steps of an episode; and values for JSON, for a cell of a table and for a page.

Legend: S time steps, T tokens.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatokit.inspection.read.stored import StoredDocument, StoredEpisode
from gatokit.schemas.manifest import FieldSpec
from gatokit.schemas.tokens import FIRST, LAST, NO_POSITION, PREDICTED, TERMINAL, EncodedImage, TokenKind, TokenSequence
from gatokit.tokenizers.episode import StepLayout
from gatokit.tokenizers.image_codec import decode, probe
from gatokit.tokenizers.text import TextTokenizer

SEPARATOR = "observation | action"
"""The value of a separator, which comes from no field."""


@dataclass(frozen=True)
class NamedToken:
    """A token of an episode or document.

    ``at`` counts from its first token, ``record`` from its first record; ``step`` is None in a document. ``field`` has
    the component's number if the field has several; ``value`` is what the token decodes to: a number, a text piece,
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


class _Tokens:
    """The T tokens of one episode or document; a subclass names the step, the field and the value of a token."""

    def __init__(
        self, sequence: TokenSequence, record_tokens: Sequence[int] | None, text: TextTokenizer | None
    ) -> None:
        self.sequence = sequence
        self._text = text
        self._record_ends = np.cumsum(np.array(record_tokens or [len(sequence.tokens)], np.int64))

    def __len__(self) -> int:
        return len(self.sequence.tokens)

    def of_record(self, at: int) -> range:
        """The tokens of the record that holds token ``at``."""
        record = int(np.searchsorted(self._record_ends, at, side="right"))
        return range(int(self._record_ends[record - 1]) if record else 0, int(self._record_ends[record]))

    def named(self, ordinals: Iterable[int]) -> list[NamedToken]:
        """Some of the T tokens."""
        named = []
        for at in ordinals:
            kind, position = TokenKind(int(self.sequence.kinds[at])), int(self.sequence.positions[at])
            step, field, value = self._source(at)
            token = NamedToken(
                at=at,
                record=int(np.searchsorted(self._record_ends, at, side="right")),
                step=step,
                id=int(self.sequence.tokens[at]),
                kind=kind,
                field=field,
                value=value,
                position=None if position == NO_POSITION else position,
                is_target=kind in PREDICTED,
            )
            named.append(token)
        return named

    def _piece(self, at: int) -> str:
        return "" if self._text is None else self._text.piece(int(self.sequence.tokens[at]))

    def _source(self, at: int) -> tuple[int | None, str, str]:
        """Step, field and value of token ``at``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Line:
    """A number over the S steps, all of them or evenly spaced ones: int64 and float64, (points,)."""

    name: str
    steps: np.ndarray
    values: np.ndarray


class DecodedEpisode(_Tokens):
    """Names the tokens of an episode, and gives what they encode.

    ``returns_so_far`` is float64 (S,) and includes the reward of the step; None if the source has no rewards.
    """

    def __init__(self, episode: StoredEpisode, text: TextTokenizer | None) -> None:
        """``text`` names pieces of text. Raises DataError if the episode does not decode."""
        super().__init__(episode.sequence, episode.row.record_tokens, text)
        self.episode = episode
        self.returns_so_far = None if episode.reward is None else np.cumsum(episode.reward)
        self._values = episode.decode()
        self._layout = StepLayout(episode.spec)
        self._begin = self._layout.arrangement_of(episode.sequence).begin

    def values(self, step: int) -> list[tuple[FieldSpec, Any]]:
        """The fields of a step with their values, in token order."""
        return [(field, self._values[field.path][step]) for field in self.episode.spec.fields]

    def rewards(self, most_points: int) -> list[Line]:
        """The reward and the return so far; nothing if the source has no rewards."""
        if self.episode.reward is None or self.returns_so_far is None:
            return []
        steps = evenly_spaced(self.episode.steps, most_points)
        rewards = Line("reward", steps, self.episode.reward[steps])
        return [rewards, Line("return so far", steps, self.returns_so_far[steps])]

    def actions(self, most_points: int) -> list[Line]:
        """Every component of the action."""
        steps, lines = evenly_spaced(self.episode.steps, most_points), []
        for field in self.episode.spec.action:
            components = np.asarray(self._values[field.path], np.float64).reshape(self.episode.steps, -1).T
            for number, component in enumerate(components):
                name = short_name(field) + (f" {number}" if len(components) > 1 else "")
                lines.append(Line(name, steps, component[steps]))
        return lines

    def of_step(self, step: int) -> range:
        """The tokens of one time step."""
        begins = self.sequence.step_begin
        return range(int(begins[step]), int(begins[step + 1]) if step + 1 < len(begins) else len(self))

    def _source(self, at: int) -> tuple[int | None, str, str]:
        step = int(np.searchsorted(self.sequence.step_begin, at, side="right")) - 1
        field_begins = self._begin if self._begin.ndim == 1 else self._begin[step]
        offset = at - int(self.sequence.step_begin[step])
        number = int(np.searchsorted(field_begins, offset, side="right")) - 1
        field = self._layout.fields.get(number)
        if field is None:
            return step, "", SEPARATOR
        component, name = offset - int(field_begins[number]), short_name(field)
        if field.kind == "text":
            return step, name, self._piece(at)
        if field.image is not None:
            return step, name, _patch(component, field.image.grid[1])
        numbers = np.asarray(self._values[field.path][step]).ravel()
        return step, name if len(numbers) == 1 else f"{name} {component}", number_text(numbers[component])


class DecodedDocument(_Tokens):
    """Names the tokens of a document."""

    def __init__(self, document: StoredDocument, text: TextTokenizer | None) -> None:
        super().__init__(document.sequence, document.row.record_tokens, text)
        self._image_begins = np.array([placed.token for placed in self.sequence.images], np.int64)

    def _source(self, at: int) -> tuple[int | None, str, str]:
        if self.sequence.kinds[at] != TokenKind.IMAGE:
            return None, "text", self._piece(at)
        number = int(np.searchsorted(self._image_begins, at, side="right")) - 1
        placed = self.sequence.images[number]
        return None, f"image {number}", _patch(at - placed.token, placed.grid[1])


def evenly_spaced(steps: int, most: int) -> np.ndarray:
    """At most ``most`` of S steps, the first and the last among them."""
    count = min(most, steps)
    return np.arange(count) * (steps - 1) // max(count - 1, 1)


def short_name(field: FieldSpec) -> str:
    """The key path below ``observation`` or ``action``, or that word alone."""
    return field.path if len(field.components) == 1 else "/".join(field.components[1:])


def kind_name(kind: int) -> str:
    """A token's kind in words."""
    return TokenKind(kind).name.lower().replace("_", " ")


def number_text(value: Any) -> str:
    """A number in six digits; integers and booleans as they are."""
    number = value.item() if isinstance(value, np.generic) else value
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def _patch(number: int, columns: int) -> str:
    return f"patch {number // columns}, {number % columns}"


_FLAGS = {FIRST: "first", LAST: "last", TERMINAL: "terminal"}


def json_value(value: Any) -> Any:
    """Arrays as nested lists, an image as ``{height, width, sha256}`` of its RGB bytes, a dict by its values.

    Raises RejectedError if an image does not decode.
    """
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, EncodedImage):
        pixels = decode(value.data)
        return {"height": value.height, "width": value.width, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def data_url(data: bytes, codec: str) -> str:
    """An encoded image as a URL that holds it."""
    return f"data:image/{codec};base64,{base64.b64encode(data).decode()}"


def flag_names(flags: int) -> list[str]:
    """``first``, ``last`` and ``terminal``, those whose bit is set."""
    return [name for bit, name in _FLAGS.items() if flags & bit]


def brief(value: Any, width: int) -> str:
    """A value in at most about ``width`` characters: the first numbers of an array, the beginning of a text."""
    if isinstance(value, EncodedImage):
        return f"{value.height}x{value.width} {probe(value.data).codec}, {len(value.data):,} B"
    if isinstance(value, str):
        return value if len(value) <= width else value[: max(1, width - 1)] + "…"
    numbers = np.asarray(value).ravel()
    words: list[str] = []
    more = f" … ({len(numbers)})"
    for count, number in enumerate(numbers.tolist(), 1):
        word = _number(number)
        room = width - sum(len(other) + 1 for other in words) - len(word)
        if room < (0 if count == len(numbers) else len(more)) and words:
            return " ".join(words) + more
        words.append(word)
    return " ".join(words)


def _number(number: Any) -> str:
    if isinstance(number, bool):
        return "yes" if number else "no"
    return f"{number:.3f}" if isinstance(number, float) and abs(number) < 1e4 else f"{number:.6g}"
