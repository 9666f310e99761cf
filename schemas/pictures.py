"""How the pictures of a corpus are stored."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class PictureRule(BaseModel):
    """Size and codec of stored pictures; it goes into work orders, fingerprints and ``dataset.json``.

    ``size`` is height and width of every picture; without it a picture keeps its shape on at most ``max_patches``
    patches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] | None = None
    max_patches: int | None = 64
    codec: Literal["png", "jpeg"] | None = None
    """None: as the source where it is PNG or JPEG."""
    quality: int = 95
    """JPEG quality of a picture that has to be encoded."""
    resize: Literal["area"] = "area"
    """Filter of a picture that has to be resized (OpenCV's INTER_AREA)."""
