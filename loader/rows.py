"""Rows of a batch while they are drawn and filled with tokens of records.

Legend: B rows, L tokens of a window.
"""

from itertools import count

import numpy as np

from gatokit.loader.batch import PADDING, Targets, find_targets
from gatokit.loader.records import OpenShards, RecordSpan, RecordView
from gatokit.loader.sampler import DRAW
from gatokit.schemas.tokens import NO_POSITION


class Rows:
    """B rows. They have L + 1 tokens: the last one is the last position's target."""

    def __init__(self, samples: np.ndarray, context: int) -> None:
        """``samples`` are the numbers of the samples, int64 (B,); ``context`` is L."""
        rows, shape = len(samples), (len(samples), context + 1)
        self.samples = samples
        self.attempts = np.zeros(rows, np.int64)  # how often a row was drawn again
        self.redrawn = np.full(rows, -1)  # see ``Batch``
        self.unusable = np.zeros(rows, np.int32)  # see ``Batch``
        self.draws = np.zeros(rows, DRAW)
        self.ids = np.zeros(shape, np.uint16)
        self.kinds = np.full(shape, PADDING, np.uint8)
        self.positions = np.full(shape, NO_POSITION, np.uint16)
        self.documents = np.zeros(shape, np.uint16)  # of packed documents the ordinal in the row, from 1
        self.prompt_tokens = np.zeros(rows, np.int64)
        self.cut_action = np.zeros(rows, bool)  # whether the prompt ends inside an action
        self.patches = np.zeros(rows, np.int64)  # patches in a row's window
        self.spans: list[list[RecordSpan]] = [[] for _ in samples]  # what a row is made of

    def clear(self, row: int, column: int = 0) -> None:
        """Removes the tokens of a row from ``column`` on."""
        self.ids[row, column:], self.kinds[row, column:], self.positions[row, column:] = 0, PADDING, NO_POSITION
        self.documents[row, column:] = 0
        self.spans[row] = [
            span._replace(take=min(span.take, column - span.column)) for span in self.spans[row] if span.column < column
        ]

    def put(self, row: int, span: RecordSpan) -> None:
        """Copies the tokens of a record into a row."""
        begin, end, skip, stop = span.column, span.column + span.take, span.skip, span.skip + span.take
        self.ids[row, begin:end] = span.view.tokens[skip:stop]
        self.kinds[row, begin:end] = span.view.kinds[skip:stop]
        self.positions[row, begin:end] = span.view.positions[skip:stop]
        self.documents[row, begin:end] = span.document
        self.spans[row].append(span)

    def copy(
        self,
        row: int,
        columns: range,
        shards: OpenShards,
        place: tuple[int, int, int],
        views: list[RecordView],
        document: int = 0,
    ) -> int:
        """Copies tokens of one owner to ``columns`` of a row, and returns the column behind the last one.

        ``place`` is a shard, a record and the tokens before the first one there. ``views`` are the records from there
        on; those of the same owner behind them are read if they are needed.
        """
        shard, first, skip = place
        column = columns.start
        for record in count(first):
            if record - first == len(views):
                views = views + shards.read(shard, record, record + 1)
            view = views[record - first]
            take = min(columns.stop - column, len(view.tokens) - skip)
            self.put(row, RecordSpan(column, skip, take, shard, record, view, document))
            column, skip = column + take, 0
            if column == columns.stop or view.chunk + 1 == view.chunks:
                break
        return column

    def targets(self) -> Targets:
        """What the windows predict and hide."""
        return find_targets(
            self.ids, self.kinds, self.prompt_tokens, self.cut_action, self.draws["hide"], self.documents
        )
