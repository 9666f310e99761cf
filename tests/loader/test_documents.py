"""Documents in rows: how often each of their tokens is a target, and what is packed together."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gatokit.loader.documents import LEAST_ROOM, DocumentFiller
from gatokit.loader.records import RecordView
from gatokit.loader.rows import Rows
from gatokit.loader.sampler import RECORD_RANGE, Rng, below
from gatokit.schemas.record import document_record
from gatokit.schemas.tokens import TokenKind, TokenSequence


class Corpus:
    """Documents of these sizes in one shard: token t of document d has the id t and the position d. With ``jagged``,
    records have fewer tokens than they may have."""

    def __init__(self, sizes: list[int], chunk_tokens: int, jagged: bool = False) -> None:
        self.views: list[RecordView] = []
        for number, size in enumerate(sizes):
            cuts = list(range(0, size, chunk_tokens - 7 * jagged))
            for chunk, begin in enumerate(cuts):
                ids = np.arange(begin, cuts[chunk + 1] if chunk + 1 < len(cuts) else size, dtype=np.uint16)
                kinds = np.full(len(ids), TokenKind.TEXT, np.uint8)
                sequence = TokenSequence(ids, kinds, np.full(len(ids), number, np.uint16), np.zeros(0, np.uint32), [])
                self.views.append(RecordView(document_record(f"document {number}", chunk, len(cuts), sequence)))
        tokenizer = SimpleNamespace(chunk_tokens=chunk_tokens)
        self.dataset = SimpleNamespace(pairs=None, manifest=SimpleNamespace(tokenizer=tokenizer))
        self.reads = 0

    def read(self, shard: int, begin: int, end: int) -> list[RecordView]:
        self.reads += end - begin
        return self.views[begin:end]

    def record_ranges(self, records: np.ndarray) -> np.ndarray:
        ranges = np.zeros(len(records), RECORD_RANGE)
        ranges["first"], ranges["stop"] = records, records + 1
        return ranges

    def rows(self, count: int, context: int, packs: bool, rng: Any = None) -> Rows:
        rng = Rng(3, False) if rng is None else rng
        rows = Rows(np.arange(count), context)
        records = below(rng.uniform(rows.samples[:, None], 0, np.array([0])), len(self.views))[:, 0]
        rows.draws["window"], rows.draws["candidates"] = self.record_ranges(records), len(self.views)
        filler = DocumentFiller(rng, self, context, packs)  # type: ignore[arg-type]
        for row in range(count):
            filler.fill(rows, row, self)  # type: ignore[arg-type]
        return rows


class Lattice:
    """In place of random numbers a sequence of low discrepancy in 14 dimensions: multiples of powers of the inverse
    root of x^15 = x + 1."""

    def uniform(self, sample: Any, attempt: Any, lane: np.ndarray) -> np.ndarray:
        steps = 1.0455277 ** -(1.0 + np.asarray(lane) % (1 << 20) % 14)
        return (0.5 + (np.asarray(sample) + 1) * steps) % 1.0


def target_counts(rows: Rows, sizes: list[int]) -> list[np.ndarray]:
    """How often each token of each document is a target."""
    found = rows.targets()
    is_target = found.target_kinds > 0
    documents, tokens = rows.positions[:, 1:][is_target], found.targets[is_target]
    return [np.bincount(tokens[documents == number], minlength=size) for number, size in enumerate(sizes)]


def test_packed_each_tenth_of_a_document_is_trained_alike() -> None:
    sizes = [40, 99, 101, 260, 1907]
    for jagged in (False, True):
        rows = Corpus(sizes, 300, jagged).rows(4096, 100, packs=True, rng=Lattice())
        for size, counts in zip(sizes, target_counts(rows, sizes), strict=True):
            assert counts[0] == 0
            tenths = np.array([part.mean() for part in np.array_split(counts[1:], 10)])
            assert np.abs(tenths / tenths.mean() - 1).max() < 0.05, (size, jagged, tenths)


def test_packed_every_token_is_a_target_of_equally_many_starts() -> None:
    """All starts of one document once, by numbers in place of random ones."""
    size, room = 37, 10
    starts = size + room - 2

    class Each:
        def uniform(self, sample: Any, attempt: Any, lane: np.ndarray) -> np.ndarray:
            return np.broadcast_to((np.asarray(sample) % starts + 0.5) / starts, np.broadcast(sample, lane).shape)

    corpus = Corpus([size], 1000)
    filler = DocumentFiller(Each(), corpus, room, packs=True)  # type: ignore[arg-type]
    rows = Rows(np.arange(starts), room)
    rows.draws["candidates"] = 1
    for row in range(starts):
        filler.fill(rows, row, corpus)  # type: ignore[arg-type]
    assert target_counts(rows, [size])[0].tolist() == [0] + [room] * (size - 1)


@pytest.mark.parametrize("chunk_tokens", [40, 300])
def test_alone_every_full_window_of_a_document_is_as_likely(chunk_tokens: int) -> None:
    size, context = 250, 60
    rows = Corpus([size, 30], chunk_tokens).rows(40_000, context, packs=False)
    starts = rows.ids[rows.positions[:, 0] == 0, 0]
    counts = np.bincount(starts, minlength=size - context + 1)
    expected = len(starts) / (size - context + 1)
    assert len(counts) == size - context + 1
    assert np.abs(counts - expected).max() < 5 * expected**0.5
    assert not rows.ids[rows.positions[:, 0] == 1, 0].any()
    assert not rows.documents.any()


def test_packed_documents_do_not_predict_each_other_and_fill_the_row() -> None:
    sizes = [5, 20, 31, 64, 200]
    rows = Corpus(sizes, 1000).rows(500, 64, packs=True)
    found = rows.targets()
    filled = (rows.kinds[:, :-1] > 0).sum(axis=1)
    assert filled.min() > 64 - LEAST_ROOM
    several = 0
    for row in range(500):
        for number in range(1, rows.documents[row].max() + 1):
            columns = np.flatnonzero(rows.documents[row] == number)
            # One piece of one document, whole if it fits into the row, in order.
            assert columns.tolist() == list(range(columns[0], columns[-1] + 1))
            assert np.diff(rows.ids[row, columns].astype(int)).tolist() == [1] * (len(columns) - 1)
            assert len(set(rows.positions[row, columns].tolist())) == 1
            if columns[0]:
                assert found.target_kinds[row, columns[0] - 1] == 0
                several += 1
        assert np.array_equal(found.private[row], rows.documents[row, :-1])
    assert several > 500


def test_a_long_document_is_not_read_whole() -> None:
    corpus = Corpus([20_000], 200)
    corpus.rows(2000, 100, packs=False)
    # A window lies in one or two records. One in 126 starts too late, and is drawn again from all hundred.
    assert 2000 < corpus.reads < 2000 * (1 + 0.5 + 100 * 1.5 / 126)
