"""Which rows of a dataset are held out. Legend: R rows of a scan, L links.

Rows that share a picture, a text or a name of their format's own (the caption list of one picture) are held out
together: a link says that a row has a value, and rows that are linked, over any number of others, form a group.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.schemas.index import HELD_OUT
from gatokit.schemas.manifest import DatasetEntry, digest
from gatokit.storage.files import arrow_file

_MOST_SHARING = (None, 64, 8, 1)
"""More rows than this that share a value are not linked by it, as tried in turn until no group is too large."""
_LARGEST_SHARE, _LARGEST = 0.25, 10
"""The largest group that links may form: this share of the rows, or this many rows if that is more."""
_ODD = np.uint64(0x9E3779B97F4A7C15)


def row_hash(seed: int, id_: str) -> int:
    """64 bits that decide whether the episode or document with this id is held out."""
    return int(digest(f"{seed}\0{id_}".encode(), 8), 16)


def held_out(
    hashes: np.ndarray, kept: np.ndarray, task: np.ndarray, share: float, before: np.ndarray | None = None
) -> np.ndarray:
    """The kept rows that are held out, bool (R,): those whose hash, uint64 (R,), falls below ``share`` of its range,
    and those that were held out ``before``, bool (R,).

    At least one row and never all rows of every task that keeps two or more with different hashes. No other row decides
    about a row, so that new rows elsewhere change nothing. Rows with the same hash stay together.
    """
    result = np.zeros(len(kept), bool)
    if share == 0:
        return result
    below = hashes < np.uint64(share * 2.0**64)
    if before is not None:
        below |= np.isin(hashes, hashes[before & kept])
    rows = np.flatnonzero(kept & (task >= 0))
    rows = rows[np.argsort(task[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(task[rows], prepend=-1))
    for members in np.split(rows, starts[1:]):
        values = hashes[members]
        if len(members) < 2 or (values == values[0]).all():
            continue
        chosen = below[members]
        if not chosen.any():
            chosen = values == values.min()
        elif chosen.all():
            # What was held out before stays so, if anything else can be trained on.
            new = np.ones(len(members), bool) if before is None else ~np.isin(values, values[before[members]])
            chosen = values != (values[new] if new.any() else values).max()
        result[members[chosen]] = True
    return result


def held_out_before(root: Path, entry: DatasetEntry, seed: int) -> np.ndarray:
    """The hashes of the ids, uint64, that a finished directory at ``root`` holds out of a dataset.

    An index that is gone or damaged, which the job will write anew, says nothing.
    """
    hashes = [np.empty(0, np.uint64)]
    for split in entry.splits:
        try:
            with arrow_file(root / entry.directory / split.index) as file:
                index = pq.read_table(file, columns=["episode_id", "split"])
        except (FileNotFoundError, pa.ArrowInvalid):
            continue
        ids = index.filter(pc.equal(index["split"], HELD_OUT).fill_null(False))["episode_id"].to_pylist()
        hashes.append(np.array([row_hash(seed, id_) for id_ in ids], np.uint64))
    return np.concatenate(hashes)


# --- rows that are held out together ---------------------------------------------------------------------------


@dataclass
class Links:
    """Rows, int64 (L,), and the values that they have, uint64 (L,), collected part by part."""

    _rows: list[np.ndarray] = field(default_factory=list)
    _values: list[np.ndarray] = field(default_factory=list)

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Adds links."""
        self._rows.append(rows.astype(np.int64))
        self._values.append(values.astype(np.uint64))

    @property
    def are_many(self) -> bool:
        """Whether a row has several values."""
        return any(len(np.unique(rows)) < len(rows) for rows in self._rows)

    def shared(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The kept rows, (L,), that share a value with another, in order of values; and where each value begins."""
        rows = np.concatenate([np.empty(0, np.int64), *self._rows])
        values = np.concatenate([np.empty(0, np.uint64), *self._values])
        self._rows, self._values = [rows], [values]
        chosen = np.flatnonzero(kept[rows])
        chosen = chosen[np.lexsort((rows[chosen], values[chosen]))]
        rows, values = rows[chosen], values[chosen]
        # A page may show one picture twice.
        is_first = np.ones(len(rows), bool)
        is_first[1:] = (values[1:] != values[:-1]) | (rows[1:] != rows[:-1])
        rows, values = rows[is_first], values[is_first]
        same = values[1:] == values[:-1]
        is_shared = np.zeros(len(rows), bool)
        is_shared[1:] |= same
        is_shared[:-1] |= same
        rows, values = rows[is_shared], values[is_shared]
        return rows, np.flatnonzero(np.diff(values, prepend=values[:1] + np.uint64(1)))


def together(hashes: np.ndarray, kept: np.ndarray, always: Links, pictures: Links, texts: Links) -> np.ndarray:
    """The hash, uint64 (R,), of each row's group in place of its own; that of a row without links stays.

    Some texts and pictures recur everywhere: answers of one word, the logo of a site. Linked over them, most rows would
    be one group. While one holds more than a quarter of the rows, or all, first the most common texts link nothing any
    more, then, if rows have several pictures, the most common pictures.
    """
    largest = max(_LARGEST, int(_LARGEST_SHARE * np.count_nonzero(kept)))
    of_always, of_pictures, of_texts = (links.shared(kept) for links in (always, pictures, texts))
    if not any(len(rows) for rows, _ in (of_always, of_pictures, of_texts)):
        return hashes
    fixed = _joined(np.arange(len(kept)), _edges(of_always, None))
    groups = fixed
    limits: list[tuple[int | None, int | None]] = [(None, most) for most in _MOST_SHARING]
    if pictures.are_many:
        limits += [(most, 1) for most in _MOST_SHARING[1:]]
    for of_picture, of_text in limits:
        edges = np.concatenate([_edges(of_pictures, of_picture), _edges(of_texts, of_text)], axis=1)
        groups = _joined(fixed, edges)
        sizes = np.bincount(groups[kept], minlength=1)
        if sizes.max() <= largest and np.count_nonzero(sizes) > 1:
            break
    # The hash of the group is that of the member that is first in another order, so that it is as evenly spread.
    members = np.flatnonzero(kept)
    members = members[np.lexsort((hashes[members] * _ODD, groups[members]))]
    _, firsts = np.unique(groups[members], return_index=True)
    result = hashes.copy()
    result[members] = np.repeat(hashes[members[firsts]], np.diff(firsts, append=len(members)))
    return result


def overlap(links: Links, kept: np.ndarray, held_out: np.ndarray) -> int:
    """The number of values that kept rows have on both sides."""
    rows, starts = links.shared(kept)
    if not len(rows):
        return 0
    sides = held_out[rows]
    return int(np.count_nonzero(np.logical_or.reduceat(sides, starts) & ~np.logical_and.reduceat(sides, starts)))


def _edges(shared: tuple[np.ndarray, np.ndarray], most: int | None) -> np.ndarray:
    """Pairs of neighbouring rows, int64 (2, E), that share a value which ``most`` rows have at most (None: any)."""
    rows, starts = shared
    sizes = np.diff(starts, append=len(rows))
    is_linked = np.ones(len(rows), bool) if most is None else np.repeat(sizes <= most, sizes)
    is_linked[starts] = False
    second = np.flatnonzero(is_linked)
    return np.stack([rows[second - 1], rows[second]])


def _joined(groups: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The lowest row that each row is connected with, int64 (R,): over ``groups``, such an array, and over ``edges``,
    (2, E)."""
    groups = groups.copy()
    while True:
        ends = np.sort(groups[edges], axis=0)
        ends = ends[:, ends[0] != ends[1]]
        if not ends.size:
            return groups
        np.minimum.at(groups, ends[1], ends[0])
        while ((next_ := groups[groups]) != groups).any():
            groups = next_
