"""How a document is cut into records: as many tokens as fit, and no picture in two of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.tokenize import document_cuts, document_records
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence

TEXT, IMAGE, PATCH = 1, 2, 65535


def page(units: list[int]) -> TokenSequence:
    """A text token for each 0, and for every other number a picture of so many patches."""
    tokens: list[int] = []
    images = []
    for number, patches in enumerate(units):
        if patches:
            images.append(PlacedImage(len(tokens), EncodedImage(b"%d" % number, 16, 16 * patches)))
        tokens += [PATCH] * patches or [number]
    return TokenSequence(
        np.array(tokens, np.uint16),
        np.array([IMAGE if token == PATCH else TEXT for token in tokens], np.uint8),
        np.full(len(tokens), 65535, np.uint16),
        np.empty(0, np.uint32),
        images,
    )


def packed(units: list[int], chunk_tokens: int) -> list[int]:
    """Where records begin, unit by unit: one that no longer fits begins the next."""
    starts, held, at = [0], 0, 0
    for unit in units:
        size = unit or 1
        if held and held + size > chunk_tokens:
            starts.append(at)
            held = 0
        held += size
        at += size
    return starts


@pytest.mark.parametrize(
    ("units", "chunk_tokens", "starts"),
    [
        ([0] * 10, 4, [0, 4, 8]),
        ([0] * 8, 4, [0, 4]),
        ([0] * 3, 4, [0]),
        ([0], 1, [0]),
        ([0, 0, 3, 0], 4, [0, 2]),
        ([0, 3, 0], 4, [0, 4]),
        ([4, 4], 4, [0, 4]),
        ([2, 2, 2], 4, [0, 4]),
        ([0, 0, 9, 0, 0], 4, [0, 2, 11]),
        ([9], 4, [0]),
        ([9, 9, 0], 4, [0, 9, 18]),
        ([0, 0, 0, 0, 9], 4, [0, 4]),
        ([5, 0], 4, [0, 5]),
        ([1, 1, 1], 1, [0, 1, 2]),
    ],
)
def test_cuts_in_full(units, chunk_tokens, starts):
    sequence = page(units)
    assert document_cuts(len(sequence.tokens), sequence.images, chunk_tokens) == starts
    assert packed(units, chunk_tokens) == starts


@settings(max_examples=500)
@given(st.lists(st.just(0) | st.integers(0, 12), min_size=1, max_size=40), st.integers(1, 16))
def test_records_hold_what_fits_and_join_to_the_whole(units, chunk_tokens):
    sequence = page(units)
    starts = document_cuts(len(sequence.tokens), sequence.images, chunk_tokens)
    assert starts == packed(units, chunk_tokens)
    data, sizes = document_records("a/b.jsonl#7", sequence, chunk_tokens)
    assert sizes == np.diff([*starts, len(sequence.tokens)]).tolist()
    records = [Record.from_bytes(one) for one in data]
    for name in ("tokens", "kinds", "positions"):
        joined = np.concatenate([getattr(record.sequence, name) for record in records])
        assert joined.tolist() == getattr(sequence, name).tolist()
    assert [
        PlacedImage(placed.token + start, placed.image)
        for start, record in zip(starts, records, strict=True)
        for placed in record.sequence.images
    ] == sequence.images
    for chunk, (record, size) in enumerate(zip(records, sizes, strict=True)):
        assert (record.owner, record.chunk, record.chunks) == ("a/b.jsonl#7", chunk, len(records))
        assert (record.spec, record.first_step, record.discount) == ("", 0, None)
        assert len(record.sequence.step_begin) == len(record.reward) == len(record.flags) == 0
        assert size <= chunk_tokens or [len(record.sequence.images), record.sequence.images[0].image.width] == [
            1,
            16 * size,
        ]
        # A picture whose patches were divided would leave some in a record that does not hold it.
        patches = sum(placed.image.width // 16 for placed in record.sequence.images)
        assert (record.sequence.kinds == IMAGE).sum() == patches


def test_a_document_of_one_record_in_full():
    [data], sizes = document_records("t#0", page([2, 0, 0]), 4096)
    record = Record.from_bytes(data)
    assert sizes == [4]
    assert record.sequence.tokens.tolist() == [PATCH, PATCH, 1, 2]
    assert record.sequence.kinds.tolist() == [IMAGE, IMAGE, TEXT, TEXT]
    assert record.sequence.positions.tolist() == [65535] * 4
    assert record.sequence.images == [PlacedImage(0, EncodedImage(b"0", 16, 32))]
    assert (record.owner, record.chunk, record.chunks) == ("t#0", 0, 1)
