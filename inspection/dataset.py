"""One dataset of a finished build or scan: its tasks, its index and its stored episodes."""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from gatokit.inspection.episode import StoredEpisode, join
from gatokit.inspection.rows import EpisodeRow, TaskRow
from gatokit.inspection.shards import ShardReader, open_shard
from gatokit.schemas.config import Keep
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import INDEX, INDEX_VERSION
from gatokit.schemas.manifest import DATASET, TASKS_FILE, Dataset, DatasetFile
from gatokit.schemas.record import Record
from gatokit.schemas.spec import EpisodeSpec
from gatokit.schemas.tokens import TokenIds
from gatokit.tokenizers.episode import EpisodeTokenizer
from gatokit.tokenizers.text import TextTokenizer

_FILE = "__filename"
_VERSION = b"gatokit.index"
_REPEATED = ["task", "agent", "spec", "split", "reason", "source_file"]


class DatasetReader:
    """Reads one dataset of a directory; ``gatokit.inspection.open_directory`` makes these.

    ``totals`` is the dataset's entry in the manifest, ``keep`` the rule that it was filtered by.
    """

    def __init__(
        self,
        path: Path,
        totals: Dataset,
        config: dict[str, Any],
        ids: TokenIds,
        text: Callable[[], TextTokenizer],
    ) -> None:
        """``config`` is the dataset's part of the manifest's config; ``text`` gives the vocabulary on demand."""
        self.path = path
        self.totals = totals
        self.name = totals.name
        self.keep = Keep.model_validate(config["keep"])
        self._ids = ids
        self._text = text
        self._tokenizers: dict[str, EpisodeTokenizer] = {}

    @functools.cached_property
    def described(self) -> DatasetFile:
        """``dataset.json``: the distinct specs, and each task's."""
        return DatasetFile.read(self.path / DATASET)

    @functools.cached_property
    def tasks(self) -> list[TaskRow]:
        """The rows of ``tasks.parquet``, one a task and agent; DataError where it cannot be read."""
        try:
            return [TaskRow(**row) for row in pq.read_table(self.path / TASKS_FILE).to_pylist()]
        except (OSError, pa.ArrowInvalid, TypeError) as error:
            raise DataError(f"{self.path / TASKS_FILE} cannot be read: {error}") from None

    @property
    def task_names(self) -> list[str]:
        """Every task once, in order of name."""
        return list(dict.fromkeys(row.task for row in self.tasks))

    def spec(self, task: str) -> EpisodeSpec:
        """The fields of a task's time step."""
        return self.described.specs[self.described.tasks[task].spec]

    def index(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """The index of all splits in order: the named columns (all by default) of the rows for which ``where``
        holds. Columns of few distinct values are dictionary-encoded. DataError where a file cannot be read."""
        try:
            table = self._files().to_table(columns=None if columns is None else list(columns), filter=where)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"the index of {self.path} cannot be read: {error}") from None
        return table.unify_dictionaries()

    def episodes(
        self, *, task: str | None = None, kept: bool | None = None, split: str | None = None
    ) -> Iterator[EpisodeRow]:
        """Rows of the index in order, read as they are asked for: those of one task, those that are kept (or
        dropped), those of one split (``train`` or ``held_out``)."""
        wanted = {"task": task, "kept": kept, "split": split}
        conditions = [pc.field(name) == value for name, value in wanted.items() if value is not None]
        yield from self._rows(functools.reduce(operator.and_, conditions) if conditions else None)

    def row(self, episode_id: str) -> EpisodeRow | None:
        """The index row of one episode; None where there is none of that id."""
        return next(self._rows(pc.field("episode_id") == episode_id), None)

    def episode(self, episode: str | EpisodeRow) -> StoredEpisode:
        """A kept episode, by its id or its row, joined from all its records.

        DataError where there is none, where it was dropped, where the directory is a scan, and where its
        records are damaged or another's.
        """
        row = self.row(episode) if isinstance(episode, str) else episode
        if row is None:
            raise DataError(f"{self.name} has no episode {episode!r}")
        return next(self.read([row]))

    def read(self, rows: Iterable[EpisodeRow]) -> Iterator[StoredEpisode]:
        """The episodes of ``rows``; a shard stays open as long as they come from it. Errors as ``episode``."""
        with ExitStack() as stack:
            path, reader = None, None
            for row in rows:
                wanted = self.shard_of(row)
                if path != wanted or reader is None:
                    stack.close()
                    path, reader = wanted, stack.enter_context(open_shard(wanted))
                yield join(_records(reader, row, wanted), row, self._tokenizer(row))

    def shard_of(self, row: EpisodeRow) -> Path:
        """The file that holds a kept episode; DataError where nothing of it is stored."""
        if row.shard is None:
            why = "the directory is a scan, which stores no tokens" if row.kept else f"it was dropped ({row.reason})"
            raise DataError(f"{self.name}: nothing is stored of episode {row.episode_id!r}: {why}")
        return self.path / row.shard

    def _tokenizer(self, row: EpisodeRow) -> EpisodeTokenizer:
        assert row.spec is not None
        if row.spec not in self._tokenizers:
            spec = self.described.specs.get(row.spec)
            if spec is None:
                raise DataError(f"{self.path / DATASET} lacks the spec {row.spec} of episode {row.episode_id!r}")
            needs_text = any(field.kind == "text" for field in spec.fields)
            self._tokenizers[row.spec] = EpisodeTokenizer(spec, self._ids, self._text() if needs_text else None)
        return self._tokenizers[row.spec]

    def _files(self) -> pads.Dataset:
        names = [split.index for split in self.totals.splits]
        options = pads.ParquetReadOptions(dictionary_columns=_REPEATED)
        schema = pa.schema([_encoded(field) for field in INDEX])
        files = pads.dataset(
            [str(self.path / name) for name in names], schema=schema, format=pads.ParquetFileFormat(options)
        )
        first = next(files.get_fragments()).physical_schema.metadata or {}
        version = int(first.get(_VERSION, b"0"))
        if version > INDEX_VERSION:
            raise DataError(
                f"{self.path / names[0]} has index version {version} and this gatokit reads up to {INDEX_VERSION}: "
                "install a newer gatokit"
            )
        return files

    def _rows(self, where: pc.Expression | None) -> Iterator[EpisodeRow]:
        parts = {split.index: [part.file for part in split.parts] for split in self.totals.splits}
        try:
            for batch in self._files().to_batches(columns=[*INDEX.names, _FILE], filter=where):
                for row in batch.to_pylist():
                    files = parts[PurePosixPath(row.pop(_FILE)).name]
                    yield EpisodeRow.from_columns(row, None if row["part"] is None else files[row["part"]])
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"the index of {self.path} cannot be read: {error}") from None


def _encoded(field: pa.Field) -> pa.Field:
    return field.with_type(pa.dictionary(pa.int32(), pa.string())) if field.name in _REPEATED else field


def _records(reader: ShardReader, row: EpisodeRow, path: Path) -> list[Record]:
    assert row.first_record is not None
    assert row.record_tokens is not None
    data = reader.read(row.first_record, row.first_record + len(row.record_tokens))
    try:
        return [Record.from_bytes(record) for record in data]
    except ValueError as error:
        raise DataError(f"{path}: a record of episode {row.episode_id!r} is damaged: {error}") from None
