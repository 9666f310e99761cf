"""Some stored episodes and documents as a page shows them: frames, actions, rewards, texts, the first tokens.

Pictures become data URLs; a ``Budget`` bounds them and all the rest.

Legend: S time steps, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gatokit.inspection.read.stored import StoredDocument, StoredEpisode
from gatokit.inspection.read.tokens import EpisodeTokens, kind_name, short_name
from gatokit.inspection.read.values import brief, data_url, flag_names
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.episode import FieldValues
from gatokit.tokenizers.image_codec import decode, encode, resize
from gatokit.tokenizers.image_header import probe
from gatokit.tokenizers.text import TextTokenizer

_FRAMES = 8
_FIRST_TOKENS = 40
_LAST_TOKENS = 8
_LINE_POINTS = 120
_MOST_LINES = 4
_COPIED_BYTES = 6_000
_HIGHEST = 144
_EXCERPT = 600
_CELL = 60


@dataclass
class Budget:
    """Bytes that are left for films; each takes what it needs."""

    left: int


@dataclass(frozen=True)
class Frame:
    """A step: texts and pictures by field, actions and flags in words."""

    step: int
    pictures: dict[str, str]
    texts: dict[str, str]
    values: dict[str, str]
    action: dict[str, str]
    reward: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Token:
    """A token, what it is and the value that it came from, as far as tokens tell."""

    at: int
    id: int
    kind: str
    position: int | None
    field: str
    value: str


@dataclass(frozen=True)
class Line:
    """A number over the steps, all or evenly spaced ones."""

    name: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Film:
    """An episode: evenly spaced steps, numbers over all steps, the tokens of its first step."""

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
class Excerpt:
    """A document: its beginning, texts as ``{"text": …}`` and pictures as ``{"picture": URL}``."""

    id: str
    tokens: int
    parts: list[dict[str, str]]


def film(episode: StoredEpisode, label: str, text: TextTokenizer, budget: Budget) -> Film:
    """What a page shows of an episode; ``text`` names the text tokens. DataError where it does not decode."""
    values = episode.decode()
    count = min(_FRAMES, episode.steps)
    chosen = sorted({number * (episode.steps - 1) // max(count - 1, 1) for number in range(count)})
    frames = []
    for step in chosen:
        pictures, texts, numbers, action = {}, {}, {}, {}
        for spec in episode.spec.fields:
            value, name = values[spec.path][step], short_name(spec)
            if isinstance(value, EncodedImage):
                if budget.left > 0:
                    pictures[name] = url_of(value, budget)
            elif spec.is_action:
                action[name] = brief(value, _CELL)
            elif isinstance(value, str):
                texts[name] = brief(value, 4 * _CELL)
            else:
                numbers[name] = brief(value, _CELL)
        flags = tuple(flag_names(int(episode.flags[step])))
        frames.append(Frame(step, pictures, texts, numbers, action, float(episode.reward[step]), flags))
    named = EpisodeTokens(episode, values, text)
    budget.left -= 6_000
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
        first_step_tokens=named.of_step(0).stop if episode.steps else 0,
        tokens_shown=_tokens(episode, named),
    )


def excerpt(document: StoredDocument, budget: Budget) -> Excerpt:
    """What a page shows of a document. DataError where it does not decode."""
    parts: list[dict[str, str]] = []
    left = _EXCERPT
    for part in document.parts:
        if isinstance(part, str):
            parts.append({"text": part if len(part) <= left else part[:left] + "…"})
            left -= len(part)
        elif budget.left > 0:
            parts.append({"picture": url_of(part, budget), "size": f"{part.height} x {part.width}"})
            left -= 100
        if left <= 0:
            break
    budget.left -= _EXCERPT
    return Excerpt(document.id, document.tokens, parts)


def url_of(image: EncodedImage, budget: Budget) -> str:
    """A picture as a data URL: as stored where it is small, else as a smaller JPEG; empty where it does not decode."""
    data = image.data
    try:
        kind = probe(data).codec
        if len(data) > _COPIED_BYTES:
            pixels = decode(data)
            height, width = pixels.shape[:2]
            scale = min(1.0, _HIGHEST / max(height, width / 2))
            small = resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
            data, kind = encode(small, "jpeg", 85), "jpeg"
    except RejectedError:
        return ""
    url = data_url(data, kind)
    budget.left -= len(url)
    return url


def _lines(episode: StoredEpisode, values: Mapping[str, FieldValues]) -> list[Line]:
    count = min(_LINE_POINTS, episode.steps)
    steps = np.unique(np.arange(count) * (episode.steps - 1) // max(count - 1, 1))
    lines = [Line("reward", steps.tolist(), _rounded(episode.reward[steps]))]
    for spec in episode.spec.action:
        columns = np.asarray(values[spec.path], np.float64).reshape(episode.steps, -1)
        for number in range(columns.shape[1]):
            name = short_name(spec) if columns.shape[1] == 1 else f"{short_name(spec)} {number}"
            if len(lines) <= _MOST_LINES:
                lines.append(Line(name, steps.tolist(), _rounded(columns[steps, number])))
    return lines


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


def _tokens(episode: StoredEpisode, named: EpisodeTokens) -> list[Token]:
    """The first tokens of the first step and its last ones, the action among them."""
    if not episode.steps:
        return []
    end = named.of_step(0).stop
    places = list(range(end))
    if end > _FIRST_TOKENS + _LAST_TOKENS:
        places = [*range(_FIRST_TOKENS), *range(end - _LAST_TOKENS, end)]
    return [
        Token(token.at, token.id, kind_name(token.kind), token.position, token.field, token.value)
        for token in named.named(places)
    ]
