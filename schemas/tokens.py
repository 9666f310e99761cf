"""Token ids, kinds and the two reserved numbers that every border of the project agrees on."""

import enum
from dataclasses import dataclass

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
"""Stands in the id array for an image patch; it is never looked up."""
NO_POSITION = 65_535
"""Stands in the position array for a token without a local position (separator, action, document)."""


class Kind(enum.IntEnum):
    """What a token is. Masks, embeddings and decoding follow kinds, never ids: the ids of discrete values
    overlap those of text."""

    TEXT = 1
    IMAGE = 2
    DISCRETE = 3
    CONTINUOUS = 4
    SEPARATOR = 5
    DISCRETE_ACTION = 6
    CONTINUOUS_ACTION = 7


PREDICTED = frozenset({Kind.TEXT, Kind.DISCRETE_ACTION, Kind.CONTINUOUS_ACTION})
"""Kinds that are targets: text and logged actions, not observations and images (Gato, section 2.3)."""


@dataclass(frozen=True)
class TokenIds:
    """The id ranges that follow from the one choice a build has: where discrete ids begin.

    ``discrete_offset`` is 0 (discrete ids overlap text ids, as the paper's literal reading says) or 33024
    (they have ids of their own, and the separator moves behind them).
    """

    discrete_offset: int = 0

    def __post_init__(self) -> None:
        if self.discrete_offset not in (0, CONTINUOUS_OFFSET + BINS):
            raise ValueError(f"discrete_offset must be 0 or {CONTINUOUS_OFFSET + BINS}, not {self.discrete_offset}")

    @property
    def separator(self) -> int:
        """Id of the token between a step's observation and its action."""
        return CONTINUOUS_OFFSET + BINS + (DISCRETE_VALUES if self.discrete_offset else 0)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: the separator is the last one."""
        return self.separator + 1
