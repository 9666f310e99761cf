"""A document in memory: a text, a captioned picture, or a page of both."""

from dataclasses import dataclass

from gatokit.schemas.episode import EncodedImage


@dataclass(frozen=True)
class Document:
    """Texts and pictures in reading order; no two texts stand next to each other."""

    id: str
    parts: list[str | EncodedImage]
