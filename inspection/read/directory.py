"""Opens finished builds and scans: their datasets, indexes, and stored episodes or documents."""

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError

from gatokit.inspection.read.index import EpisodeRow, OfTasks, TaskRow, TaskTotals
from gatokit.inspection.read.stored import StoredDocument, StoredEpisode, join_document, join_episode
from gatokit.schemas.config import CorpusConfig
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.errors import DataError, MalformedError
from gatokit.schemas.index import INDEX, METADATA_TYPES, OF_TASK, RESERVED, ROW_COLUMNS
from gatokit.schemas.manifest import (
    MANIFEST,
    DatasetEntry,
    DatasetFile,
    EpisodeSpec,
    Manifest,
    MetadataType,
    SplitEntry,
    local_directory,
)
from gatokit.schemas.record import Record
from gatokit.schemas.untrusted import first_problem
from gatokit.schemas.where import COLUMNS, ColumnType, column_type
from gatokit.storage.array_record import ArrayRecordFile
from gatokit.storage.folder import listed_file, read_listed_dataset, read_manifest
from gatokit.storage.index import check_columns, index_schema, read_tasks
from gatokit.tokenizers.document import DocumentTokenizer
from gatokit.tokenizers.episode import EpisodeTokenizer
from gatokit.tokenizers.text import TextTokenizer

_FILE = "__filename"
_LITTLE_AHEAD: dict[str, Any] = {"batch_size": 1 << 16, "batch_readahead": 2, "fragment_readahead": 1}
"""Arrow's default read-ahead needs some hundred MiB more, and is not faster."""
_MOST_PROBED = 50
"""Index files, about, whose columns are looked at."""
_CORPUS: TypeAdapter[CorpusConfig] = TypeAdapter(Annotated[CorpusConfig, Field(discriminator="kind")])
_REPEATED = ["task", "agent", "spec", "split", "reason", "source_file"]
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema([field.with_type(_DICTIONARY) if field.name in _REPEATED else field for field in INDEX])


@dataclass(frozen=True)
class Directory:
    """A finished directory: its manifest, and a reader of every dataset by name, in the manifest's order.

    No file stays open between calls.
    """

    path: Path
    manifest: Manifest

    @functools.cached_property
    def datasets(self) -> "dict[str, DatasetReader]":
        """The datasets by name."""
        configs = self.manifest.dataset_configs
        return {totals.name: DatasetReader(self, totals, configs[totals.name]) for totals in self.manifest.datasets}

    @functools.cached_property
    def text(self) -> TextTokenizer | None:
        """The text tokenizer that the build's tokens were made with; None if it has no text.

        Raises DataError in a scan, which has none.
        """
        if self.manifest.content == "scan":
            raise DataError(f"{self.path} is a scan and holds no vocabulary")
        if self.manifest.vocabulary is None:
            return None
        path = self.file(self.manifest.vocabulary.file)
        text = TextTokenizer.load(path)
        if text.digest != self.manifest.vocabulary.blake2b:
            raise DataError(f"{path} is not the model that the tokens were made with")
        return text

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists. Raises MalformedError if it leads out of the directory or is no
        regular file, DataError if it is missing or has another size."""
        try:
            return listed_file(self.path, self.manifest, name)
        except OSError as error:
            problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
            raise DataError(f"{self.path / name} {problem}") from None


def open_directory(path: str | Path) -> Directory:
    """Opens a finished build or scan and reads its manifest, nothing more.

    Raises ConfigError if there is no such directory; DataError if it is not complete, was edited or is of a newer
    version.
    """
    path = local_directory(path)
    return Directory(path, read_manifest(path))


def open_shard(path: Path) -> ArrayRecordFile:
    """An open shard file. Raises DataError if it is no complete ArrayRecord file."""
    shard = ArrayRecordFile(path)
    if not shard.is_whole:
        shard.close()
        raise DataError(f"{path} is no complete ArrayRecord file")
    return shard


def read_records(shard: ArrayRecordFile, begin: int, end: int) -> list[Record]:
    """The records [begin, end) of a shard. Raises DataError if they cannot be read or do not parse."""
    try:
        return [Record.from_bytes(data) for data in shard.read(begin, end)]
    except ValueError as error:
        raise DataError(f"{shard.path}: a record of [{begin}, {end}) is damaged: {error}") from None


class DatasetReader:
    """Reads one dataset of a directory: its index, and its stored episodes or documents.

    ``totals`` is the dataset's entry in the manifest. ``keep`` is the rule that its episodes were filtered by, None
    for documents; ``corpus`` is the config of its documents, None for episodes.
    """

    def __init__(self, directory: Directory, totals: DatasetEntry, config: dict[str, Any]) -> None:
        """``config`` is the dataset's part of the manifest's config."""
        self.directory = directory
        self.path = directory.path / totals.directory
        self.totals = totals
        self.name = totals.name
        self.is_scan = directory.manifest.content == "scan"
        self.holds_documents = totals.kind != "episodes"
        """Whether to read it with ``documents``, not ``episodes``."""
        self.keep: Keep | None = None
        self.corpus: CorpusConfig | None = None
        try:
            if self.holds_documents:
                self.corpus = _CORPUS.validate_python(config)
            else:
                self.keep = Keep.model_validate(config.get("keep"))
        except ValidationError as error:
            place = f"{directory.path / MANIFEST}: config of the dataset {self.name}"
            raise MalformedError(f"{place}: {first_problem(error)}") from None
        self._noun = "document" if self.holds_documents else "episode"
        self._tokenizers: dict[str, EpisodeTokenizer] = {}
        self._checked: set[str] = set()
        """Indexes whose columns were checked."""

    # --- summaries ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def described(self) -> DatasetFile:
        """``dataset.json``: the distinct specs and each task's, or the rules of documents."""
        found = read_listed_dataset(self.directory.path, self.directory.manifest, self.totals)
        taken = sorted(RESERVED & found.columns.keys())
        if taken:
            raise MalformedError(
                f"{self.path / self.totals.described_file}: columns: {taken[0]} is a column of every index"
            )
        return found

    @functools.cached_property
    def tasks(self) -> list[TaskRow]:
        """The rows of ``tasks.parquet``, one for each task and agent. Raises DataError if it cannot be read."""
        return [TaskRow(**row) for row in read_tasks(self.file(self.totals.tasks_file)).to_pylist()]

    def file(self, name: str) -> Path:
        """The path of a file in the dataset's folder. Raises as ``Directory.file`` does."""
        return self.directory.file(f"{self.totals.directory}/{name}")

    @property
    def task_totals(self) -> list[TaskTotals]:
        """The totals of every task, in order of name."""
        streams: dict[str, list[TaskRow]] = {}
        for row in self.tasks:
            streams.setdefault(row.task, []).append(row)
        return [
            TaskTotals(
                task=task,
                found=sum(row.kept + row.dropped for row in rows),
                kept=sum(row.kept for row in rows),
                expert_return=next((row.expert_return for row in rows if row.expert_return is not None), None),
                threshold=next((row.threshold for row in rows if row.threshold is not None), None),
                steps=sum(row.steps for row in rows),
            )
            for task, rows in sorted(streams.items())
        ]

    @property
    def held_out(self) -> int:
        """The number of episodes or documents that are held out."""
        return sum(row.held_out for row in self.tasks)

    @property
    def stored(self) -> dict[str, int | None]:
        """The totals ``tokens``, ``records``, ``shards`` and ``bytes``; None if nothing is stored."""
        is_stored = self.totals.shards > 0
        names = ("tokens", "records", "shards", "bytes")
        return {name: getattr(self.totals, name) if is_stored else None for name in names}

    @property
    def task_names(self) -> list[str]:
        """Every task once, in order of name."""
        return list(dict.fromkeys(row.task for row in self.tasks))

    @property
    def expert_returns(self) -> dict[str, float]:
        """The expert return of each task that has one."""
        return {row.task: row.expert_return for row in self.tasks if row.expert_return is not None}

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each task that has one."""
        return {row.task: row.threshold for row in self.tasks if row.threshold is not None}

    @functools.cached_property
    def of_tasks(self) -> OfTasks:
        """The columns of ``schemas.index.OF_TASK``."""
        return {"expert_return": self.expert_returns, "threshold": self.thresholds}

    @property
    def columns(self) -> dict[str, MetadataType]:
        """The columns of the index behind those of ``schemas.index.INDEX``, and their types: values that the source
        stores with each episode."""
        return {} if self.holds_documents else self.described.columns

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """The columns that an expression of ``keep: {where: …}`` can name, and their types."""
        return COLUMNS | {name: column_type(type_) for name, type_ in self.columns.items()}

    def spec(self, task: str) -> EpisodeSpec:
        """The fields of a task's time step."""
        return self.described.spec_of(task)

    # --- the index ---------------------------------------------------------------------------------------------

    def index(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """The index of all splits in order: the named columns (all by default) of the rows for which ``where`` holds.

        Columns of few distinct values are dictionary-encoded. Raises DataError if a file cannot be read.
        """
        names = [*ROW_COLUMNS, *self.columns] if columns is None else list(columns)
        stored = [name for name in names if name not in OF_TASK]
        if len(stored) < len(names) and "task" not in stored:
            stored.append("task")
        with self._reading_index():
            table = self._index_files().to_table(columns=stored, filter=where).unify_dictionaries()
            check_columns(table, self.path)
        for name in set(OF_TASK) & set(names):
            tasks = self.of_tasks[name]
            places = pc.index_in(table["task"].cast(pa.string()), pa.array(tasks, pa.string()))
            table = table.append_column(name, pa.array(tasks.values(), pa.float64()).take(places))
        return table.select(names)

    def batches(self, columns: Sequence[str], indexes: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The named columns of ``index`` in order, some rows at a time: of all splits, or of those with the given index
        files. Raises DataError if a file cannot be read."""
        with self._reading_index():
            for batch in self._index_files(indexes).to_batches(columns=list(columns), **_LITTLE_AHEAD):
                check_columns(batch, self.path)
                yield batch

    def rows(
        self, *, id_: str | None = None, task: str | None = None, kept: bool | None = None, split: str | None = None
    ) -> Iterator[EpisodeRow]:
        """Rows of the index in order, of episodes or documents, read as they are asked for: those of one id, of one
        task, those that are kept (or dropped), those of one split (``train`` or ``held_out``)."""
        wanted = {"episode_id": id_, "task": task, "kept": kept, "split": split}
        conditions = [pc.field(name) == value for name, value in wanted.items() if value is not None]
        where = functools.reduce(operator.and_, conditions) if conditions else None
        parts = {index.index: index.parts for index in self.totals.splits}
        with self._reading_index():
            for batch in self._index_files().to_batches(columns=[*INDEX.names, *self.columns, _FILE], filter=where):
                check_columns(batch, self.path)
                for columns in batch.to_pylist():
                    split = PurePosixPath(columns.pop(_FILE)).name
                    yield EpisodeRow.from_columns(columns | self._of_task(columns["task"]), parts[split])

    def row(self, id_: str) -> EpisodeRow | None:
        """The index row of one episode or document; None if no row has the id."""
        return next(self.rows(id_=id_), None)

    def rows_at(self, ordinals: Sequence[int]) -> list[EpisodeRow]:
        """The rows with these ordinals in the index, in the order of ``ordinals``. Only their row groups are read."""
        rows: dict[int, EpisodeRow] = {}
        split_begin = 0
        for split in self.totals.splits:
            begin, split_begin = split_begin, split_begin + split.rows
            if not any(begin <= ordinal < split_begin for ordinal in ordinals):
                continue
            with self._reading_index(), pq.ParquetFile(self._index_file(split)) as file:
                for group in range(file.num_row_groups):
                    end = begin + file.metadata.row_group(group).num_rows
                    in_group = [ordinal for ordinal in ordinals if begin <= ordinal < end]
                    if in_group:
                        table = file.read_row_group(group).take([ordinal - begin for ordinal in in_group])
                        check_columns(table, self.path / split.index)
                        for ordinal, columns in zip(in_group, table.to_pylist(), strict=True):
                            values = dict.fromkeys((*INDEX.names, *self.columns)) | columns
                            values |= self._of_task(values["task"])
                            rows[ordinal] = EpisodeRow.from_columns(values, split.parts)
                    begin = end
        return [rows[ordinal] for ordinal in ordinals]

    def _of_task(self, task: str | None) -> dict[str, float | None]:
        return {name: values.get(task or "") for name, values in self.of_tasks.items()}

    def missing_columns(self) -> tuple[str, ...]:
        """Columns that some index files lack, as far as a sample of them shows. Raises DataError if one cannot be
        read."""
        names = (*INDEX.names, *self.columns)
        present = set(names)
        splits = self.totals.splits
        with self._reading_index():
            for split in splits[:: max(1, len(splits) // _MOST_PROBED)]:
                present &= set(pq.read_schema(self._index_file(split)).names)
        return tuple(name for name in names if name not in present)

    def _index_files(self, indexes: Sequence[str] | None = None) -> pads.Dataset:
        splits = self.totals.splits
        paths = [self._index_file(split) for split in splits if indexes is None or split.index in indexes]
        form = pads.ParquetFileFormat(pads.ParquetReadOptions(dictionary_columns=_REPEATED))
        schema = pa.schema([*_SCHEMA, *((name, METADATA_TYPES[type_]) for name, type_ in self.columns.items())])
        return pads.dataset([str(path) for path in paths], schema=schema, format=form)

    def _index_file(self, split: SplitEntry) -> Path:
        """The path of a split's index, whose columns are checked when it is asked for the first time."""
        path = self.file(split.index)
        if split.index not in self._checked:
            index_schema(path, split.rows, self.columns)
            self._checked.add(split.index)
        return path

    @contextmanager
    def _reading_index(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"the index of {self.path} cannot be read: {error}") from None

    # --- stored episodes and documents -------------------------------------------------------------------------

    def episodes(
        self, *, task: str | None = None, kept: bool | None = None, split: str | None = None
    ) -> Iterator[EpisodeRow]:
        """The rows of episodes, as ``rows`` gives them. Raises DataError if the dataset holds documents."""
        if self.holds_documents:
            raise DataError(f"{self.name} holds documents: documents() reads them, and rows() their index")
        return self.rows(task=task, kept=kept, split=split)

    def documents(self, *, split: str | None = None) -> Iterator[StoredDocument]:
        """The kept documents, or those of one split (``train`` or ``held_out``), one at a time.

        Raises DataError if the dataset holds episodes, and as ``document``.
        """
        self._check_holds_documents()
        return self.read_documents(self.rows(kept=True, split=split))

    def episode(self, episode: str | EpisodeRow) -> StoredEpisode:
        """A kept episode, by its id or its row, joined from all its records.

        Raises DataError if there is none, if it was dropped, if the directory is a scan, or if its records are damaged
        or belong to another episode.
        """
        return next(self.read([self._known(episode)]))

    def document(self, document: str | EpisodeRow) -> StoredDocument:
        """A kept document, by its id or its row, with all its records. Raises DataError as ``episode`` does."""
        self._check_holds_documents()
        return next(self.read_documents([self._known(document)]))

    def read(self, rows: Iterable[EpisodeRow]) -> Iterator[StoredEpisode]:
        """The episodes of ``rows``. A shard is opened once for consecutive rows. Raises DataError as ``episode``
        does."""
        for row, records in self.records(rows):
            yield join_episode(records, row, self._episode_tokenizer(row))

    def read_documents(self, rows: Iterable[EpisodeRow]) -> Iterator[StoredDocument]:
        """The documents of ``rows``. A shard is opened once for consecutive rows. Raises DataError as ``document``
        does."""
        for row, records in self.records(rows):
            yield join_document(records, row, self._document_tokenizer)

    def records(self, rows: Iterable[EpisodeRow]) -> Iterator[tuple[EpisodeRow, list[Record]]]:
        """Each row and its records as they are stored, in order. Raises DataError if they cannot be read."""
        with ExitStack() as stack:
            shard = None
            for row in rows:
                if row.shard is None:
                    scanned = "the directory is a scan, which stores no tokens"
                    reason = scanned if row.kept else f"it was dropped ({row.reason})"
                    raise DataError(f"{self.name}: nothing is stored of {self._noun} {row.episode_id!r}: {reason}")
                path = self.path / row.shard
                if shard is None or shard.path != path:
                    stack.close()
                    shard = stack.enter_context(open_shard(self.file(row.shard)))
                begin = row.first_record or 0
                end = begin + len(row.record_tokens or ())
                if end > shard.records:
                    raise DataError(f"{path} has {shard.records} records and [{begin}, {end}) was asked for")
                yield row, read_records(shard, begin, end)

    def _known(self, wanted: str | EpisodeRow) -> EpisodeRow:
        row = self.row(wanted) if isinstance(wanted, str) else wanted
        if row is None:
            raise DataError(f"{self.name} has no {self._noun} {wanted!r}")
        return row

    def _check_holds_documents(self) -> None:
        if not self.holds_documents:
            raise DataError(f"{self.name} holds episodes: episodes() and read() give them")

    @functools.cached_property
    def _document_tokenizer(self) -> DocumentTokenizer:
        rules = self.described.documents
        text = self.directory.text
        if rules is None:
            raise DataError(f"{self.path / self.totals.described_file} lacks the rules of its documents")
        if text is None:
            raise DataError(f"{self.directory.path}: the manifest names no vocabulary, which documents need")
        return DocumentTokenizer(text, rules.end_of_document)

    def _episode_tokenizer(self, row: EpisodeRow) -> EpisodeTokenizer:
        if row.spec is None:
            raise DataError(f"{self.name} holds {self._noun}s, and {row.episode_id!r} has no spec: it is no episode")
        if row.spec not in self._tokenizers:
            spec = self.described.specs.get(row.spec)
            if spec is None:
                file = self.path / self.totals.described_file
                raise DataError(f"{file} lacks the spec {row.spec} of episode {row.episode_id!r}")
            has_text = any(field.kind == "text" for field in spec.fields)
            text = self.directory.text if has_text else None
            self._tokenizers[row.spec] = EpisodeTokenizer(spec, self.directory.manifest.tokenizer, text)
        return self._tokenizers[row.spec]
