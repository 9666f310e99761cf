"""One dataset of a finished build or scan: its tasks, its index and its stored episodes or documents."""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter

from gatokit.inspection.read.document import StoredDocument, join_document
from gatokit.inspection.read.episode import StoredEpisode, join
from gatokit.inspection.read.rows import EpisodeRow, TaskRow
from gatokit.inspection.read.shards import ShardReader, open_shard
from gatokit.schemas.config import CorpusConfig, Keep
from gatokit.schemas.episode import EpisodeSpec
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import INDEX, INDEX_VERSION
from gatokit.schemas.manifest import DatasetEntry, DatasetFile
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import TokenIds
from gatokit.tokenizers.document import DocumentTokenizer
from gatokit.tokenizers.episode import EpisodeTokenizer
from gatokit.tokenizers.text import TextTokenizer

_FILE = "__filename"
_VERSION = b"gatokit.index"
_FEW_AHEAD: dict[str, Any] = {"batch_size": 1 << 16, "batch_readahead": 2, "fragment_readahead": 1}
"""Arrow's own read-ahead takes some hundred MiB more, and no less time."""
_CORPUS: TypeAdapter[CorpusConfig] = TypeAdapter(Annotated[CorpusConfig, Field(discriminator="kind")])
_REPEATED = ["task", "agent", "spec", "split", "reason", "source_file"]


class DatasetReader:
    """Reads one dataset of a directory; ``gatokit.inspection.open_directory`` makes these.

    ``totals`` is the dataset's entry in the manifest. ``keep`` is the rule that its episodes were filtered by, None
    of documents; ``corpus`` is the config of its documents, None of episodes.
    """

    def __init__(
        self,
        path: Path,
        totals: DatasetEntry,
        config: dict[str, Any],
        ids: TokenIds,
        text: Callable[[], TextTokenizer],
    ) -> None:
        """``config`` is the dataset's part of the manifest's config; ``text`` gives the vocabulary on demand."""
        self.path = path
        self.totals = totals
        self.name = totals.name
        self.holds_documents = totals.kind != "episodes"
        """Whether ``documents`` reads it, and not ``episodes``."""
        self.keep = None if self.holds_documents else Keep.model_validate(config["keep"])
        self.corpus: CorpusConfig | None = _CORPUS.validate_python(config) if self.holds_documents else None
        self._ids = ids
        self._text = text
        self._tokenizers: dict[str, EpisodeTokenizer] = {}

    @functools.cached_property
    def described(self) -> DatasetFile:
        """``dataset.json``: the distinct specs, and each task's, or the rules of documents."""
        return DatasetFile.read(self.path / self.totals.described_file)

    @functools.cached_property
    def tasks(self) -> list[TaskRow]:
        """The rows of ``tasks.parquet``, one a task and agent; DataError where it cannot be read."""
        try:
            return [TaskRow(**row) for row in pq.read_table(self.path / self.totals.tasks_file).to_pylist()]
        except (OSError, pa.ArrowInvalid, TypeError) as error:
            raise DataError(f"{self.path / self.totals.tasks_file} cannot be read: {error}") from None

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

    def batches(self, columns: Sequence[str], indexes: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The named columns of ``index`` in order, some rows at a time, of all splits or those of the named indexes.

        DataError where a file cannot be read.
        """
        if indexes is not None and not indexes:
            return
        try:
            yield from self._files(indexes).to_batches(columns=list(columns), **_FEW_AHEAD)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"the index of {self.path} cannot be read: {error}") from None

    def rows(
        self, *, task: str | None = None, kept: bool | None = None, split: str | None = None
    ) -> Iterator[EpisodeRow]:
        """Rows of the index in order, of episodes or documents, read as they are asked for: those of one task, those
        that are kept (or dropped), those of one split (``train`` or ``held_out``)."""
        wanted = {"task": task, "kept": kept, "split": split}
        conditions = [pc.field(name) == value for name, value in wanted.items() if value is not None]
        return self._rows(functools.reduce(operator.and_, conditions) if conditions else None)

    def row(self, id_: str) -> EpisodeRow | None:
        """The index row of one episode or document; None where there is none of that id."""
        return next(self._rows(pc.field("episode_id") == id_), None)

    def episodes(
        self, *, task: str | None = None, kept: bool | None = None, split: str | None = None
    ) -> Iterator[EpisodeRow]:
        """The rows of episodes, as ``rows`` gives them; DataError where the dataset holds documents."""
        if self.holds_documents:
            raise DataError(f"{self.name} holds documents: documents() reads them, and rows() their index")
        return self.rows(task=task, kept=kept, split=split)

    def documents(self, *, split: str | None = None) -> Iterator[StoredDocument]:
        """The kept documents, or those of one split (``train`` or ``held_out``), one at a time.

        DataError where the dataset holds episodes; other errors as ``document``.
        """
        self._check_holds_documents()
        return self.read_documents(self.rows(kept=True, split=split))

    def document(self, document: str | EpisodeRow) -> StoredDocument:
        """A kept document, by its id or its row, with all its records.

        DataError where there is none, where it was dropped, where the directory is a scan, and where its
        records are damaged or another's.
        """
        self._check_holds_documents()
        return next(self.read_documents([self._known(document)]))

    def episode(self, episode: str | EpisodeRow) -> StoredEpisode:
        """A kept episode, by its id or its row, joined from all its records.

        DataError where there is none, where it was dropped, where the directory is a scan, and where its
        records are damaged or another's.
        """
        return next(self.read([self._known(episode)]))

    def read(self, rows: Iterable[EpisodeRow]) -> Iterator[StoredEpisode]:
        """The episodes of ``rows``; a shard stays open as long as they come from it. Errors as ``episode``."""
        for row, records in self.records(rows):
            yield join(records, row, self._tokenizer(row))

    def read_documents(self, rows: Iterable[EpisodeRow]) -> Iterator[StoredDocument]:
        """The documents of ``rows``; a shard stays open as long as they come from it. Errors as ``document``."""
        for row, records in self.records(rows):
            yield join_document(records, row, self._document_tokenizer)

    def records(self, rows: Iterable[EpisodeRow]) -> Iterator[tuple[EpisodeRow, list[Record]]]:
        """Each row and its records as they are stored, in order; DataError where they cannot be read."""
        with ExitStack() as stack:
            path, reader = None, None
            for row in rows:
                wanted = self.shard_of(row)
                if path != wanted or reader is None:
                    stack.close()
                    path, reader = wanted, stack.enter_context(open_shard(wanted))
                yield row, _records(reader, row, wanted)

    def shard_of(self, row: EpisodeRow) -> Path:
        """The file that holds a kept episode or document; DataError where nothing of it is stored."""
        if row.shard is None:
            why = "the directory is a scan, which stores no tokens" if row.kept else f"it was dropped ({row.reason})"
            raise DataError(f"{self.name}: nothing is stored of {self._what} {row.episode_id!r}: {why}")
        return self.path / row.shard

    @property
    def _what(self) -> str:
        return "document" if self.holds_documents else "episode"

    def _known(self, wanted: str | EpisodeRow) -> EpisodeRow:
        row = self.row(wanted) if isinstance(wanted, str) else wanted
        if row is None:
            raise DataError(f"{self.name} has no {self._what} {wanted!r}")
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
            raise DataError(f"{self.name} holds {self._what}s, and {row.episode_id!r} has no spec: it is no episode")
        if row.spec not in self._tokenizers:
            spec = self.described.specs.get(row.spec)
            if spec is None:
                described = self.path / self.totals.described_file
                raise DataError(f"{described} lacks the spec {row.spec} of episode {row.episode_id!r}")
            needs_text = any(field.kind == "text" for field in spec.fields)
            self._tokenizers[row.spec] = EpisodeTokenizer(spec, self._ids, self._text() if needs_text else None)
        return self._tokenizers[row.spec]

    def _files(self, indexes: Sequence[str] | None = None) -> pads.Dataset:
        names = [split.index for split in self.totals.splits] if indexes is None else list(indexes)
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
        raise DataError(f"{path}: a record of {row.episode_id!r} is damaged: {error}") from None
