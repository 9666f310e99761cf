"""Writers of small real recordings: TFDS directories by TFDS itself, EnvLogger logs by EnvLogger itself; and a
reader of built documents that knows the format alone."""

import os
import pydoc_data.topics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import sentencepiece
from array_record.python.array_record_module import ArrayRecordReader
from shared import shared

from gatokit.schemas.manifest import DatasetEntry, DatasetFile, ShardEntry
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence
from gatokit.storage.folder import read_dataset_file, read_manifest
from gatokit.tokenizers.document import DocumentTokenizer
from gatokit.tokenizers.text import TextTokenizer

Episodes = Sequence[Mapping[str, Any]]


def _write_tfds(
    path: Path,
    steps: Any,
    episodes: Episodes | Mapping[str, Episodes],
    *,
    metadata: Mapping[str, Any] | None = None,
    file_format: str = "tfrecord",
    max_examples_per_shard: int = 2,
    finished: bool = True,
) -> Path:
    import tensorflow_datasets as tfds

    path.mkdir(parents=True, exist_ok=True)
    identity = tfds.core.DatasetIdentity(
        name="recorded", version=tfds.core.Version("1.0.0"), data_dir=os.fspath(path), module_name=""
    )
    feature = tfds.features.Dataset(dict(steps)) if isinstance(steps, Mapping) else steps
    features = tfds.features.FeaturesDict({"steps": feature, **(metadata or {})})
    info = tfds.core.DatasetInfo(builder=identity, description="a test", features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard, file_format=file_format)
    splits = episodes if isinstance(episodes, Mapping) else {"train": episodes}
    writer.initialize_splits(list(splits))
    if finished:
        writer.add_examples({split: list(written) for split, written in splits.items()})
        writer.close_all()
    return path


def _write_riegeli(
    path: Path,
    episodes: Sequence[tuple[Sequence[Any], Mapping[str, Any] | None]],
    *,
    metadata: Mapping[str, Any] | None = None,
    max_episodes_per_file: int = 2,
) -> Path:
    from envlogger.backends.riegeli_backend_writer import RiegeliBackendWriter

    path.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        # EnvLogger's encoder names the type that NumPy 2 removed.
        patch.setattr(np, "unicode_", np.str_, raising=False)
        writer = RiegeliBackendWriter(
            data_directory=os.fspath(path), max_episodes_per_file=max_episodes_per_file, metadata=dict(metadata or {})
        )
        for steps, episode_metadata in episodes:
            for ordinal, step in enumerate(steps):
                writer.record_step(step, is_new_episode=ordinal == 0)
            if episode_metadata is not None:
                writer.set_episode_metadata(dict(episode_metadata))
        writer.close()
    return path


@pytest.fixture(scope="session")
def write_tfds() -> Callable[..., Path]:
    """``write_tfds(path, steps, episodes, *, metadata, file_format, max_examples_per_shard, finished) -> path``.

    ``steps`` and ``metadata`` are TFDS features, ``steps`` those of a step or one of all steps. ``episodes`` are those
    of the split ``train``, or of each split by name: ``{"steps": [step, …], **metadata}``. Files are named
    ``recorded-SPLIT.FORMAT-NNNNN``, in the given order; ``finished=False`` leaves what a recording killed in its first
    shard leaves.
    """
    return _write_tfds


@pytest.fixture(scope="session")
def write_riegeli(native_envlogger: Path) -> Callable[..., Path]:
    """``write_riegeli(path, episodes, *, metadata, max_episodes_per_file) -> path``.

    Each episode is its ``envlogger.StepData`` in dm_env order and its metadata or None.
    """
    pytest.importorskip("envlogger", reason="EnvLogger has no wheel here")
    return _write_riegeli


@pytest.fixture(scope="session")
def exact_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model that gives every text back as it was, but for U+2581."""

    def fill(folder: Path) -> None:
        lines = [line for text in list(pydoc_data.topics.topics.values())[:20] for line in text.splitlines() if line]
        with open(folder / "exact.model", "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=file,
                vocab_size=700,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                byte_fallback=True,
                minloglevel=2,
                num_threads=1,
            )

    return shared(tmp_path_factory, "exact-vocabulary", fill) / "exact.model"


@dataclass(frozen=True)
class BuiltDocuments:
    """A dataset of a finished build: the index rows of all splits in order, and by id the texts and pictures of each
    kept document and the number of its records."""

    totals: DatasetEntry
    described: DatasetFile
    rows: list[dict[str, Any]]
    parts: dict[str, list[str | EncodedImage]]
    sequences: dict[str, TokenSequence]

    def reasons(self) -> dict[str, str | None]:
        """By id, of rows whose ids are unique."""
        assert len({row["episode_id"] for row in self.rows}) == len(self.rows)
        return {row["episode_id"]: row["reason"] for row in self.rows}

    def of(self, split: str) -> set[str]:
        """Ids of the documents of ``train`` or ``held_out``."""
        return {row["episode_id"] for row in self.rows if row["split"] == split}


def _join(records: Sequence[Record]) -> TokenSequence:
    images, at = [], 0
    for record in records:
        images += [PlacedImage(placed.token + at, placed.image) for placed in record.sequence.images]
        at += len(record.sequence.tokens)
    arrays = (
        np.concatenate([getattr(record.sequence, name) for record in records])
        for name in ("tokens", "kinds", "positions", "step_begin")
    )
    return TokenSequence(*arrays, images)


def _read_shards(directory: Path, parts: Sequence[ShardEntry]) -> list[list[Record]]:
    shards = []
    for part in parts:
        reader = ArrayRecordReader(os.fspath(directory / part.file))
        shards.append([Record.from_bytes(data) for data in reader.read_all()])
        reader.close()
        assert (len(shards[-1]), part.size) == (part.records, (directory / part.file).stat().st_size)
        assert sum(len(record.sequence.tokens) for record in shards[-1]) == part.tokens
    return shards


def _read_documents(out: Path, name: str) -> BuiltDocuments:
    [totals] = [dataset for dataset in read_manifest(out).datasets if dataset.name == name]
    directory = out / totals.directory
    described = read_dataset_file(directory)
    assert described.documents is not None
    tokenizer = DocumentTokenizer(TextTokenizer.load(out / "vocabulary.model"), described.documents.end_of_document)
    rows, parts, sequences = [], {}, {}
    for split in totals.splits:
        shards = _read_shards(directory, split.parts)
        own = pq.read_table(directory / split.index).to_pylist()
        places = []
        for row in own:
            assert row["kept"] == (row["reason"] is None) == (row["split"] is not None)
            if not row["kept"]:
                assert (row["part"], row["first_record"], row["record_tokens"], row["tokens"]) == (None, None, None, 0)
                continue
            begin, count = row["first_record"], len(row["record_tokens"])
            records = shards[row["part"]][begin : begin + count]
            assert [(record.owner, record.chunk, record.chunks) for record in records] == [
                (row["episode_id"], chunk, count) for chunk in range(count)
            ]
            assert [len(record.sequence.tokens) for record in records] == row["record_tokens"]
            assert sum(row["record_tokens"]) == row["tokens"]
            is_held_out = row["split"] == "held_out"
            assert all((begin + at >= split.parts[row["part"]].training) == is_held_out for at in range(count))
            places += [(row["part"], begin + at) for at in range(count)]
            sequences[row["episode_id"]] = _join(records)
            parts[row["episode_id"]] = tokenizer.decode(sequences[row["episode_id"]])
        assert sorted(places) == [(part, at) for part, shard in enumerate(shards) for at in range(len(shard))]
        rows += own
    assert len(parts) == totals.kept == sum(row["kept"] for row in rows)
    assert totals.tokens == sum(row["tokens"] for row in rows)
    assert totals.episodes == sum(row["lost"] for row in rows)
    return BuiltDocuments(totals, described, rows, parts, sequences)


@pytest.fixture(scope="session")
def read_documents() -> Callable[[Path, str], BuiltDocuments]:
    """``read_documents(out, name) -> BuiltDocuments``; index, shards and manifest are compared with each other.

    It reads with Arrow, ArrayRecord and the record format alone.
    """
    return _read_documents
