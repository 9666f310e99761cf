"""Which rows become one shard."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.planning import Splitter

SIZE = 1000


def assigned(files: dict[str, list[int]]) -> list[int]:
    """Splits of the rows of these files, each given by the lengths of its rows."""
    file = np.repeat(np.arange(len(files)), [len(lengths) for lengths in files.values()])
    length = np.array([value for lengths in files.values() for value in lengths], np.int64)
    sources = [SimpleNamespace(name=name, divides=True, divides_at_offsets=False) for name in files]
    return Splitter(sources, SIZE).assign(file, length, np.arange(len(file))).tolist()


def shards(files: dict[str, list[int]]) -> list[list[tuple[str, int]]]:
    """The rows of each split, as (file, number in the file)."""
    found: dict[int, list[tuple[str, int]]] = {}
    places = [(name, number) for name, lengths in files.items() for number in range(len(lengths))]
    for place, split in zip(places, assigned(files), strict=True):
        found.setdefault(split, []).append(place)
    return list(found.values())


def ends_group(name: str, size: int) -> bool:
    """The rule of the module, from the first eight bytes of BLAKE2b."""
    return int(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), 16) / 2**64 < size / SIZE


names = st.text("abcdef", min_size=1, max_size=4)
lengths = st.lists(st.integers(1, 700), min_size=0, max_size=6)
sources = st.dictionaries(names, lengths, min_size=1, max_size=25).map(lambda files: dict(sorted(files.items())))


def test_an_empty_source_has_no_split() -> None:
    assert assigned({"a": []}) == []


def test_small_files_join_until_a_name_ends_the_group() -> None:
    files = {f"d-{number}": [40, 60] for number in range(8)}
    assert [name for name in files if ends_group(name, 100)] == ["d-4", "d-5"]
    assert assigned(files) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_a_group_that_no_name_ends_is_ended_by_its_size() -> None:
    files = {f"j-{number}": [400] for number in range(12)}
    assert [name for name in files if ends_group(name, 400)] == ["j-10"]
    assert assigned(files) == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("groups", "splits"),
    [
        ([5], [0, 0, 0, 0, 0]),
        ([3, 2], [0, 0, 0, 1, 1]),
        ([1, 1, 1, 1, 1], [0, 0, 1, 1, 2]),
        ([1, 3, 1], [0, 0, 0, 0, 1]),
        ([2, 2, 1], [0, 0, 1, 1, 2]),
    ],
)
def test_a_file_of_row_groups_is_divided_between_them(groups: list[int], splits: list[int]) -> None:
    offset = np.repeat(np.arange(len(groups)), groups)
    source = SimpleNamespace(name="a", divides=True, divides_at_offsets=True)
    assert Splitter([source], SIZE).assign(np.zeros(5, int), np.full(5, 500), offset).tolist() == splits


def test_a_large_file_is_divided_evenly() -> None:
    assert assigned({"a": [500] * 5}) == [0, 0, 1, 1, 2]


def test_a_file_of_exactly_one_split_is_not_divided() -> None:
    assert assigned({"a": [500, 500]}) == [0, 0]
    assert assigned({"b1": [100], "b2": [500, 500]}) == [0, 0, 0]
    assert assigned({"a": [400, 400, 201]}) == [0, 0, 1]


def test_a_large_file_stands_alone() -> None:
    files = {"b1": [100], "b2": [900, 900], "b3": [100]}
    assert not ends_group("b1", 100)
    assert assigned(files) == [0, 1, 2, 3]


def test_an_enormous_row_is_a_split_of_its_own() -> None:
    assert assigned({"a": [10, 99_000, 10]}) == [0, 0, 1]
    assert assigned({"a": [99_000]}) == [0]


def test_rows_without_bytes_have_a_place() -> None:
    assert assigned({"a": [0, 0], "b": [0]}) == [0, 0, 0]


@settings(max_examples=150)
@given(sources)
def test_every_row_has_one_split_in_source_order(files: dict[str, list[int]]) -> None:
    splits = assigned(files)
    assert len(splits) == sum(map(len, files.values()))
    assert set(np.diff([0, *splits]).tolist()) <= {0, 1}
    assert splits == assigned(files)


@settings(max_examples=150)
@given(sources)
def test_sizes_are_bounded(files: dict[str, list[int]]) -> None:
    for rows in shards(files):
        members = {name for name, _ in rows}
        size = sum(files[name][number] for name, number in rows)
        if len(members) > 1:
            assert size <= 2 * SIZE
            assert all(sum(files[name]) <= SIZE for name in members)
        else:
            assert size <= SIZE + max(files[name][number] for name, number in rows)


@settings(max_examples=150)
@given(sources, names, lengths.filter(bool))
def test_a_new_file_changes_nothing_beyond_the_next_borders(
    files: dict[str, list[int]], name: str, new: list[int]
) -> None:
    files.pop(name, None)
    more = dict(sorted([*files.items(), (name, new)]))
    # Borders that depend on one file alone: behind a name that ends its group, and around a divided file.
    order = list(more)
    at = order.index(name)
    used = [other for other in order if more[other] and other != name]
    divided = {other for other in used if sum(more[other]) > SIZE}
    ending = {other for other in used if other not in divided and ends_group(other, sum(more[other]))}
    before = [number for number in range(at) if order[number] in ending | divided]
    after = [number for number in range(at + 1, len(order)) if order[number] in ending | divided]
    first = before[-1] + 1 if before else 0
    last = (after[0] if order[after[0]] in ending else after[0] - 1) if after else len(order) - 1
    touched = set(order[first : last + 1])

    def elsewhere(source: dict[str, list[int]]) -> list[list[tuple[str, int]]]:
        return [rows for rows in shards(source) if not {name for name, _ in rows} & touched]

    assert elsewhere(files) == elsewhere(more)
    kept = {place for rows in elsewhere(more) for place in rows}
    assert kept == {(other, row) for other in more if other not in touched for row in range(len(more[other]))}


def test_most_new_files_change_one_or_two_of_a_hundred_shards() -> None:
    files = {f"task-{number:04d}": [100] for number in range(1000)}
    before = {tuple(rows) for rows in shards(files)}
    assert 50 < len(before) < 200
    changed = []
    for number in range(0, 1000, 20):
        after = {tuple(rows) for rows in shards(dict(sorted([*files.items(), (f"task-{number:04d}x", [100])])))}
        changed.append(len(before - after))
    assert max(changed) <= 4
    assert sum(changed) / len(changed) < 1.5


@pytest.mark.parametrize("count", [1, 7, 100])
def test_pieces_of_a_file_differ_by_one_row_at_most(count: int) -> None:
    sizes = np.bincount(assigned({"a": [SIZE // 10] * 10 * count + [1]}))
    assert len(sizes) == count + 1
    assert sizes.max() - sizes.min() <= 1
