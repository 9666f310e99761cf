"""Cuts an episode's tokens into records between time steps.

Legend: S time steps, T tokens.
"""

from bisect import bisect_right
from itertools import pairwise

import numpy as np

from gatokit.schemas.episode import Episode, PlacedImage, TokenSequence
from gatokit.schemas.record import Record


def cuts(step_begin: np.ndarray, tokens: int, chunk_tokens: int) -> list[int]:
    """Steps with which chunks begin: as many whole steps each as fit into ``chunk_tokens``, at least one.

    ``step_begin`` is (S,), ``tokens`` is T.
    """
    ends = [*step_begin.tolist()[1:], tokens]
    starts, step = [], 0
    while step < len(ends):
        starts.append(step)
        limit = int(step_begin[step]) + chunk_tokens
        step = max(step + 1, bisect_right(ends, limit, step))
    return starts


def records(episode: Episode, sequence: TokenSequence, spec: str, chunk_tokens: int) -> list[Record]:
    """The records of a tokenized episode in order; S > 0. Their arrays are views of the episode's."""
    starts = cuts(sequence.step_begin, len(sequence.tokens), chunk_tokens)
    begins = [*sequence.step_begin[starts].tolist(), len(sequence.tokens)]
    image, found = 0, []
    for chunk, (first, last) in enumerate(pairwise([*starts, episode.steps])):
        begin, end = begins[chunk], begins[chunk + 1]
        images = []
        while image < len(sequence.images) and sequence.images[image].token < end:
            placed = sequence.images[image]
            images.append(PlacedImage(placed.token - begin, placed.image))
            image += 1
        part = TokenSequence(
            tokens=sequence.tokens[begin:end],
            kinds=sequence.kinds[begin:end],
            positions=sequence.positions[begin:end],
            step_begin=sequence.step_begin[first:last] - np.uint32(begin),
            images=images,
            text_tokens=None if sequence.text_tokens is None else sequence.text_tokens[first:last],
        )
        found.append(
            Record(
                owner=episode.id,
                chunk=chunk,
                chunks=len(starts),
                first_step=first,
                spec=spec,
                sequence=part,
                reward=episode.reward[first:last],
                discount=None if episode.discount is None else episode.discount[first:last],
                flags=episode.flags[first:last],
            )
        )
    return found
