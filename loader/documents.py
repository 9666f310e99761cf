"""Fills a row with documents: with a window of one or, packed, with several that do not see each other.

Packed, a document that is longer than the room that is left is cut so that each of its tokens is as likely to be a
target. Pairs of image and text are never cut if they fit into a row.
"""

from itertools import accumulate, count

import numpy as np

from gatokit.loader.records import OpenShards, RecordSpan, RecordView
from gatokit.loader.rows import Rows
from gatokit.loader.sampler import DOCUMENT_LANES, Rng, SampledDataset, below

LEAST_ROOM = 16
"""A row with room for fewer tokens behind a document is full."""
_LANES = 4
"""Random numbers that are drawn for a document: the document, and three for its start."""


class DocumentFiller:
    """Fills rows of ``context`` tokens with documents; ``packs`` says whether with several."""

    def __init__(self, rng: Rng, shards: OpenShards, context: int, packs: bool) -> None:
        self._rng, self._shards, self._context, self._packs = rng, shards, context, packs

    def fill(self, rows: Rows, row: int, sampled: SampledDataset) -> None:
        """Fills a row that was drawn from a dataset of documents. Errors as of ``OpenShards.read``."""
        pairs, column = sampled.dataset.pairs, 0
        lanes = np.arange(_LANES if pairs is None else 1 + pairs)
        for number in count(1):
            room = self._context - column
            if number > 1 and (not self._packs or room < LEAST_ROOM):
                break
            lane = DOCUMENT_LANES + (number - 1) * len(lanes) + lanes
            u = self._rng.uniform(int(rows.samples[row]), int(rows.attempts[row]), lane).tolist()
            before = column
            if pairs is None:
                column = self._put_piece(rows, row, column, sampled, number, u)
            else:
                column = self._put_pairs(rows, row, column, sampled, number, pairs, u)
            if column == before:
                break

    # --- one document ----------------------------------------------------------------------------------------------

    def _put_piece(
        self, rows: Rows, row: int, column: int, sampled: SampledDataset, number: int, u: list[float]
    ) -> int:
        """Puts a document, or a piece of it, into a row from ``column`` on. Returns the column behind it."""
        draw = rows.draws[row]
        if number == 1:
            shard, record, _, _ = draw["window"].item()
        else:
            at = int(draw["candidates_begin"]) + int(below(u[0], int(draw["candidates"])))
            shard, record, _, _ = sampled.record_ranges(np.array([at]))[0].item()
        room = self._context - column
        chunk_tokens = sampled.dataset.manifest.tokenizer.chunk_tokens
        record, skip, take, views = self._piece(shard, record, room, chunk_tokens, u)
        columns = range(column, min(column + take, self._context + 1))
        return rows.copy(row, columns, self._shards, (shard, record, skip), views, number if self._packs else 0)

    def _piece(
        self, shard: int, record: int, room: int, chunk_tokens: int, u: list[float]
    ) -> tuple[int, int, int, list[RecordView]]:
        """Where the piece of a drawn record's document begins, as a record and the tokens before it there, how many
        tokens it has at most (``room`` and one more, which is a target alone), and records that were read from there
        on.

        A start is uniform over those of all full windows. If documents are packed, it is also uniform over the places
        from ``room`` - 1 before the document to its last token but one, and the piece is what the window from there on
        holds of it, so that every token is a target of equally many starts.
        """
        views = self._shards.read(shard, record, record + 1)
        view = views[0]
        early = room - 1 if self._packs else 0
        if view.chunks > 1 and chunk_tokens > self._context:
            # A long document is not read whole: its record was drawn, and then a place among as many as a full record
            # has. If no window starts there, the start is drawn again, from all of the document.
            start = int(below(u[1], view.chunks * chunk_tokens + early)) - early
            if start < 0:
                return record - view.chunk, 0, room + start + 1, views if view.chunk == 0 else []
            skip = int(below(u[2], chunk_tokens))
            wanted = 2 if self._packs else room
            if skip < len(view.tokens) and self._read_until(views, shard, record, skip + wanted):
                return record, skip, room + 1, views
        first = record - view.chunk
        if view.chunks > 1:
            views = self._shards.read(shard, first, first + view.chunks)
        ends = list(accumulate(len(view.tokens) for view in views))
        if not self._packs:
            start = int(below(u[3], max(0, ends[-1] - room) + 1))
        elif ends[-1] > room + 1:
            start = int(below(u[3], ends[-1] + room - 2)) - early
        else:
            start = 0
        take = room + 1 + min(start, 0)
        start = max(start, 0)
        at = next(number for number, end in enumerate(ends) if end > start)
        return first + at, start - (ends[at - 1] if at else 0), take, views[at:]

    def _read_until(self, views: list[RecordView], shard: int, record: int, tokens: int) -> bool:
        """Reads records behind ``views``, those from ``record`` on, up to so many tokens of their document; returns
        whether it has so many."""
        tokens -= sum(len(view.tokens) for view in views)
        while tokens > 0 and views[-1].chunk + 1 < views[-1].chunks:
            views += self._shards.read(shard, record + len(views), record + len(views) + 1)
            tokens -= len(views[-1].tokens)
        return tokens <= 0

    # --- pairs -----------------------------------------------------------------------------------------------------

    def _put_pairs(
        self, rows: Rows, row: int, column: int, sampled: SampledDataset, number: int, pairs: int, u: list[float]
    ) -> int:
        """Puts ``pairs`` distinct documents, or all if there are fewer, into a row from ``column`` on, which see each
        other (Gato, section 2.3: five question-answer pairs). The first ones of a row are cropped at a random place if
        they are too long; others are then left out. Returns the column behind them."""
        spans = self._distinct(rows.draws[row], sampled, pairs, u[1:])
        surplus = max(0, sum(span.take for span in spans) - (self._context + 1 - column))
        if surplus and number > 1:
            return column
        column -= int(below(u[0], surplus + 1))
        for span in spans:
            skip = max(-column, 0)
            take = min(span.take - skip, self._context + 1 - (column + skip))
            if take > 0:
                document = number if self._packs else 0
                rows.put(row, span._replace(column=column + skip, skip=skip, take=take, document=document))
            column += span.take
        return min(column, self._context + 1)

    def _distinct(self, draw: np.void, sampled: SampledDataset, pairs: int, u: list[float]) -> list[RecordSpan]:
        """All records of distinct documents, of which ``u`` chooses."""
        begin, left = int(draw["candidates_begin"]), int(draw["candidates"])
        taken: list[tuple[int, int]] = []
        """First record, among those of the split, and number of records of each document."""
        spans: list[RecordSpan] = []
        while left and len(taken) < pairs:
            record = begin + int(below(u[len(taken)], left))
            for first, records in sorted(taken):
                record += records if record >= first else 0
            shard, in_shard, _, _ = sampled.record_ranges(np.array([record]))[0].item()
            document = self._document(shard, in_shard)
            spans += document
            taken.append((record - (in_shard - document[0].record), len(document)))
            left -= len(document)
        return spans

    def _document(self, shard: int, record: int) -> list[RecordSpan]:
        """All records of the document that a record belongs to."""
        views = self._shards.read(shard, record, record + 1)
        first = record - views[0].chunk
        if views[0].chunks > 1:
            views = self._shards.read(shard, first, first + views[0].chunks)
        return [RecordSpan(0, 0, len(view.tokens), shard, number, view) for number, view in enumerate(views, first)]
