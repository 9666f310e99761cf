"""Cuts an episode's tokens into records between time steps.

Legend: S time steps, T tokens.
"""

from bisect import bisect_right
from itertools import pairwise

import numpy as np

from gatokit.schemas.episode import Episode
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import TokenSequence


def cuts(step_begin: np.ndarray, tokens: int, chunk_tokens: int) -> list[int]:
    """Steps with which chunks begin: as many whole steps each as fit into ``chunk_tokens``, at least one.

    ``step_begin`` is (S,), ``tokens`` is T.
    """
    begins = step_begin.data  # whose items are plain numbers
    starts, step, steps = [], 0, len(begins)
    while step < steps:
        starts.append(step)
        limit = begins[step] + chunk_tokens
        fits = steps if tokens <= limit else bisect_right(begins, limit, step + 1) - 1
        step = max(step + 1, fits)
    return starts


def records(episode: Episode, sequence: TokenSequence, spec: str, chunk_tokens: int) -> tuple[list[bytes], list[int]]:
    """The serialized records of a tokenized episode in order, and how many tokens each has; S > 0."""
    starts = cuts(sequence.step_begin, len(sequence.tokens), chunk_tokens)
    whole = Record(
        owner=episode.id,
        chunk=0,
        chunks=1,
        first_step=0,
        spec=spec,
        sequence=sequence,
        reward=episode.reward,
        discount=episode.discount,
        flags=episode.flags,
    )
    begins = [*sequence.step_begin[starts].tolist(), len(sequence.tokens)]
    return whole.divided(starts), [end - begin for begin, end in pairwise(begins)]
