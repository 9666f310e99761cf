"""A document in memory: a text, a captioned picture, or a page of both."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from gatokit.schemas.episode import EncodedImage
from gatokit.schemas.pictures import PictureRule


class DocumentRules(BaseModel):
    """What a build does with the documents of a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: PictureRule | None
    """None where documents hold text alone."""
    end_of_document: bool
    """A document ends with the vocabulary's end piece, where it has one."""
    bad_images: Literal["reject", "skip"] = "reject"
    """A damaged picture costs its document, or is left out of it."""


@dataclass(frozen=True)
class Document:
    """Texts and pictures in reading order; no two texts stand next to each other."""

    id: str
    parts: list[str | EncodedImage]
