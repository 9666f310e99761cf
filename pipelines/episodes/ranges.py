"""Where the values of a dataset lie: measured by a scan, and compared with what the config says before any shard.

A scan looks at all actions, and at discrete observations. For each episode it keeps the lowest and highest value of
every component of a continuous action, and of every discrete field as a whole; those of the step that ``is_last`` marks
stand apart, because only the whole dataset says whether that step counts. Legend: N recorded steps of an episode, C
components of a field, W columns of all measured fields together, R rows of a scan.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines.episodes.reader import SourceFeatures, SourceField
from gatokit.pipelines.episodes.spec import rule_of
from gatokit.schemas.config_episodes import EpisodesConfig, Quantiles
from gatokit.schemas.errors import DataError
from gatokit.schemas.manifest import EpisodeSpec
from gatokit.schemas.tokens import BINS, DISCRETE_VALUES
from gatokit.tokenizers.tensors import Pairs, outside_range, range_ends

MOST_OUTSIDE = 0.001
"""If a larger share of a component's values lies outside of its range, the range is wrong."""
MOST_AT_ENDS = 0.01
"""If a larger share of a component's values lies at the ends of its range, the user is told."""
FEW_IDS = 64
"""If a component's values use fewer ids, the user is told."""
_MOST_SHOWN = 8
MEASURED = (
    # Each has the W columns of the measured fields.
    pa.field("low", pa.list_(pa.float64())),  # of the steps that is_last does not mark; infinite if there is none
    pa.field("high", pa.list_(pa.float64())),
    pa.field("end_low", pa.list_(pa.float64())),  # of the step that is_last marks
    pa.field("end_high", pa.list_(pa.float64())),
    pa.field("outside", pa.list_(pa.int64())),  # values outside of the stated range; 0 if there is none
    pa.field("at_ends", pa.list_(pa.int64())),  # values at its ends or outside
    pa.field("values", pa.list_(pa.float64())),  # of the fields that need them, one field after the other
)
"""The columns of a scan that say where values lie."""


class MeasuredField(BaseModel):
    """A field whose values a scan looks at.

    ``range`` is that of a continuous action, if it is stated. ``keeps_values`` is set if its quantiles are asked for.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    source: SourceField
    kind: Literal["discrete", "continuous"]
    is_action: bool
    width: int
    """Columns: C of a continuous field, 1 of a discrete one."""
    range: Pairs | None = None
    allowed: tuple[int, int] = (0, DISCRETE_VALUES - 1)
    """The lowest and highest value that a discrete field may have."""
    keeps_values: bool = False


def measured_fields(features: SourceFeatures, spec: EpisodeSpec, dataset: EpisodesConfig) -> tuple[MeasuredField, ...]:
    """All actions of a spec, and the discrete observations whose values may not fit."""
    found = []
    for field in spec.fields:
        source = features.step(field.source[0] if field.source else field.path)
        if source is None or source.form != "tensor" or field.kind not in ("discrete", "continuous"):
            continue
        always_fits = field.dtype == "bool" or (field.dtype == "uint8" and field.num is None)
        if not field.is_action and (field.kind == "continuous" or always_fits):
            continue
        most = min(field.num or DISCRETE_VALUES, DISCRETE_VALUES)
        found.append(
            MeasuredField(
                path=field.path,
                source=source,
                is_action=field.is_action,
                kind="discrete" if field.kind == "discrete" else "continuous",
                width=math.prod(field.shape) if field.kind == "continuous" else 1,
                range=field.range,
                allowed=(field.offset, field.offset + most - 1),
                keeps_values=isinstance(rule_of(dataset, source.path).range, Quantiles),
            )
        )
    return tuple(found)


# --- of the episodes of a scan -----------------------------------------------------------------------------------


def measure(
    columns: Sequence[np.ndarray],
    fields: Sequence[MeasuredField],
    begins: np.ndarray,
    stops: np.ndarray,
    ends: np.ndarray,
) -> dict[str, Any]:
    """The ``MEASURED`` columns of E episodes, (E, W), or E arrays for ``values``.

    The episodes' values of each field follow each other in a column (C, …).
    The steps of an episode that ``is_last`` does not mark go from ``begins`` to ``stops``, the one that it marks, if
    any, up to ``ends``, each int (E,). Without such a step its columns mean nothing.
    """
    parts = [_measure(values, field, begins, stops, ends) for values, field in zip(columns, fields, strict=True)]
    found: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts]).T for name in (parts[0] if parts else ())
    }
    kept = [values for values, field in zip(columns, fields, strict=True) if field.keeps_values]
    if kept:
        found["values"] = [
            np.concatenate([values[:, begin:stop].T.ravel() for values in kept]).astype(np.float64)
            for begin, stop in zip(begins, stops, strict=True)
        ]
    return found


def _measure(
    values: np.ndarray, field: MeasuredField, begins: np.ndarray, stops: np.ndarray, ends: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of one field, each (W, E)."""
    found: dict[str, np.ndarray] = {}
    end = values[:, ends - 1].astype(np.float64)
    for name, extreme, nothing in (("low", np.minimum, math.inf), ("high", np.maximum, -math.inf)):
        parts = {name: reduce_parts(extreme, values, begins, stops, nothing), f"end_{name}": end}
        is_one = field.kind == "discrete"
        found |= {key: extreme.reduce(part, axis=0, keepdims=True) if is_one else part for key, part in parts.items()}
    outside, at_ends = np.zeros((2, field.width, len(begins)), np.int64)
    if field.range:
        all_low, all_high, all_slack = range_ends(field.range, values.dtype)
        bounds = np.broadcast_arrays(all_low, all_high, all_slack, np.empty(field.width))[:3]
        for at, (low, high, slack) in enumerate(zip(*bounds, strict=True)):
            one, lowest, highest = values[at], found["low"][at], found["high"][at]
            if not ((lowest > low + slack) & (highest < high - slack)).all():
                mask = (one <= low + slack) | (one >= high - slack)
                at_ends[at] = reduce_parts(np.add, mask[None], begins, stops, 0)[0]
            if not ((lowest >= low - slack) & (highest <= high + slack)).all():
                mask = (one < low - slack) | (one > high + slack)
                outside[at] = reduce_parts(np.add, mask[None], begins, stops, 0)[0]
    return found | {"outside": outside, "at_ends": at_ends}


def reduce_parts(
    function: np.ufunc, values: np.ndarray, begins: np.ndarray, stops: np.ndarray, nothing: float
) -> np.ndarray:
    """``function`` of the values (C, …) in each of E parts that follow each other, float64 (C, E), or ``nothing`` if a
    part is empty."""
    result = np.full((len(values), len(begins)), nothing)
    there = begins < stops
    if there.any():
        bounds = np.stack([begins[there], stops[there]], axis=1).ravel()
        bounds = bounds[:-1] if bounds[-1] == values.shape[1] else bounds
        result[:, there] = function.reduceat(values, bounds, axis=1)[:, ::2]
    return result


# --- of a dataset ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What sound episodes hold in W columns: the lowest and highest values, (W,).

    ``counts``, int (4, W), has the numbers of all values, of those outside of the range, of those at its ends or
    outside, and of the episodes with a discrete value that has no id, among ``episodes``.
    """

    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    episodes: int

    def of(self, columns: slice) -> "Bounds":
        """The bounds of some columns."""
        return Bounds(self.low[columns], self.high[columns], self.counts[:, columns], self.episodes)

    @staticmethod
    def joined(parts: Sequence["Bounds"]) -> "Bounds":
        """The bounds of all episodes of several."""
        low, high = np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0)
        counts = np.sum([part.counts for part in parts], axis=0)
        return Bounds(low, high, counts, sum(part.episodes for part in parts))


@dataclasses.dataclass(frozen=True)
class FieldBounds:
    """The bounds of a field in each task of each directory, and in all of them."""

    field: MeasuredField
    by_task: list[tuple[str, Bounds]]

    @functools.cached_property
    def all(self) -> Bounds:
        """The bounds of all tasks together."""
        return Bounds.joined([bounds for _, bounds in self.by_task])


class Measurements:
    """The bounds of each task and directory of a dataset, over all its sound episodes, kept or not."""

    def __init__(self, fields: Sequence[tuple[MeasuredField, ...]], real_last_step: bool) -> None:
        """``fields`` are the measured fields of each directory."""
        self._fields, self._real = [list(_with_columns(item)) for item in fields], real_last_step
        self._bounds: dict[tuple[str, int], Bounds] = {}
        self.values: dict[tuple[str, int], list[np.ndarray]] = {}
        """The values that quantiles are taken of: blocks (…, C), by path and number of columns."""

    def add(self, table: pa.Table, directory: np.ndarray) -> None:
        """Takes the next scanned rows, which lie in these directories, int (R,)."""
        is_sound = pc.and_(pc.is_null(table["reason"]), pc.is_valid(table["low"]))
        sound = np.flatnonzero(pc.and_(is_sound, pc.is_valid(table["task"])).to_numpy())
        if not len(sound):
            return
        encoded = table["task"].combine_chunks()
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy()
        columns = {column.name: _Lists(table[column.name]) for column in MEASURED}
        steps = table["steps"].to_numpy()
        keys, group = np.unique(np.stack([codes[sound], directory[sound]], axis=1), axis=0, return_inverse=True)
        by_group = np.split(sound[np.argsort(group, kind="stable")], np.cumsum(np.bincount(group))[:-1])
        for (code, number), rows in zip(keys.tolist(), by_group, strict=True):
            self._add((names[code], number), rows, steps, columns)

    def by_field(self) -> dict[tuple[str, int], FieldBounds]:
        """The bounds of each field by path and number of columns."""
        found: dict[tuple[str, int], FieldBounds] = {}
        for (task, number), bounds in sorted(self._bounds.items()):
            for field, part in self._fields[number]:
                item = found.setdefault((field.path, field.width), FieldBounds(field, []))
                item.by_task.append((task, bounds.of(part)))
        return found

    def highest(self) -> dict[tuple[str, str], float]:
        """The highest value of each field by task and path."""
        found: dict[tuple[str, str], float] = {}
        for (path, _), item in self.by_field().items():
            for task, bounds in item.by_task:
                found[task, path] = max(found.get((task, path), -math.inf), float(bounds.high.max()))
        return found

    def _add(self, key: tuple[str, int], rows: np.ndarray, steps: np.ndarray, columns: Mapping[str, "_Lists"]) -> None:
        """Takes rows of one task and directory."""
        fields = self._fields[key[1]]
        width = sum(field.width for field, _ in fields)
        low, high = columns["low"].matrix(rows, width, math.inf), columns["high"].matrix(rows, width, -math.inf)
        end_low = columns["end_low"].matrix(rows, width, math.inf)
        if self._real:
            low = np.minimum(low, end_low)
            high = np.maximum(high, columns["end_high"].matrix(rows, width, -math.inf))
        # An episode without a step has no values, and one with NaN or an infinity will be rejected.
        finite = np.isfinite(low).all(axis=1) & np.isfinite(high).all(axis=1)
        if not finite.any():
            return
        rows, low, high, end_low = rows[finite], low[finite], high[finite], end_low[finite]
        counts = np.zeros((4, width), np.int64)
        total, outside, at_ends, misfits = counts
        total[:] = steps[rows].sum()
        outside[:] = columns["outside"].matrix(rows, width, 0).sum(axis=0)
        at_ends[:] = columns["at_ends"].matrix(rows, width, 0).sum(axis=0)
        for field, part in fields:
            if field.kind == "discrete":
                lowest, highest = field.allowed
                misfits[part] = np.count_nonzero((low[:, part] < lowest) | (high[:, part] > highest))
            elif self._real and field.range is not None:
                ends = outside_range(end_low[np.isfinite(end_low).all(axis=1), part], field.range)
                outside[part] += ends[0]
                at_ends[part] += ends[1]
        found = Bounds(low.min(axis=0), high.max(axis=0), counts, len(rows))
        self._bounds[key] = Bounds.joined([self._bounds[key], found]) if key in self._bounds else found
        keepers = [(field, part) for field, part in fields if field.keeps_values]
        for row in rows.tolist() if keepers else ():
            values, end = columns["values"].of(row), columns["end_low"].of(row)
            counted, begin = len(values) // sum(field.width for field, _ in keepers), 0
            for field, part in keepers:
                blocks = self.values.setdefault((field.path, field.width), [])
                stop = begin + counted * field.width
                blocks.append(values[begin:stop].reshape(-1, field.width))
                begin = stop
                if self._real and len(end):
                    blocks.append(end[part][None])


def _with_columns(fields: Sequence[MeasuredField]) -> Iterator[tuple[MeasuredField, slice]]:
    """The fields with their columns among those of all."""
    begin = 0
    for field in fields:
        yield field, slice(begin, begin + field.width)
        begin += field.width


def data_ranges(measured: Measurements, dataset: EpisodesConfig) -> dict[tuple[str, int], Pairs]:
    """The range of every continuous action that the config leaves to the data, by path and number of components: the
    lowest and highest value of each component, or two quantiles."""
    found: dict[tuple[str, int], Pairs] = {}
    for key, item in measured.by_field().items():
        asked = rule_of(dataset, item.field.source.path).range
        if item.field.kind != "continuous" or not (asked == "data" or isinstance(asked, Quantiles)):
            continue
        low, high = item.all.low, item.all.high
        if isinstance(asked, Quantiles):
            chosen = np.quantile(np.concatenate(measured.values[key]), asked.quantiles, axis=0)
            # Quantiles that are equal would make one value of a component that varies.
            low, high = np.where(chosen[0] < chosen[1], chosen, (low, high))
        found[key] = _pairs(low, high)
    return found


def _pairs(low: np.ndarray, high: np.ndarray) -> Pairs:
    """The pairs of lowest and highest values, float64 (C,). A constant is the middle of a range of 1."""
    half = np.where(low == high, np.maximum(0.5, np.abs(low) * 1e-6), 0.0)
    return tuple(zip((low - half).tolist(), (high + half).tolist(), strict=True))


# --- before any shard: what does not fit, and what fits badly ------------------------------------------------------


def check_values(measured: Measurements, dataset: EpisodesConfig, config_path: str, most_bad: int) -> list[str]:
    """Notices about the values of the dataset's fields.

    ``most_bad`` is the number of episodes that may be bad. Raises DataError, which names every field at once and what
    to write, if values lie outside of their range or have no id.
    """
    problems, notices = [], []
    for item in measured.by_field().values():
        source = item.field.source.path
        where = f"{config_path}.fields.{source}"
        if item.field.kind == "discrete":
            problem, notice = _discrete(item, where, most_bad)
        else:
            problem, notice = _continuous(item, where, rule_of(dataset, source).clip is True)
        problems += problem
        notices += [f"{dataset.name}: {text}" for text in notice]
    if problems:
        raise DataError(f"{dataset.name}: " + "; ".join(problems))
    return notices


def _discrete(item: FieldBounds, where: str, most_bad: int) -> tuple[list[str], list[str]]:
    """Problems and notices of a discrete field."""
    field, count = item.field, int(item.all.counts[3].sum())
    if not count:
        return [], []
    low, high, (first, last) = int(item.all.low.min()), int(item.all.high.max()), field.allowed
    ways = [f"offset: {low}"] if high - low < DISCRETE_VALUES and low != first else []
    ways += [f"num: {high + 1}"] if first == 0 <= low and last < high < DISCRETE_VALUES else []
    ways += ["as: continuous, range: data"] if field.path.split("/")[0] == "action" else ["as: continuous"]
    text = f"{field.path} holds values from {low} to {high}, and {first} to {last} have ids, in {count} of "
    text += f"{item.all.episodes} episodes (out_of_range); give {where}: " + " or ".join(f"{{{way}}}" for way in ways)
    is_whole_task = any(bounds.counts[3].sum() == bounds.episodes for _, bounds in item.by_task)
    return ([text], []) if count > most_bad or is_whole_task else ([], [text])


def _continuous(item: FieldBounds, where: str, clips: bool) -> tuple[list[str], list[str]]:
    """Problems and notices of a continuous action."""
    path, stated = item.field.path, item.field.range
    if stated is None:
        return [], []
    low, high, (total, outside, at_ends, _) = item.all.low, item.all.high, item.all.counts
    shares = [bounds.counts[1] / np.maximum(1, bounds.counts[0]) for _, bounds in item.by_task]
    is_wrong = np.max(shares, axis=0) > MOST_OUTSIDE
    numbers = ", ".join(f"[{_number(a)}, {_number(b)}]" for a, b in _pairs(low, high))
    ways = f"{where}: {{as: continuous, range: data}} or {{as: continuous, range: [{numbers}]}}"
    if is_wrong.any() and not clips:
        which = _listed(is_wrong, lambda at: f"component {at}: {outside[at]:,} of {total[at]:,}")
        ranges = [list(pair) for pair in stated] if len(stated) <= _MOST_SHOWN else f"of {len(stated)} pairs"
        text = f"values of {path} lie outside of its range {ranges} ({which}); give {ways}, or clip: true"
        return [text], []
    notices = []
    if outside.any():
        which = _listed(outside > 0, lambda at: f"component {at}: {outside[at]:,} of {total[at]:,}")
        notices.append(f"values of {path} outside of its range are clipped ({which})")
    range_low, range_high = np.broadcast_to(np.array(stated).T[..., None].reshape(2, -1), (2, len(low)))
    ids = (np.minimum(high, range_high) - np.maximum(low, range_low)) / (range_high - range_low) * BINS
    is_narrow = (low < high) & (ids + 1 < FEW_IDS)
    if is_narrow.any():
        which = _listed(is_narrow, lambda at: f"component {at}: {max(1, math.ceil(ids[at]))}")
        notices.append(
            f"{path} is narrow for its range: fewer than {FEW_IDS} of {BINS:,} ids are used ({which}); {ways}"
        )
    is_full = (at_ends > MOST_AT_ENDS * total) & (at_ends < total)
    if is_full.any() and not clips:
        which = _listed(is_full, lambda at: f"component {at}: {at_ends[at] / total[at]:.1%}")
        notices.append(f"values of {path} are saturated: more than {MOST_AT_ENDS:.0%} lie at the ends ({which})")
    return [], notices


def _number(value: float) -> str:
    """A number in the fewest digits that give its float32 again."""
    return str(np.float32(value))


def _listed(chosen: np.ndarray, text: Callable[[int], str]) -> str:
    """The texts of the chosen components, the first few of many."""
    numbers = np.flatnonzero(chosen).tolist()
    more = f", and {len(numbers) - _MOST_SHOWN} more" if len(numbers) > _MOST_SHOWN else ""
    return ", ".join(map(text, numbers[:_MOST_SHOWN])) + more


class _Lists:
    """A column of lists of numbers; null is an empty list."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        lists = column.combine_chunks()
        self._lengths = lists.value_lengths().fill_null(0).to_numpy()
        self._begins = np.cumsum(self._lengths) - self._lengths
        self._values = lists.flatten().to_numpy()

    def of(self, row: int) -> np.ndarray:
        """The list of one row."""
        begin = self._begins[row]
        return self._values[begin : begin + self._lengths[row]]

    def matrix(self, rows: np.ndarray, width: int, nothing: float) -> np.ndarray:
        """The lists of rows, float64 (rows, width); those that are empty are full of ``nothing``."""
        result = np.full((len(rows), width), nothing, np.float64)
        there = self._lengths[rows] == width
        result[there] = self._values[self._begins[rows[there]][:, None] + np.arange(width)]
        return result
