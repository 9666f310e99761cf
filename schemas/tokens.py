"""Tokens and what becomes tokens: id ranges, kinds of tokens, and images, sequences and documents in memory.

Legend: T tokens, S time steps.
"""

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

TEXT_IDS = 32_000
"""Text ids are [0, 32000): a SentencePiece model has at most this many pieces (Gato, section 2.1)."""
DISCRETE_VALUES = 1_024
"""Discrete values are [0, 1024) (Gato, section 2.1)."""
BINS = 1_024
"""Continuous values fall into this many uniform bins over [-1, 1] (Gato, section 2.1)."""
CONTINUOUS_OFFSET = 32_000
"""The first bin's id: continuous ids are [32000, 33024) (Gato, section 2.1)."""
PATCH = 16
"""Side of a square image patch, in pixels (Gato, section 2.1)."""
IMAGE_ID = 65_535
"""The id of every image patch; it is never looked up in the embedding table."""
OBSERVATION_POSITIONS = 512
"""Rows of the model's table of positions within a time step's observation (Gato, appendix C.3)."""
NO_POSITION = 65_535
"""The position of a token without a local position: separators, actions and tokens of documents."""


FIRST, LAST, TERMINAL = 1, 2, 4
"""Bits of a step's flags. LAST marks the step whose action ended the episode, TERMINAL that it ended in a
terminal state (and not by a time limit)."""


class TokenKind(enum.IntEnum):
    """What a token is. Loss masks, embeddings and decoding follow kinds, never ids: the ids of discrete values
    overlap those of text."""

    TEXT = 1
    IMAGE = 2
    DISCRETE = 3
    CONTINUOUS = 4
    SEPARATOR = 5
    DISCRETE_ACTION = 6
    CONTINUOUS_ACTION = 7


PREDICTED = frozenset({TokenKind.TEXT, TokenKind.DISCRETE_ACTION, TokenKind.CONTINUOUS_ACTION})
"""Kinds of tokens that are predicted: text and actions, not observations and images (Gato, section 2.3)."""


class EncodedImage(NamedTuple):
    """A PNG or JPEG of known size; ``height`` and ``width`` are multiples of 16."""

    data: bytes
    height: int
    width: int


class PlacedImage(NamedTuple):
    """An image in a sequence: its patches are ``rows * columns`` tokens that begin at ``token``, in raster order."""

    token: int
    image: EncodedImage

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.image.height // PATCH, self.image.width // PATCH


@dataclass(frozen=True)
class TokenSequence:
    """The flat tokens of an episode, of a chunk of it, or of a document.

    ``tokens`` uint16 (T,), image patches holding 65535; ``kinds`` uint8 (T,) of ``TokenKind``; ``positions``
    uint16 (T,), the index within the step's observation, 65535 for none; ``step_begin`` uint32
    (S,), the token at which each time step begins (empty for a document); ``images`` in token order.
    ``text_tokens`` uint32 (S, X) counts the tokens of each of X text fields, in token order, if a step has two or more
    of them (None otherwise): kinds alone do not show where one text ends and the next begins.
    """

    tokens: np.ndarray
    kinds: np.ndarray
    positions: np.ndarray
    step_begin: np.ndarray
    images: list[PlacedImage] = field(default_factory=list)
    text_tokens: np.ndarray | None = None


Document = list[str | EncodedImage]
"""Texts and images in reading order; no two texts follow each other."""
