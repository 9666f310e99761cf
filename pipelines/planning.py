"""Plans a dataset: the units of its scan, and after the scan a task for every shard.

A shard task has the rows and the header of one shard: they determine its bytes, and its fingerprint names them. Tasks
are written to files. A worker, on any machine and at any time, reads one and writes the shard. Legend: R rows of a
dataset.
"""

import functools
import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, TypeAdapter

from gatokit.pipelines import versions
from gatokit.pipelines.documents import reader as document_reader
from gatokit.pipelines.documents import tokenize as document_tokenize
from gatokit.pipelines.episodes import filter as episode_filter
from gatokit.pipelines.episodes import plan as episode_plan
from gatokit.pipelines.episodes import tokenize as episode_tokenize
from gatokit.pipelines.episodes.reader import EpisodeFile
from gatokit.pipelines.episodes.scan import EpisodeUnit
from gatokit.pipelines.scan_cache import ScannedFile, Segment, stand
from gatokit.pipelines.stages import METADATA, FilterResult, ShardSettings, parts, with_metadata
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.config_episodes import EpisodesConfig
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.index import INDEX_SUFFIX
from gatokit.schemas.manifest import INDEX_VERSION, digest, json_digest
from gatokit.schemas.record import RECORD_VERSION
from gatokit.storage.files import is_remote, read_rows, side_by_side, write_rows
from gatokit.tokenizers.text import TextTokenizer

SCAN_UNIT_BYTES = 256 << 20
"""Files are scanned together up to about this many bytes."""
_LARGEST_GROUP = 2
"""A group of joined files ends at the latest at this multiple of the split size."""
_DIGESTED_ROWS = 1 << 14
"""Rows whose values are Python's at a time, because as such they take ten times the memory."""
_METADATA_KEY = b"gatokit.shard_task"
_OF_KEPT = (
    "episode_id",
    "task",
    "agent",
    "spec",
    "split",
    "detail",
    "source_file",
    "source_position",
    "offset",
    "length",
    "crc",
    "payload",
)
"""Columns of a shard task that the records of kept rows, and what training draws of them, depend on."""

DatasetPlan = episode_plan.EpisodesPlan | document_reader.DocumentsPlan
"""A dataset before its scan."""
ScanUnit = EpisodeUnit | document_reader.DocumentUnit
"""Consecutive files of a dataset that are scanned together."""
ShardHeader = episode_tokenize.EpisodeShardHeader | document_tokenize.DocumentShardHeader
"""What all rows of a shard share."""
_UNIT: TypeAdapter[ScanUnit] = TypeAdapter(Annotated[ScanUnit, Field(discriminator="kind")])
_HEADER: TypeAdapter[ShardHeader] = TypeAdapter(Annotated[ShardHeader, Field(discriminator="kind")])


@dataclass(frozen=True)
class _Kind:
    """What a kind of dataset does in each stage."""

    plan: Callable[[Any, str, Path], DatasetPlan]
    filter: Callable[..., FilterResult]
    task_rows: Callable[..., pa.Table]
    shard_header: Callable[..., ShardHeader]


_KINDS = {
    "episodes": _Kind(
        episode_plan.plan_episodes,
        episode_filter.filter_episodes,
        episode_filter.task_rows,
        episode_tokenize.shard_header,
    ),
    "documents": _Kind(
        document_reader.plan_documents,
        document_tokenize.filter_documents,
        document_tokenize.task_rows,
        document_tokenize.shard_header,
    ),
}
"""By ``DatasetPlan.kind``."""


# --- before the scan -----------------------------------------------------------------------------------------


def plan_datasets(config: BuildConfig, base: Path) -> list[DatasetPlan]:
    """The plan of each dataset of a config; relative paths start at ``base``.

    Raises ConfigError or DataError if its sources cannot be used.
    """
    plans = []
    for number, dataset in enumerate(config.datasets):
        kind = "episodes" if isinstance(dataset, EpisodesConfig) else "documents"
        plans.append(_KINDS[kind].plan(dataset, f"datasets[{number}]", base))
    return plans


def text_in(plan: DatasetPlan) -> str | None:
    """What of a dataset is text, in words; None if nothing is."""
    if isinstance(plan, document_reader.DocumentsPlan):
        return "its documents"
    texts = (field for directory in plan.directories for field in directory.spec.fields if field.kind == "text")
    return next((f"its field {(field.source or (field.path,))[0]}" for field in texts), None)


def check_vocabulary(plans: Sequence[DatasetPlan], text: TextTokenizer | None, path: str | Path) -> None:
    """Raises ConfigError if a dataset of the config at ``path`` has text and there is no vocabulary."""
    for plan in plans if text is None else ():
        what = text_in(plan)
        if what is not None:
            raise ConfigError(
                f"{path}: vocabulary: is not given, and {plan.field} ({plan.config.name}) has text, {what}; give a "
                "SentencePiece model, which `gatokit vocab` trains"
            )


def scan_units(
    plan: DatasetPlan,
    max_bytes: int,
    unit_bytes: int | None = None,
    *,
    known: Container[int] = (),
    limit: int | None = None,
) -> Sequence[ScanUnit]:
    """The dataset's files in order, without those whose numbers are ``known``, grouped into units of about
    ``unit_bytes``.

    Episodes or documents above ``max_bytes`` will be rejected. With ``limit`` the files of one task, or of a dataset of
    documents, are one unit, which ends with that many rows. Files without a task (``task_of``) are read completely.
    """
    groups: list[list[int]] = []
    limited: dict[str, list[int]] = {}
    size = 0
    files: Sequence[EpisodeFile | document_reader.DocumentFile] = plan.files
    for ordinal, file in enumerate(files):
        if ordinal in known:
            continue
        task = plan.task_of(ordinal)
        if limit is not None and task is not None:
            limited.setdefault(task, []).append(ordinal)
            continue
        if not groups or size + file.size > (unit_bytes or SCAN_UNIT_BYTES):
            groups.append([])
            size = 0
        groups[-1].append(ordinal)
        size += file.size
    units: list[ScanUnit] = [plan.scan_unit(group, max_bytes) for group in groups]
    units += [plan.scan_unit(group, max_bytes, limit) for group in limited.values()]
    return units


def known_files(
    plan: DatasetPlan, keys: Mapping[int, str] | Sequence[str], found: Mapping[str, ScannedFile]
) -> dict[int, ScannedFile]:
    """The rows in ``found`` of the dataset's files with these ``keys``, by the numbers of the files. Of a file of which
    something was lost, or whose pictures changed, there are none."""
    known = {}
    for ordinal, key in keys.items() if isinstance(keys, Mapping) else enumerate(keys):
        item = found.get(key)
        folder = getattr(plan.files[ordinal], "image_dir", None)
        if item is not None and item.is_whole and (folder is None or stand(folder, item.pictures)):
            known[ordinal] = item
    return known


def unit_from_json(text: str | bytes) -> ScanUnit:
    """Reads a unit that was written with ``model_dump_json``."""
    return _UNIT.validate_json(text)


# --- shard tasks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardTask:
    """A shard's header and rows (schema ``TASK_ROWS``, with columns of metadata, or ``DOCUMENT_TASK_ROWS``)."""

    header: ShardHeader
    rows: pa.Table

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over exactly what the index depends on.

        These are the source files by name and size, the rows with the checksums of their content and their verdicts,
        the columns of values stored with the episodes, specs, rules and settings. Paths, weights, runner and workers do
        not matter.
        """
        header = {"index_version": INDEX_VERSION, **self._common, **self.header.identity()}
        stored = with_metadata(pa.table({}), self.rows.slice(0, 0))
        if stored.column_names:
            header["columns"] = [(column.name, str(column.type)) for column in stored.schema]
        names = [name for name in self.rows.column_names if not name.startswith(METADATA)]
        return _rows_digest(header, self.rows, names)

    @functools.cached_property
    def kept_fingerprint(self) -> str:
        """Sixteen hexadecimal digits over exactly what the records depend on: the kept rows with the checksums of their
        content, the names of their files, their specs, rules and settings. No other row matters."""
        kept = self.rows.filter(self.rows["kept"])
        files, specs = (sorted(filter(None.__ne__, kept[name].unique().to_pylist())) for name in ("file", "spec"))
        header = {**self._common, **self.header.kept_identity(files, specs)}
        return _rows_digest(header, kept, [name for name in _OF_KEPT if name in kept.column_names])

    @property
    def _common(self) -> dict[str, Any]:
        return {"record_version": RECORD_VERSION, "settings": self.header.settings.model_dump(mode="json")}

    @property
    def stem(self) -> str:
        """The name of the shard, without suffixes."""
        return f"{self.header.dataset}-{self.kept_fingerprint}"

    @property
    def index(self) -> str:
        """The name of the index."""
        return f"{self.stem}-{self.fingerprint}{INDEX_SUFFIX}"

    def write(self, path: str | Path) -> None:
        """Writes the task to a file."""
        write_rows(path, self.rows.replace_schema_metadata({_METADATA_KEY: self.header.model_dump_json().encode()}))

    @staticmethod
    def read(path: str | Path) -> "ShardTask":
        """Reads a task that ``write`` wrote."""
        rows = read_rows(path)
        return ShardTask(_HEADER.validate_json(rows.schema.metadata[_METADATA_KEY]), rows)


def stem_of_index(name: str) -> str:
    """The name of the shard that an index with this name belongs to, without suffixes."""
    return name.removesuffix(INDEX_SUFFIX)[:-17]


def _rows_digest(header: dict[str, Any], rows: pa.Table, names: Sequence[str]) -> str:
    return json_digest([header, [_column_digest(rows[name]) for name in names]], 8)


def _column_digest(column: pa.ChunkedArray) -> str:
    """The digest of a column's values as Python writes a list of them, which does not depend on Arrow's layout."""
    hash_ = hashlib.blake2b(b"[", digest_size=32)
    for begin in range(0, len(column), _DIGESTED_ROWS):
        values = repr(column.slice(begin, _DIGESTED_ROWS).to_pylist())[1:-1]
        hash_.update((", " if begin else "").encode() + values.encode())
    hash_.update(b"]")
    return hash_.hexdigest()


@dataclass(frozen=True)
class PlannedShard:
    """A shard task in a file, the number of its rows that are to be kept, and their stored bytes. ``stem`` and
    ``index`` are those of the task."""

    path: Path
    stem: str
    index: str
    fingerprint: str
    kept: int
    length: int


@dataclass(frozen=True)
class Plan:
    """A dataset after its scan, with its shards in source order."""

    dataset: DatasetPlan
    result: FilterResult
    shards: tuple[PlannedShard, ...]


def plan_shards(
    dataset: DatasetPlan,
    scanned: Sequence[Segment],
    config: BuildConfig,
    vocabulary_digest: str,
    limit: int | None,
    directory: Path,
    held_out_before: np.ndarray | None = None,
) -> Plan:
    """Filters the rows of the scanned units, and writes the shard tasks of the build into ``directory``.

    ``limit`` takes only the first episodes of each task. ``held_out_before`` are the hashes, uint64, of the ids that
    were held out before, and stay so. Raises DataError if the error budget is exceeded, a task keeps nothing or two
    episodes have the same id.
    """
    settings = ShardSettings(
        chunk_tokens=config.chunk_tokens, discrete_offset=config.discrete_offset, vocabulary_digest=vocabulary_digest
    )
    result = filter_dataset(dataset, scanned, config, limit, held_out_before)
    shards = []
    with side_by_side(directory) as submit:
        for rows in _splits(dataset, result, config.shard_bytes):
            files, file = np.unique(rows["file"].to_numpy(), return_inverse=True)
            column = rows.schema.get_field_index("file")
            rows = rows.set_column(column, rows.schema.field(column), pa.array(file, pa.int32()))
            header = _KINDS[dataset.kind].shard_header(dataset, result, files.tolist(), rows, settings)
            if header.has_pictures:
                of_pictures = settings.model_copy(update={"codecs": versions.codecs()})
                header = header.model_copy(update={"settings": of_pictures})
            of_objects = [number for number in files.tolist() if is_remote(dataset.files[number].path)]
            generations = {dataset.files[number].name: dataset.versions[number] for number in of_objects}
            task = ShardTask(header.model_copy(update={"generations": generations}), rows)
            path = directory / f"{task.stem}-{task.fingerprint}.arrow"
            submit(functools.partial(task.write, path))
            kept = rows["kept"].to_numpy()
            length = int(rows["length"].to_numpy()[kept].sum())
            shards.append(
                PlannedShard(path, task.stem, task.index, task.fingerprint, int(np.count_nonzero(kept)), length)
            )
    return Plan(dataset, result, tuple(shards))


def filter_dataset(
    dataset: DatasetPlan,
    scanned: Sequence[Segment],
    config: BuildConfig,
    limit: int | None,
    held_out_before: np.ndarray | None = None,
) -> FilterResult:
    """The verdicts over the rows of the scanned units, and which of them are held out; errors as ``plan_shards``."""
    return _KINDS[dataset.kind].filter(dataset, scanned, config, limit, held_out_before)


def task_rows(dataset: DatasetPlan, result: FilterResult) -> Iterator[pa.Table]:
    """All rows in source order with their verdicts, one table per unit of the scan.

    They are as in a shard task, but ``file`` is an index into the dataset's files.
    """
    begin = 0
    for scanned in result.scanned:
        tables = []
        for part in parts(scanned):
            end = begin + part.num_rows
            tables.append(_KINDS[dataset.kind].task_rows(dataset, result, part, slice(begin, end)))
            begin = end
        yield pa.concat_tables(tables)


def _splits(dataset: DatasetPlan, result: FilterResult, shard_bytes: int) -> Iterator[pa.Table]:
    """The rows of each split. Files of several units can be joined into one split."""
    splitter = Splitter(dataset.files, shard_bytes)
    pending: list[pa.Table] = []
    current = -1
    for table in task_rows(dataset, result):
        split = splitter.assign(table["file"].to_numpy(), table["length"].to_numpy(), table["offset"].to_numpy())
        # A unit may have no rows, if its files are empty or lie behind a limit.
        starts = np.flatnonzero(np.diff(split, prepend=-1)).tolist()
        for start, end in pairwise([*starts, len(split)]):
            if split[start] != current and pending:
                yield pa.concat_tables(pending)
                pending = []
            current = split[start]
            pending.append(table.slice(start, end - start))
    if pending:
        yield pa.concat_tables(pending)


# --- which rows become one shard -----------------------------------------------------------------------------


class Splitter:
    """Assigns rows to splits, file after file: large files are divided and small ones joined.

    The name of a file decides whether a group of small files ends with it, so that a new file changes its own group and
    no other. Only if no name ends a group in time, its size does; then the groups up to the next such name may change
    too.
    """

    def __init__(self, files: Sequence[EpisodeFile | document_reader.DocumentFile], split_bytes: int) -> None:
        self._files, self._split_bytes = files, split_bytes
        self._current = self._held = 0

    def assign(self, file: np.ndarray, length: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """The split of the next rows, int64 (R,), counted from 0 over all calls. All rows of a file come in one call.

        ``file``, int (R,), is the row's file as an ascending index. ``length``, int64 (R,), is the row's size in bytes,
        and ``offset``, int64 (R,), where it is stored: rows of one row group of Parquet stay together.
        """
        split = np.zeros(len(file), np.int64)
        ordinals, starts = np.unique(file, return_index=True)
        for ordinal, start, end in zip(ordinals.tolist(), starts, [*starts[1:], len(file)], strict=False):
            sizes = length[start:end]
            total = int(sizes.sum())
            if total > self._split_bytes:
                self._current += self._held > 0
                pieces = -(-total // self._split_bytes) if self._files[ordinal].divides else 1
                before = np.cumsum(sizes) - sizes
                if self._files[ordinal].divides_at_offsets:
                    stored = offset[start:end]
                    firsts = np.flatnonzero(np.diff(stored, prepend=stored[0] - 1))
                    before = before[np.repeat(firsts, np.diff([*firsts, len(stored)]))]
                _, numbers = np.unique(before * pieces // total, return_inverse=True)
                split[start:end] = self._current + numbers
                self._current += int(numbers[-1]) + 1
                self._held = 0
                continue
            if self._held + total > _LARGEST_GROUP * self._split_bytes:
                self._current, self._held = self._current + 1, 0
            split[start:end] = self._current
            self._held += max(total, 1)
            # A name ends its group with a probability that is the file's share of a split.
            if int(digest(self._files[ordinal].name.encode(), 8), 16) < total / self._split_bytes * 2.0**64:
                self._current, self._held = self._current + 1, 0
        return split
