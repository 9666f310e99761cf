"""Cuts an episode's tokens into records between time steps.

Legend: S time steps, T tokens.
"""

from bisect import bisect_right
from collections.abc import Iterator

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


def records(episode: Episode, sequence: TokenSequence, spec: str, chunk_tokens: int) -> Iterator[Record]:
    """The records of a tokenized episode in order; S > 0."""
    steps, tokens = len(sequence.step_begin), len(sequence.tokens)
    starts = cuts(sequence.step_begin, tokens, chunk_tokens)
    begins = [*sequence.step_begin[starts].tolist(), tokens]
    image = 0
    for chunk, (first, last) in enumerate(zip(starts, [*starts[1:], steps], strict=True)):
        begin, end = begins[chunk], begins[chunk + 1]
        images = []
        while image < len(sequence.images) and sequence.images[image].token < end:
            placed = sequence.images[image]
            images.append(PlacedImage(placed.token - begin, placed.image))
            image += 1
        yield Record(
            owner=episode.id,
            chunk=chunk,
            chunks=len(starts),
            first_step=first,
            spec=spec,
            sequence=TokenSequence(
                tokens=sequence.tokens[begin:end],
                kinds=sequence.kinds[begin:end],
                positions=sequence.positions[begin:end],
                step_begin=sequence.step_begin[first:last] - np.uint32(begin),
                images=images,
                text_tokens=None if sequence.text_tokens is None else sequence.text_tokens[first:last],
            ),
            reward=episode.reward[first:last],
            discount=None if episode.discount is None else episode.discount[first:last],
            flags=episode.flags[first:last],
        )
