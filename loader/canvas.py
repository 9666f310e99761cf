"""Rows of windows while they are filled with the tokens of records.

Legend: B rows, L tokens of a window; one more stands behind each, the last position's target.
"""

from typing import NamedTuple

import numpy as np

from gatokit.loader import rng as draws
from gatokit.loader.batch import PADDING
from gatokit.loader.record_view import Chunk
from gatokit.loader.records import Readers
from gatokit.schemas.tokens import NO_POSITION, TokenKind


class Part(NamedTuple):
    """Tokens [skip, skip + take) of a record, which stand in a row from ``column`` on."""

    column: int
    skip: int
    take: int
    shard: int
    record: int
    chunk: Chunk


class Canvas:
    """B rows of L + 1 tokens; ``readers`` gives the records."""

    def __init__(self, rows: int, context: int, readers: Readers) -> None:
        self.ids = np.zeros((rows, context + 1), np.uint16)
        self.kinds = np.full((rows, context + 1), PADDING, np.uint8)
        self.positions = np.full((rows, context + 1), NO_POSITION, np.uint16)
        self.prompt = np.zeros(rows, np.int64)
        """Tokens of each row's prompt."""
        self.cut_action = np.zeros(rows, bool)
        """The prompt ends inside an action."""
        self.parts: list[list[Part]] = [[] for _ in range(rows)]
        self._context = context
        self._readers = readers

    @property
    def images(self) -> np.ndarray:
        """Patches in each row's window, int64 (B,)."""
        return np.count_nonzero(self.kinds[:, : self._context] == TokenKind.IMAGE, axis=1)

    def clear(self, row: int) -> None:
        """Makes a row empty again."""
        self._clear(row, 0, self._context + 1)
        self.prompt[row], self.cut_action[row] = 0, False
        self.parts[row] = []

    def episode(self, row: int, column: int, place: tuple[int, int, int, int], snap: bool) -> None:
        """Fills a row from ``column`` on with an episode's tokens: those from ``place`` on (shard, first and stop
        record, tokens to skip), or with ``snap`` from the beginning of the step that stands there."""
        shard, first, stop, skip = place
        records = self._readers.read(shard, first, stop)
        chunk = self.chunk(records[0], shard, first)
        if snap:
            skip = _step_at(chunk, skip)
        self._put(row, column, self._context + 1, shard, first, skip, records, chunk)

    def demonstrate(
        self, row: int, tokens: int, place: tuple[int, int, int, int], *, at_end: bool, snap: bool, hide: bool
    ) -> int:
        """Puts ``tokens`` of an episode from ``place`` on at the beginning of a row, and returns how many stand there.

        With ``snap`` these are whole steps: from the beginning of the step at ``place`` on, or of the next one where
        the prompt is the end of its episode. A step that is longer than a prompt is divided. ``hide`` says whether
        actions are hidden, for which it matters if the prompt ends inside one.
        """
        shard, first, stop, skip = place
        records = self._readers.read(shard, first, stop)
        chunk = self.chunk(records[0], shard, first)
        if snap and not at_end:
            skip = _step_at(chunk, skip)
        elif snap and skip <= chunk.step_begin[-1]:
            skip = int(chunk.step_begin[np.searchsorted(chunk.step_begin, skip)])
        elif snap and len(records) > 1:
            skip, first, records = 0, first + 1, records[1:]
            chunk = self.chunk(records[0], shard, first)
        # One token more shows what the prompt ends before.
        end = self._put(row, 0, tokens + (snap or hide), shard, first, skip, records, chunk)
        length = min(end, tokens)
        if snap and end > tokens:
            length = self._last_step(row, tokens) or tokens
        self.prompt[row] = length
        if length < end:
            actions = (TokenKind.DISCRETE_ACTION, TokenKind.CONTINUOUS_ACTION)
            self.cut_action[row] = self.kinds[row, length - 1] in actions and self.kinds[row, length] in actions
            self._trim(row, length, end)
        return length

    def document(self, row: int, start: float, shard: int, record: int) -> None:
        """Fills a row from a token of the record on, ``start`` in [0, 1) being its place, with what follows of the
        same document."""
        records = self._readers.read(shard, record, record + 1)
        chunk = self.chunk(records[0], shard, record)
        skip = int(draws.below(start, len(chunk.tokens)))
        self._put(row, 0, self._context + 1, shard, record, skip, records, chunk)

    def documents(self, row: int, documents: list[list[Part]], crop: float) -> None:
        """Fills a row with whole documents one behind the other, cropped where they are longer than it; ``crop`` in
        [0, 1) says where."""
        tokens = sum(part.take for parts in documents for part in parts)
        begin = int(draws.below(crop, max(tokens - self._context - 1, 0) + 1))
        at = -begin
        for part in (part for parts in documents for part in parts):
            skip = max(-at, 0)
            take = min(part.take - skip, self._context + 1 - (at + skip))
            if take > 0:
                self._copy(row, part._replace(column=at + skip, skip=skip, take=take))
            at += part.take

    def whole(self, shard: int, record: int) -> list[Part]:
        """All records of the document that a record belongs to."""
        chunk = self.chunk(self._readers.read(shard, record, record + 1)[0], shard, record)
        first = record - chunk.chunk
        if chunk.chunks == 1:
            chunks = [chunk]
        else:
            records = self._readers.read(shard, first, first + chunk.chunks)
            chunks = [self.chunk(data, shard, first + number) for number, data in enumerate(records)]
        return [Part(0, 0, len(item.tokens), shard, first + number, item) for number, item in enumerate(chunks)]

    def chunk(self, data: bytes, shard: int, record: int) -> Chunk:
        """The views of a record; DataError where it is damaged."""
        try:
            return Chunk(data)
        except ValueError as error:
            raise self._readers.damage(shard, record, record + 1, str(error)) from None

    def _put(
        self,
        row: int,
        column: int,
        stop: int,
        shard: int,
        record: int,
        skip: int,
        records: list[bytes],
        chunk: Chunk,
    ) -> int:
        """Copies tokens to [column, stop) of a row, from ``skip`` of the first of ``records`` on, which is ``chunk``,
        reading on in the same owner where they end early; returns the column behind the last one."""
        at = 0
        while True:
            take = min(stop - column, len(chunk.tokens) - skip)
            self._copy(row, Part(column, skip, take, shard, record, chunk))
            column += take
            if column == stop or chunk.chunk + 1 == chunk.chunks:
                return column
            at, record, skip = at + 1, record + 1, 0
            if at == len(records):
                at, records = 0, self._readers.read(shard, record, record + 1)
            chunk = self.chunk(records[at], shard, record)

    def _copy(self, row: int, part: Part) -> None:
        begin, end, skip, stop = part.column, part.column + part.take, part.skip, part.skip + part.take
        self.ids[row, begin:end] = part.chunk.tokens[skip:stop]
        self.kinds[row, begin:end] = part.chunk.kinds[skip:stop]
        self.positions[row, begin:end] = part.chunk.positions[skip:stop]
        self.parts[row].append(part)

    def _last_step(self, row: int, tokens: int) -> int:
        """The last column up to ``tokens`` with which a step begins; 0 where there is none behind the first."""
        for part in reversed(self.parts[row]):
            columns = part.chunk.step_begin.astype(np.int64) - part.skip + part.column
            columns = columns[(columns >= part.column) & (columns <= min(tokens, part.column + part.take))]
            if len(columns):
                return int(columns[-1])
        return 0

    def _trim(self, row: int, begin: int, end: int) -> None:
        """Takes the tokens [begin, end) out of a row that ends with them."""
        self.parts[row] = [
            part._replace(take=min(part.take, begin - part.column)) for part in self.parts[row] if part.column < begin
        ]
        self._clear(row, begin, end)

    def _clear(self, row: int, begin: int, end: int) -> None:
        self.ids[row, begin:end], self.kinds[row, begin:end] = 0, PADDING
        self.positions[row, begin:end] = NO_POSITION


def _step_at(chunk: Chunk, token: int) -> int:
    """Where the step begins that a token of a record belongs to."""
    return int(chunk.step_begin[np.searchsorted(chunk.step_begin, token, "right") - 1])
