"""A work order: one split of the source with everything that turns it into one shard.

The plan writes an order, a worker reads it, anywhere and at any time. Its rows are those of the split's index
before anything was tokenized, with the place of each episode; its head holds files, features and specs.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gatokit.pipelines.documents.corpora import corpus_file_from_json
from gatokit.pipelines.documents.reader import CorpusFile
from gatokit.pipelines.episodes.formats import file_from_json, file_to_json
from gatokit.pipelines.episodes.reader import EpisodeFile, SourceFeatures
from gatokit.schemas.digests import digest, json_digest
from gatokit.schemas.document import DocumentRules
from gatokit.schemas.episode import EpisodeSpec
from gatokit.schemas.index import INDEX, INDEX_VERSION
from gatokit.schemas.record import RECORD_VERSION
from gatokit.storage.files import read_rows, write_rows

_PLANNED = [field for field in INDEX if field.name not in ("tokens", "part", "first_record", "record_tokens")]
ORDER = pa.schema(
    [
        *_PLANNED,
        pa.field("file", pa.int32()),  # ordinal in the head's files
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc", pa.uint32()),
    ]
)
DOCUMENT_ORDER = pa.schema([*ORDER, pa.field("payload", pa.string())])
_HEAD = b"gatokit.order"


class Settings(BaseModel):
    """What every shard of a build depends on besides its rows."""

    model_config = ConfigDict(frozen=True)

    chunk_tokens: int
    discrete_offset: int
    vocabulary_digest: str


class EpisodesHead(BaseModel):
    """Files, features and specs of a split; ``features_of`` gives each file's index into ``features``."""

    kind: Literal["episodes"] = "episodes"
    dataset: str
    settings: Settings
    specs: dict[str, EpisodeSpec]
    features: list[SourceFeatures]
    features_of: list[int]
    files: list[dict[str, Any]]

    def episode_files(self) -> list[EpisodeFile]:
        """The files, ready to be read."""
        return [file_from_json(file) for file in self.files]

    def identity(self) -> dict[str, Any]:
        """What the shard depends on besides settings and rows; files by name and size."""
        return {
            "specs": sorted(self.specs),
            "features": [self.features[index].model_dump(mode="json") for index in self.features_of],
            "files": [(file["name"], file["size"]) for file in self.files],
        }


class DocumentsHead(BaseModel):
    """Files of a split of documents and what is done with what they hold."""

    kind: Literal["documents"] = "documents"
    dataset: str
    settings: Settings
    rules: DocumentRules
    files: list[dict[str, Any]]

    def corpus_files(self) -> list[CorpusFile]:
        """The files, ready to be read."""
        return [corpus_file_from_json(file) for file in self.files]

    def identity(self) -> dict[str, Any]:
        """What the shard depends on besides settings and rows; files by type, name, size and what is read of them."""
        return {
            "rules": self.rules.model_dump(mode="json"),
            "files": [
                (file["type"], item.identity()) for file, item in zip(self.files, self.corpus_files(), strict=True)
            ],
        }


Head = TypeVar("Head", EpisodesHead, DocumentsHead)
_HEADS: TypeAdapter[EpisodesHead | DocumentsHead] = TypeAdapter(
    Annotated[EpisodesHead | DocumentsHead, Field(discriminator="kind")]
)


@dataclass(frozen=True)
class Order(Generic[Head]):
    """A split's head and rows (schema ``ORDER``, of documents ``DOCUMENT_ORDER``)."""

    head: Head
    rows: pa.Table

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over exactly what the shard's bytes depend on.

        The source's files by name, size and the checksums of the rows; specs, rules and settings; and per row the
        verdict, its task's expert return and threshold. Not paths, weights, runner or workers.
        """
        head = {
            "record_version": RECORD_VERSION,
            "index_version": INDEX_VERSION,
            "settings": self.head.settings.model_dump(mode="json"),
            **self.head.identity(),
        }
        columns = [digest(_column_bytes(self.rows[name])) for name in self.rows.column_names]
        return json_digest([head, columns], 8)

    @property
    def stem(self) -> str:
        """Name of the split's shard and index without suffix."""
        return f"{self.head.dataset}-{self.fingerprint}"

    def write(self, path: str | Path) -> None:
        """Writes the order to a file."""
        write_rows(path, self.rows.replace_schema_metadata({_HEAD: self.head.model_dump_json().encode()}))

    @staticmethod
    def read(path: str | Path) -> "Order":
        """Reads what ``write`` wrote."""
        rows = read_rows(path)
        return Order(head=_HEADS.validate_json(rows.schema.metadata[_HEAD]), rows=rows)


def make_head(
    dataset: str,
    settings: Settings,
    specs: dict[str, EpisodeSpec],
    files: list[tuple[EpisodeFile, SourceFeatures]],
) -> EpisodesHead:
    """The head of an order over ``files``, equal features stored once."""
    features: list[SourceFeatures] = []
    features_of = []
    for _, item in files:
        if item not in features:
            features.append(item)
        features_of.append(features.index(item))
    return EpisodesHead(
        dataset=dataset,
        settings=settings,
        specs=specs,
        features=features,
        features_of=features_of,
        files=[file_to_json(file) for file, _ in files],
    )


def _column_bytes(column: pa.ChunkedArray) -> bytes:
    """Bytes that depend on the values alone, not on how Arrow laid them out."""
    return repr(column.to_pylist()).encode()
