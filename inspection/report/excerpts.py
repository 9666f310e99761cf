"""Excerpts of stored episodes and documents: frames, actions, rewards, texts and the first tokens.

Images become data URLs. A ``Budget`` bounds the bytes of all excerpts of a page. Legend: S time steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gatokit.inspection.read.stored import StoredDocument, StoredEpisode
from gatokit.inspection.read.values import EpisodeTokens, brief, data_url, flag_names, kind_name, short_name
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.episode import FieldValues
from gatokit.tokenizers.image_codec import decode, encode, probe, resize
from gatokit.tokenizers.text import TextTokenizer

_FRAMES, _LINE_POINTS, _MOST_LINES = 8, 120, 4
_FIRST_TOKENS, _LAST_TOKENS = 40, 8
_COPIED_BYTES, _HEIGHT = 6_000, 144
"""An image of more bytes becomes a JPEG of at most this height, in pixels."""
_EXCERPT_CHARACTERS, _CELL_CHARACTERS = 600, 60
_FILM_BYTES = 6_000
"""The bytes of a film without its images, about."""


@dataclass
class Budget:
    """The bytes that are left for excerpts."""

    left: int


@dataclass(frozen=True)
class Frame:
    """A time step: images (data URLs), texts and other observations by field, actions and flags in words."""

    step: int
    images: dict[str, str]
    texts: dict[str, str]
    values: dict[str, str]
    action: dict[str, str]
    reward: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Token:
    """A token at position ``at`` of the episode, its kind, and the field and value that it encodes."""

    at: int
    id: int
    kind: str
    position: int | None
    field: str
    value: str


@dataclass(frozen=True)
class Line:
    """A number over the time steps, all of them or evenly spaced ones."""

    name: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Film:
    """An episode: evenly spaced frames, lines over its steps, and the first and last tokens of its first step."""

    id: str
    agent: str | None
    label: str
    steps: int
    tokens: int
    episode_return: float | None
    split: str | None
    frames: list[Frame]
    lines: list[Line]
    first_step_tokens: int
    tokens_shown: list[Token]


@dataclass(frozen=True)
class DocumentExcerpt:
    """The beginning of a document: texts as ``{"text": …}``, images as ``{"image": URL, "size": …}``."""

    id: str
    tokens: int
    parts: list[dict[str, str]]


def film(episode: StoredEpisode, label: str, text: TextTokenizer, budget: Budget) -> Film:
    """The film of an episode; ``text`` names the text tokens. Raises DataError if it does not decode."""
    values = episode.decode()
    frames = [_frame(episode, values, step, budget) for step in _evenly_spaced(episode.steps, _FRAMES).tolist()]
    named = EpisodeTokens(episode, values, text)
    first_step = range(named.of_step(0).stop if episode.steps else 0)
    shown = [*first_step]
    if len(first_step) > _FIRST_TOKENS + _LAST_TOKENS:
        shown = [*first_step[:_FIRST_TOKENS], *first_step[-_LAST_TOKENS:]]
    budget.left -= _FILM_BYTES
    return Film(
        id=episode.row.episode_id,
        agent=episode.row.agent,
        label=label,
        steps=episode.steps,
        tokens=len(episode.sequence.tokens),
        episode_return=episode.row.episode_return,
        split=episode.row.split,
        frames=frames,
        lines=_lines(episode, values),
        first_step_tokens=len(first_step),
        tokens_shown=[
            Token(token.at, token.id, kind_name(token.kind), token.position, token.field, token.value)
            for token in named.named(shown)
        ],
    )


def document_excerpt(document: StoredDocument, budget: Budget) -> DocumentExcerpt:
    """The beginning of a document. Raises DataError if it does not decode."""
    parts: list[dict[str, str]] = []
    left = _EXCERPT_CHARACTERS
    for part in document.parts:
        if isinstance(part, str):
            parts.append({"text": part if len(part) <= left else part[:left] + "…"})
            left -= len(part)
        elif budget.left > 0:
            parts.append({"image": _image_url(part, budget), "size": f"{part.height} x {part.width}"})
            left -= 100
        if left <= 0:
            break
    budget.left -= _EXCERPT_CHARACTERS
    return DocumentExcerpt(document.id, document.tokens, parts)


def _frame(episode: StoredEpisode, values: Mapping[str, FieldValues], step: int, budget: Budget) -> Frame:
    frame = Frame(step, {}, {}, {}, {}, float(episode.reward[step]), tuple(flag_names(int(episode.flags[step]))))
    for spec in episode.spec.fields:
        value, name = values[spec.path][step], short_name(spec)
        if isinstance(value, EncodedImage):
            if budget.left > 0:
                frame.images[name] = _image_url(value, budget)
        elif spec.is_action:
            frame.action[name] = brief(value, _CELL_CHARACTERS)
        elif isinstance(value, str):
            frame.texts[name] = brief(value, 4 * _CELL_CHARACTERS)
        else:
            frame.values[name] = brief(value, _CELL_CHARACTERS)
    return frame


def _image_url(image: EncodedImage, budget: Budget) -> str:
    """An image as a data URL: as stored if it is small, else as a smaller JPEG; empty if it does not decode."""
    data = image.data
    try:
        codec = probe(data).codec
        if len(data) > _COPIED_BYTES:
            pixels = decode(data)
            height, width = pixels.shape[:2]
            scale = min(1.0, _HEIGHT / max(height, width / 2))
            small = resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
            data, codec = encode(small, "jpeg", 85), "jpeg"
    except RejectedError:
        return ""
    url = data_url(data, codec)
    budget.left -= len(url)
    return url


def _lines(episode: StoredEpisode, values: Mapping[str, FieldValues]) -> list[Line]:
    """The reward and the first components of the action."""
    columns = {"reward": np.asarray(episode.reward)}
    for spec in episode.spec.action:
        components = np.asarray(values[spec.path], np.float64).reshape(episode.steps, -1).T
        for number, column in enumerate(components):
            columns[short_name(spec) + (f" {number}" if len(components) > 1 else "")] = column
    steps = _evenly_spaced(episode.steps, _LINE_POINTS)
    return [
        Line(name, steps.tolist(), [float(f"{value:.5g}") for value in column[steps].tolist()])
        for name, column in list(columns.items())[: _MOST_LINES + 1]
    ]


def _evenly_spaced(steps: int, most: int) -> np.ndarray:
    """At most ``most`` of S steps, the first and the last among them."""
    count = min(most, steps)
    return np.unique(np.arange(count) * (steps - 1) // max(count - 1, 1))
