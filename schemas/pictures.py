"""How the pictures of a corpus become the pictures of a build: the rule that evaluation repeats exactly."""

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from gatokit.schemas.tokens import PATCH

if TYPE_CHECKING:
    from gatokit.schemas.config import PictureSize

DEFAULT_MAX_PATCHES = 64


class PictureRule(BaseModel):
    """Size, codec and filter of stored pictures; ``tokenizers.pictures.prepare`` applies it.

    Exactly one of ``size`` and ``max_patches`` is set. Its JSON is part of work orders, of fingerprints and of
    ``dataset.json``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] | None = None
    """Height and width of every picture, multiples of 16."""
    max_patches: int | None = None
    """Keeps the shape, in at most this many patches."""
    codec: Literal["png", "jpeg"] | None = None
    """None: JPEG for JPEG and lossy WebP, PNG for everything else."""
    quality: int = 95
    """JPEG quality of a picture that has to be encoded."""
    resize: Literal["area"] = "area"
    """Filter of a picture that has to be resized (OpenCV's INTER_AREA)."""

    @classmethod
    def of(cls, config: "PictureSize") -> "PictureRule":
        """The rule that a config means: 64 patches where it names neither a size nor a number of patches."""
        patches = DEFAULT_MAX_PATCHES if config.size is None and config.max_patches is None else config.max_patches
        return cls(size=config.size, max_patches=patches, codec=config.codec, quality=config.quality)

    @model_validator(mode="after")
    def _sound(self) -> "PictureRule":
        if (self.size is None) == (self.max_patches is None):
            raise ValueError("give size or max_patches, one of them")
        if self.size is not None and any(side <= 0 or side % PATCH for side in self.size):
            raise ValueError(f"height and width must be multiples of {PATCH}, not {list(self.size)}")
        if self.max_patches is not None and self.max_patches < 1:
            raise ValueError(f"max_patches must be 1 or more, not {self.max_patches}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, not {self.quality}")
        return self
