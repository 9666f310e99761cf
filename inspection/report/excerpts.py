"""Excerpts of stored episodes and documents as JSON holds them: frames, actions, rewards, texts and the first tokens.

Images become data URLs. A ``Budget`` bounds the bytes of all excerpts of a page.
"""

from dataclasses import dataclass
from typing import Any

from gatokit.inspection.read.stored import StoredDocument, StoredEpisode
from gatokit.inspection.read.values import (
    DecodedEpisode,
    Line,
    brief,
    data_url,
    evenly_spaced,
    flag_names,
    kind_name,
    short_name,
)
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_codec import decode, encode, probe, resize
from gatokit.tokenizers.text import TextTokenizer

_FRAMES, _LINE_POINTS, _MOST_ACTIONS = 8, 120, 4
_FIRST_TOKENS, _LAST_TOKENS = 40, 8
_TOKEN_KEYS = ("at", "id", "position", "field", "value")
_COPIED_BYTES, _HEIGHT = 6_000, 144
"""An image of more bytes becomes a JPEG of at most this height, in pixels."""
_EXCERPT_CHARACTERS, _CELL_CHARACTERS = 600, 60
_FILM_BYTES = 6_000
"""The bytes of a film without its images, about."""


@dataclass
class Budget:
    """The bytes that are left for excerpts."""

    left: int


def film(episode: StoredEpisode, label: str, text: TextTokenizer | None, budget: Budget) -> dict[str, Any]:
    """An episode: evenly spaced frames, lines over its steps, and the first and last tokens of its first step.

    ``text`` names the text tokens. Raises DataError if the episode does not decode.
    """
    decoded, row = DecodedEpisode(episode, text), episode.row
    frames = [_frame(decoded, step, budget) for step in evenly_spaced(episode.steps, _FRAMES).tolist()]
    lines = [*decoded.rewards(_LINE_POINTS)[:1], *decoded.actions(_LINE_POINTS)[:_MOST_ACTIONS]]
    first_step = range(decoded.of_step(0).stop if episode.steps else 0)
    shown = [*first_step]
    if len(shown) > _FIRST_TOKENS + _LAST_TOKENS:
        shown = [*shown[:_FIRST_TOKENS], *shown[-_LAST_TOKENS:]]
    budget.left -= _FILM_BYTES
    return {
        "id": row.episode_id,
        "agent": row.agent,
        "label": label,
        "steps": episode.steps,
        "tokens": len(episode.sequence.tokens),
        "episode_return": row.episode_return,
        "split": row.split,
        "frames": frames,
        "lines": [_line(line) for line in lines],
        "first_step_tokens": len(first_step),
        "tokens_shown": [
            {key: getattr(token, key) for key in _TOKEN_KEYS} | {"kind": kind_name(token.kind)}
            for token in decoded.named(shown)
        ],
    }


def document_excerpt(document: StoredDocument, budget: Budget) -> dict[str, Any]:
    """The beginning of a document: texts as ``{"text": …}``, images as ``{"image": URL, "size": …}``.

    Raises DataError if the document does not decode.
    """
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
    return {"id": document.id, "tokens": document.tokens, "parts": parts}


def _frame(decoded: DecodedEpisode, step: int, budget: Budget) -> dict[str, Any]:
    images: dict[str, str] = {}
    texts: dict[str, str] = {}
    values: dict[str, str] = {}
    action: dict[str, str] = {}
    for field, value in decoded.values(step):
        name = short_name(field)
        if isinstance(value, EncodedImage):
            if budget.left > 0:
                images[name] = _image_url(value, budget)
        elif field.is_action:
            action[name] = brief(value, _CELL_CHARACTERS)
        elif isinstance(value, str):
            texts[name] = brief(value, 4 * _CELL_CHARACTERS)
        else:
            values[name] = brief(value, _CELL_CHARACTERS)
    rewards, flags = decoded.episode.reward, flag_names(int(decoded.episode.flags[step]))
    shown = {"images": images, "texts": texts, "values": values, "action": action}
    return shown | {"step": step, "reward": None if rewards is None else float(rewards[step]), "flags": flags}


def _line(line: Line) -> dict[str, Any]:
    return {"name": line.name, "steps": line.steps, "values": [float(f"{value:.5g}") for value in line.values.tolist()]}


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
