"""Values and counts for people."""

import base64

from gatokit.inspection.read.rows import EpisodeRow
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.index import REASONS
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_header import probe


def counted(number: int, one: str, several: str = "") -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def why_unstored(row: EpisodeRow) -> str:
    """A sentence about why there are no tokens of an episode or document."""
    if row.kept:
        return "It is kept; a scan stores no tokens: build to see them."
    if row.reason is None:
        return "It was dropped, and the index does not say why: nothing of it is stored."
    meaning = REASONS.get(row.reason, "a reason that this gatokit does not know")
    detail = "" if row.detail is None else f" ({row.detail})"
    return f"It was dropped as {row.reason}: {meaning}{detail}. Nothing of it is stored."


def picture(image: EncodedImage) -> dict[str, str]:
    """A stored picture for a page: ``url``, its bytes as they are, empty where they are of no picture, and ``about``,
    its size and form."""
    size = f"{image.height} x {image.width}"
    try:
        codec = probe(image.data).codec
    except RejectedError as error:
        return {"url": "", "about": f"{size}, {error.detail}"}
    url = f"data:image/{codec};base64,{base64.b64encode(image.data).decode()}"
    return {"url": url, "about": f"{size} {codec}, {len(image.data):,} bytes"}
