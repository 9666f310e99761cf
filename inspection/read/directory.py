"""Opens finished builds and scans: their datasets, indexes, and stored episodes or documents."""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter

from gatokit.inspection.read.index import EpisodeRow, TaskRow, TaskTotals
from gatokit.inspection.read.stored import StoredDocument, StoredEpisode, join_document, join_episode
from gatokit.schemas.config import CorpusConfig, Keep
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import INDEX, INDEX_VERSION
from gatokit.schemas.manifest import DatasetEntry, DatasetFile, EpisodeSpec, Manifest, local_directory
from gatokit.schemas.record import Record
from gatokit.storage.array_record import ArrayRecordFile
from gatokit.tokenizers.document import DocumentTokenizer
from gatokit.tokenizers.episode import EpisodeTokenizer
from gatokit.tokenizers.text import TextTokenizer

_FILE = "__filename"
_VERSION = b"gatokit.index"
_LITTLE_AHEAD: dict[str, Any] = {"batch_size": 1 << 16, "batch_readahead": 2, "fragment_readahead": 1}
"""Arrow's own read-ahead takes some hundred MiB more, and no less time."""
_MOST_PROBED = 50
"""Index files, about, whose columns are looked at."""
_CORPUS: TypeAdapter[CorpusConfig] = TypeAdapter(Annotated[CorpusConfig, Field(discriminator="kind")])
_REPEATED = ["task", "agent", "spec", "split", "reason", "source_file"]
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema([field.with_type(_DICTIONARY) if field.name in _REPEATED else field for field in INDEX])


class DatasetReader:
    """Reads one dataset of a directory; ``gatokit.inspection.open_directory`` makes these.

    ``totals`` is the dataset's entry in the manifest. ``keep`` is the rule that its episodes were filtered by, None
    for documents; ``corpus`` is the config of its documents, None for episodes.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        totals: DatasetEntry,
        config: dict[str, Any],
        text: Callable[[], TextTokenizer],
    ) -> None:
        """``config`` is the dataset's part of the manifest's config; ``text`` gives the vocabulary on demand."""
        self.path = root / totals.directory
        self.totals = totals
        self.name = totals.name
        self.is_scan = manifest.content == "scan"
        self.holds_documents = totals.kind != "episodes"
        """Whether ``documents`` reads it, and not ``episodes``."""
        self.keep = None if self.holds_documents else Keep.model_validate(config["keep"])
        self.corpus: CorpusConfig | None = _CORPUS.validate_python(config) if self.holds_documents else None
        self._noun = "document" if self.holds_documents else "episode"
        self._settings = manifest.tokenizer
        self._text = text
        self._tokenizers: dict[str, EpisodeTokenizer] = {}

    @functools.cached_property
    def described(self) -> DatasetFile:
        """``dataset.json``: the distinct specs and each task's, or the rules of documents."""
        return DatasetFile.read(self.path / self.totals.described_file)

    @functools.cached_property
    def tasks(self) -> list[TaskRow]:
        """The rows of ``tasks.parquet``, one a task and agent. Raises DataError if it cannot be read."""
        try:
            return [TaskRow(**row) for row in pq.read_table(self.path / self.totals.tasks_file).to_pylist()]
        except (OSError, pa.ArrowInvalid, TypeError) as error:
            raise DataError(f"{self.path / self.totals.tasks_file} cannot be read: {error}") from None

    @property
    def task_totals(self) -> list[TaskTotals]:
        """The totals of every task, in order of name."""
        streams: dict[str, list[TaskRow]] = {}
        for row in self.tasks:
            streams.setdefault(row.task, []).append(row)
        return [
            TaskTotals(
                task=task,
                found=sum((row.kept or 0) + (row.dropped or 0) for row in rows),
                kept=sum(row.kept or 0 for row in rows),
                expert_return=next((row.expert_return for row in rows if row.expert_return is not None), None),
                threshold=next((row.threshold for row in rows if row.threshold is not None), None),
                steps=sum(row.steps or 0 for row in rows),
            )
            for task, rows in sorted(streams.items())
        ]

    @property
    def held_out(self) -> int:
        """The number of episodes or documents that are held out."""
        return sum(row.held_out or 0 for row in self.tasks)

    @property
    def stored(self) -> dict[str, int | None]:
        """The totals ``tokens``, ``records``, ``shards`` and ``bytes``; None if nothing is stored."""
        totals = self.totals
        return {
            key: getattr(totals, key) if totals.shards else None for key in ("tokens", "records", "shards", "bytes")
        }

    @property
    def task_names(self) -> list[str]:
        """Every task once, in order of name."""
        return list(dict.fromkeys(row.task for row in self.tasks))

    @property
    def expert_returns(self) -> dict[str, float]:
        """The expert return of each task that has one."""
        return {row.task: row.expert_return for row in self.tasks if row.expert_return is not None}

    def spec(self, task: str) -> EpisodeSpec:
        """The fields of a task's time step."""
        return self.described.specs[self.described.tasks[task].spec]

    # --- the index ---------------------------------------------------------------------------------------------

    def index(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """The index of all splits in order: the named columns (all by default) of the rows for which ``where``
        holds. Columns of few distinct values are dictionary-encoded. Raises DataError if a file cannot be read."""
        try:
            table = self._files().to_table(columns=None if columns is None else list(columns), filter=where)
        except (OSError, pa.ArrowInvalid) as error:
            raise self._unreadable_index(error) from None
        return table.unify_dictionaries()

    def batches(self, columns: Sequence[str], indexes: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The named columns of ``index`` in order, some rows at a time, of all splits or those of the named indexes.

        Raises DataError if a file cannot be read.
        """
        if indexes is not None and not indexes:
            return
        try:
            yield from self._files(indexes).to_batches(columns=list(columns), **_LITTLE_AHEAD)
        except (OSError, pa.ArrowInvalid) as error:
            raise self._unreadable_index(error) from None

    def rows(
        self, *, task: str | None = None, kept: bool | None = None, split: str | None = None
    ) -> Iterator[EpisodeRow]:
        """Rows of the index in order, of episodes or documents, read as they are asked for: those of one task, those
        that are kept (or dropped), those of one split (``train`` or ``held_out``)."""
        wanted = {"task": task, "kept": kept, "split": split}
        conditions = [pc.field(name) == value for name, value in wanted.items() if value is not None]
        return self._rows(functools.reduce(operator.and_, conditions) if conditions else None)

    def row(self, id_: str) -> EpisodeRow | None:
        """The index row of one episode or document; None if there is none of that id."""
        return next(self._rows(pc.field("episode_id") == id_), None)

    def rows_at(self, ordinals: Sequence[int]) -> list[EpisodeRow]:
        """The rows with these ordinals in the index, in the order of ``ordinals``. Only their row groups are read."""
        ascending = sorted(ordinals)
        rows = dict(zip(ascending, self._rows_at(ascending), strict=True))
        return [rows[ordinal] for ordinal in ordinals]

    def _rows_at(self, ascending: Sequence[int]) -> Iterator[EpisodeRow]:
        split_begin = 0
        for split in self.totals.splits:
            in_split = [ordinal - split_begin for ordinal in ascending if 0 <= ordinal - split_begin < split.rows]
            split_begin += split.rows
            if not in_split:
                continue
            file, begin = self._index_file(split.index), 0
            for group in range(file.metadata.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                in_group = [ordinal - begin for ordinal in in_split if 0 <= ordinal - begin < count]
                begin += count
                if in_group:
                    for values in file.read_row_group(group).take(pa.array(in_group)).to_pylist():
                        row = dict.fromkeys(INDEX.names) | values
                        shard = None if row["part"] is None else split.parts[row["part"]].file
                        yield EpisodeRow.from_columns(row, shard)

    def missing_columns(self) -> tuple[str, ...]:
        """Columns that the index lacks, judged by some of its files. Raises DataError if one cannot be read."""
        present: set[str] = set(INDEX.names)
        splits = self.totals.splits
        for split in splits[:: max(1, len(splits) // _MOST_PROBED)]:
            present &= set(self._index_file(split.index).schema_arrow.names)
        return tuple(name for name in INDEX.names if name not in present)

    def _files(self, indexes: Sequence[str] | None = None) -> pads.Dataset:
        names = [split.index for split in self.totals.splits] if indexes is None else list(indexes)
        form = pads.ParquetFileFormat(pads.ParquetReadOptions(dictionary_columns=_REPEATED))
        files = pads.dataset([str(self.path / name) for name in names], schema=_SCHEMA, format=form)
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
            raise self._unreadable_index(error) from None

    def _index_file(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path / name)
        except (OSError, pa.ArrowInvalid) as error:
            raise self._unreadable_index(error) from None

    def _unreadable_index(self, error: Exception) -> DataError:
        return DataError(f"the index of {self.path} cannot be read: {error}")

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

        Raises DataError if there is none, if it was dropped, if the directory is a scan, and if its records are
        damaged or another's.
        """
        return next(self.read([self._known(episode)]))

    def document(self, document: str | EpisodeRow) -> StoredDocument:
        """A kept document, by its id or its row, with all its records. Raises DataError as ``episode``."""
        self._check_holds_documents()
        return next(self.read_documents([self._known(document)]))

    def read(self, rows: Iterable[EpisodeRow]) -> Iterator[StoredEpisode]:
        """The episodes of ``rows``; a shard stays open as long as they come from it. Raises as ``episode``."""
        for row, records in self.records(rows):
            yield join_episode(records, row, self._tokenizer(row))

    def read_documents(self, rows: Iterable[EpisodeRow]) -> Iterator[StoredDocument]:
        """The documents of ``rows``; a shard stays open as long as they come from it. Raises as ``document``."""
        for row, records in self.records(rows):
            yield join_document(records, row, self._document_tokenizer)

    def records(self, rows: Iterable[EpisodeRow]) -> Iterator[tuple[EpisodeRow, list[Record]]]:
        """Each row and its records as they are stored, in order. Raises DataError if they cannot be read."""
        with ExitStack() as stack:
            shard = None
            for row in rows:
                path = self._shard(row)
                if shard is None or shard.path != path:
                    stack.close()
                    shard = stack.enter_context(open_shard(path))
                begin = row.first_record or 0
                end = begin + len(row.record_tokens or ())
                if end > shard.records:
                    raise DataError(f"{path} has {shard.records} records and [{begin}, {end}) was asked for")
                try:
                    records = [Record.from_bytes(data) for data in shard.read(begin, end)]
                except ValueError as error:
                    raise DataError(f"{path}: a record of {row.episode_id!r} is damaged: {error}") from None
                yield row, records

    def _shard(self, row: EpisodeRow) -> Path:
        if row.shard is None:
            reason = "the directory is a scan, which stores no tokens" if row.kept else f"it was dropped ({row.reason})"
            raise DataError(f"{self.name}: nothing is stored of {self._noun} {row.episode_id!r}: {reason}")
        return self.path / row.shard

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
        if rules is None:
            raise DataError(f"{self.path / self.totals.described_file} lacks the rules of its documents")
        return DocumentTokenizer(self._text(), rules.end_of_document)

    def _tokenizer(self, row: EpisodeRow) -> EpisodeTokenizer:
        if row.spec is None:
            raise DataError(f"{self.name} holds {self._noun}s, and {row.episode_id!r} has no spec: it is no episode")
        if row.spec not in self._tokenizers:
            spec = self.described.specs.get(row.spec)
            if spec is None:
                described = self.path / self.totals.described_file
                raise DataError(f"{described} lacks the spec {row.spec} of episode {row.episode_id!r}")
            has_text = any(field.kind == "text" for field in spec.fields)
            self._tokenizers[row.spec] = EpisodeTokenizer(spec, self._settings, self._text() if has_text else None)
        return self._tokenizers[row.spec]


@dataclass(frozen=True)
class Directory:
    """A finished directory: its manifest, and a reader of every dataset by name, in the manifest's order.

    Nothing is held open between calls.
    """

    path: Path
    manifest: Manifest

    @functools.cached_property
    def datasets(self) -> dict[str, DatasetReader]:
        """The datasets by name."""
        configs = {config["name"]: config for config in self.manifest.config["datasets"]}
        return {
            totals.name: DatasetReader(self.path, self.manifest, totals, configs[totals.name], lambda: self.text)
            for totals in self.manifest.datasets
        }

    @functools.cached_property
    def text(self) -> TextTokenizer:
        """The text tokenizer that the build's tokens were made with. Raises DataError in a scan, which has none."""
        if self.manifest.vocabulary is None:
            raise DataError(f"{self.path} is a scan and holds no vocabulary")
        text = TextTokenizer.load(self.path / self.manifest.vocabulary.file)
        if text.digest != self.manifest.vocabulary.blake2b:
            raise DataError(
                f"{self.path / self.manifest.vocabulary.file} is not the model that the tokens were made with"
            )
        return text


def open_directory(path: str | Path) -> Directory:
    """Opens a finished build or scan and reads its manifest, nothing more.

    Raises ConfigError if there is no such directory; DataError if it is not complete, was edited or is of a newer
    version.
    """
    path = local_directory(path)
    return Directory(path, Manifest.read(path))


def open_shard(path: Path) -> ArrayRecordFile:
    """An open shard file. Raises DataError if the file is missing or is no complete ArrayRecord file."""
    if not path.is_file():
        raise DataError(f"{path} is missing")
    shard = ArrayRecordFile(path)
    if not shard.is_whole:
        shard.close()
        raise DataError(f"{path} is no complete ArrayRecord file")
    return shard
