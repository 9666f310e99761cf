"""Records hold as many whole steps as fit, and joined they are the sequence that was cut."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.episodes.tokenize import Episode, chunk_starts, records
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence


def greedy(lengths: list[int], most: int) -> list[int]:
    """First steps of chunks, step by step."""
    starts, held = [], 0
    for step, length in enumerate(lengths):
        if not starts or held + length > most:
            starts.append(step)
            held = 0
        held += length
    return starts


def begins(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths[:-1]]).astype(np.uint32)[: len(lengths)]


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [
        ([3, 3, 3], 9, [0]),
        ([3, 3, 3], 8, [0, 2]),
        ([3, 3, 3], 6, [0, 2]),
        ([3, 3, 3], 5, [0, 1, 2]),
        ([3, 3, 3], 1, [0, 1, 2]),
        ([9, 1, 1, 9, 1], 2, [0, 1, 3, 4]),
        ([1, 9, 1], 9, [0, 1, 2]),
        ([1, 9, 1], 10, [0, 2]),
        ([7], 4096, [0]),
    ],
)
def test_cuts(lengths: list[int], most: int, expected: list[int]) -> None:
    assert chunk_starts(begins(lengths), sum(lengths), most) == expected
    assert greedy(lengths, most) == expected


@settings(max_examples=150)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 60))
def test_cuts_agree_with_the_loop(lengths: list[int], most: int) -> None:
    starts = chunk_starts(begins(lengths), sum(lengths), most)
    assert starts == greedy(lengths, most)
    for first, last in zip(starts, [*starts[1:], len(lengths)], strict=True):
        assert sum(lengths[first:last]) <= most or last == first + 1


def made(lengths: list[int], pictures: set[int], discount: bool = True) -> tuple[Episode, TokenSequence]:
    """An episode whose tokens count up, with a 16x32 image at the beginning of the steps ``pictures``."""
    steps, tokens = len(lengths), sum(lengths)
    images = [
        PlacedImage(int(begins(lengths)[step]), EncodedImage(f"image {step}".encode(), 16, 32))
        for step in sorted(pictures)
    ]
    sequence = TokenSequence(
        tokens=np.arange(tokens, dtype=np.uint16),
        kinds=(np.arange(tokens) % 7 + 1).astype(np.uint8),
        positions=np.arange(1000, 1000 + tokens, dtype=np.uint16),
        step_begin=begins(lengths),
        images=images,
        text_tokens=np.arange(2 * steps, dtype=np.uint32).reshape(steps, 2),
    )
    reward = np.arange(steps) + 0.5
    episode = Episode("a#7", {}, reward, reward / 8 if discount else None, np.arange(steps, dtype=np.uint8))
    return episode, sequence


def test_records_of_a_literal_episode() -> None:
    episode, sequence = made([2, 3, 4, 2], {0, 2, 3}, discount=False)
    packed, sizes = records(episode, sequence, "spec", 5)
    first, second, third = map(Record.from_bytes, packed)
    assert sizes == [5, 4, 2]
    assert [(item.owner, item.spec, item.chunk, item.chunks, item.first_step) for item in (first, second, third)] == [
        ("a#7", "spec", 0, 3, 0),
        ("a#7", "spec", 1, 3, 2),
        ("a#7", "spec", 2, 3, 3),
    ]
    assert first.sequence.tokens.tolist() == [0, 1, 2, 3, 4]
    assert second.sequence.tokens.tolist() == [5, 6, 7, 8]
    assert third.sequence.tokens.tolist() == [9, 10]
    assert second.sequence.positions.tolist() == [1005, 1006, 1007, 1008]
    assert second.sequence.kinds.tolist() == [6, 7, 1, 2]
    assert first.sequence.step_begin.tolist() == [0, 2]
    assert second.sequence.step_begin.tolist() == [0]
    assert [item.sequence.images for item in (first, second, third)] == [
        [PlacedImage(0, EncodedImage(b"image 0", 16, 32))],
        [PlacedImage(0, EncodedImage(b"image 2", 16, 32))],
        [PlacedImage(0, EncodedImage(b"image 3", 16, 32))],
    ]
    assert first.reward.tolist() == [0.5, 1.5]
    assert second.reward.tolist() == [2.5]
    assert third.flags.tolist() == [3]
    assert third.discount is None
    assert [item.sequence.text_tokens.tolist() for item in (first, second, third)] == [  # type: ignore[union-attr]
        [[0, 1], [2, 3]],
        [[4, 5]],
        [[6, 7]],
    ]


def test_a_step_larger_than_a_chunk_is_one_record() -> None:
    episode, sequence = made([2, 50, 2], {1})
    assert records(episode, sequence, "spec", 4)[1] == [2, 50, 2]


@settings(max_examples=80)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=25), st.integers(1, 40), st.data())
def test_joined_records_are_the_sequence(lengths: list[int], most: int, data: st.DataObject) -> None:
    pictures = data.draw(st.sets(st.integers(0, len(lengths) - 1)))
    episode, sequence = made(lengths, pictures)
    packed, sizes = records(episode, sequence, "spec", most)
    found = [Record.from_bytes(data) for data in packed]
    assert [len(record.sequence.tokens) for record in found] == sizes
    assert [record.chunk for record in found] == list(range(len(found)))
    assert {record.chunks for record in found} == {len(found)}
    before = np.cumsum([0, *(len(record.sequence.tokens) for record in found)])
    for name in ("tokens", "kinds", "positions", "text_tokens"):
        joined = np.concatenate([getattr(record.sequence, name) for record in found])
        np.testing.assert_array_equal(joined, getattr(sequence, name), name)
    step_begin = np.concatenate(
        [record.sequence.step_begin + begin for record, begin in zip(found, before, strict=False)]
    )
    np.testing.assert_array_equal(step_begin, sequence.step_begin)
    images = [
        PlacedImage(placed.token + int(begin), placed.image)
        for record, begin in zip(found, before, strict=False)
        for placed in record.sequence.images
    ]
    assert images == sequence.images
    for name in ("reward", "discount", "flags"):
        joined = np.concatenate([getattr(record, name) for record in found])
        np.testing.assert_array_equal(joined, getattr(episode, name), name)
    steps = [len(record.flags) for record in found]
    assert [record.first_step for record in found] == np.cumsum([0, *steps[:-1]]).tolist()


def test_episodes_that_share_their_kinds_are_cut_each_in_its_own_way() -> None:
    episode, sequence = made([2, 3, 4, 2], set())
    shared = [getattr(sequence, name) for name in ("kinds", "positions", "step_begin")]
    alone = {most: records(episode, sequence, "spec", most) for most in (5, 100)}
    for array in shared:
        array.setflags(write=False)
    other = replace(sequence, tokens=sequence.tokens + 100)
    for _ in range(2):
        for most, expected in alone.items():
            assert records(episode, sequence, "spec", most) == expected
            found = [Record.from_bytes(data).sequence for data in records(episode, other, "spec", most)[0]]
            assert np.concatenate([record.tokens for record in found]).tolist() == list(range(100, 111))
            assert np.concatenate([record.kinds for record in found]).tolist() == sequence.kinds.tolist()
    # Arrays of the same values that somebody may still change are read anew each time.
    for array in shared:
        array.setflags(write=True)
    sequence.kinds[0] = 6
    assert Record.from_bytes(records(episode, sequence, "spec", 100)[0][0]).sequence.kinds[0] == 6
