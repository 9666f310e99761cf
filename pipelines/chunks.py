"""Cuts an episode's tokens into records between time steps.

Legend: S time steps, T tokens.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from gatokit.schemas.episode import Episode, PlacedImage, TokenSequence
from gatokit.schemas.record import pack_f8, pack_u1, pack_u2, pack_u4, serialize


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


def records(
    episode: Episode, sequence: TokenSequence, spec: str, chunk_tokens: int
) -> tuple[list[int], list[bytes]]:
    """The records of a tokenized episode in order: the number of tokens of each, and their bytes; S > 0."""
    starts = cuts(sequence.step_begin, len(sequence.tokens), chunk_tokens)
    begins = [*sequence.step_begin[starts].tolist(), len(sequence.tokens)]
    sizes = [end - begin for begin, end in pairwise(begins)]
    return sizes, list(_serialized(episode, sequence, spec, [*starts, episode.steps], begins))


def _serialized(
    episode: Episode, sequence: TokenSequence, spec: str, steps: list[int], begins: list[int]
) -> Iterator[bytes]:
    """Records from each of ``steps`` and ``begins`` (time steps and tokens) to the next.

    Arrays are packed once for the episode; a record takes slices of the bytes.
    """
    tokens, kinds, positions = pack_u2(sequence.tokens), pack_u1(sequence.kinds), pack_u2(sequence.positions)
    reward, flags = pack_f8(episode.reward), pack_u1(episode.flags)
    discount = b"" if episode.discount is None else pack_f8(episode.discount)
    texts = sequence.text_tokens
    image = 0
    for chunk, ((first, last), (begin, end)) in enumerate(zip(pairwise(steps), pairwise(begins), strict=True)):
        images = []
        while image < len(sequence.images) and sequence.images[image].token < end:
            placed = sequence.images[image]
            images.append(PlacedImage(placed.token - begin, placed.image))
            image += 1
        yield serialize(
            owner=episode.id,
            chunk=chunk,
            chunks=len(begins) - 1,
            first_step=first,
            spec=spec,
            tokens=tokens[2 * begin : 2 * end],
            kinds=kinds[begin:end],
            positions=positions[2 * begin : 2 * end],
            step_begin=pack_u4(sequence.step_begin[first:last] - np.uint32(begin)),
            reward=reward[8 * first : 8 * last],
            discount=discount[8 * first : 8 * last],
            flags=flags[first:last],
            text_tokens=b"" if texts is None else pack_u4(texts[first:last]),
            images=images,
        )
