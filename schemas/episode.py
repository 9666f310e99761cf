"""An episode and its token sequence in memory.

Legend: S time steps that have an action, T tokens.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

FIRST, LAST, TERMINAL = 1, 2, 4
"""Bits of a step's flags. LAST marks the step whose action ended the episode, TERMINAL that it ended in a
terminal state (and not by a time limit)."""


class EncodedImage(NamedTuple):
    """A PNG or JPEG of known size; ``height`` and ``width`` are multiples of 16."""

    data: bytes
    height: int
    width: int


@dataclass(frozen=True)
class Episode:
    """The S steps of an episode that have an action: the final observation alone is dropped.

    ``values`` maps the path of every field of the task's spec to its S values: an array (S, *shape), a list
    of ``str`` for text, a list of ``EncodedImage`` for images. ``reward`` and ``discount`` are float64 (S,),
    ``discount`` None where the source has none; ``flags`` is uint8 (S,), made of FIRST, LAST and TERMINAL.
    """

    id: str
    values: dict[str, np.ndarray | list[str] | list[EncodedImage]]
    reward: np.ndarray
    discount: np.ndarray | None
    flags: np.ndarray

    @property
    def steps(self) -> int:
        """S, the number of time steps."""
        return len(self.flags)


class PlacedImage(NamedTuple):
    """An image and where its patches stand: ``rows * columns`` tokens from ``token`` on, in raster order."""

    token: int
    image: EncodedImage

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.image.height // 16, self.image.width // 16


@dataclass(frozen=True)
class TokenSequence:
    """Flat tokens of an episode (or of a chunk of it, or of a document).

    ``tokens`` uint16 (T,), image patches holding 65535; ``kinds`` uint8 (T,) of ``Kind``; ``positions``
    uint16 (T,), the index within the step's observation, 65535 where there is none; ``step_begin`` uint32
    (S,), the token at which each time step begins (empty for a document); ``images`` in token order.
    ``text_tokens`` uint32 (S, X) counts the tokens of each of X text fields, in token order, where a step has two
    or more of them (None otherwise): kinds alone do not show where one text ends and the next begins.
    """

    tokens: np.ndarray
    kinds: np.ndarray
    positions: np.ndarray
    step_begin: np.ndarray
    images: list[PlacedImage] = field(default_factory=list)
    text_tokens: np.ndarray | None = None
