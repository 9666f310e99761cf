"""A document in memory (a text, a captioned image, or a page of both), and the rules by which a build prepares it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from gatokit.schemas.tokens import PATCH, EncodedImage


class ImageRule(BaseModel):
    """Size, codec and filter of a document's stored images; ``tokenizers.document.prepare`` applies it.

    Exactly one of ``size`` and ``max_patches`` is set. Its JSON is part of shard tasks, of fingerprints and of
    ``dataset.json``, so that evaluation can prepare an image exactly as the build did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] | None = None
    """Height and width of every image, multiples of 16."""
    max_patches: int | None = None
    """Keeps the shape, in at most this many patches."""
    codec: Literal["png", "jpeg"] | None = None
    """None: JPEG for JPEG and lossy WebP, PNG for everything else."""
    quality: int = 95
    """JPEG quality of an image that has to be encoded."""
    resize: Literal["area"] = "area"
    """Filter of an image that has to be resized (OpenCV's INTER_AREA)."""

    @model_validator(mode="after")
    def _check(self) -> "ImageRule":
        if (self.size is None) == (self.max_patches is None):
            raise ValueError("give size or max_patches, one of them")
        if self.size is not None and any(side <= 0 or side % PATCH for side in self.size):
            raise ValueError(f"height and width must be multiples of {PATCH}, not {list(self.size)}")
        if self.max_patches is not None and self.max_patches < 1:
            raise ValueError(f"max_patches must be 1 or more, not {self.max_patches}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, not {self.quality}")
        return self


class DocumentRules(BaseModel):
    """What a build does with the documents of a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: ImageRule | None
    """How images are stored; None if documents hold only text."""
    end_of_document: bool
    """A document ends with the vocabulary's end piece, if it has one."""
    bad_images: Literal["reject", "skip"] = "reject"
    """What a damaged image does: its document is rejected, or stays without the image."""


@dataclass(frozen=True)
class Document:
    """Texts and images in reading order; no two texts stand next to each other."""

    id: str
    parts: list[str | EncodedImage]
