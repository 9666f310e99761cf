"""From scanned documents to the records of a shard.

Documents that repeat an earlier one are dropped; of the others, images are fitted, texts tokenized, and long documents
cut. The rows of the scan stay in files: in memory there are three bytes of each, and during the filter 24 more and 16
for each picture and its text. Legend: R rows of the scan.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from gatokit.pipelines import holdout, losses, stages
from gatokit.pipelines.documents.reader import DocumentFile, DocumentsPlan, Part, file_from_json
from gatokit.pipelines.scan_cache import Segment
from gatokit.schemas.config import BuildConfig, document_rules
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.schemas.index import HELD_OUT, TRAIN
from gatokit.schemas.manifest import DocumentRules, Overlap
from gatokit.schemas.record import document_record
from gatokit.schemas.tokens import Document, EncodedImage, PlacedImage, TokenSequence
from gatokit.tokenizers.document import DocumentTokenizer, is_copied, patch_count, prepare
from gatokit.tokenizers.text import TextTokenizer

DOCUMENT_TASK_ROWS = pa.schema([*stages.TASK_ROWS, pa.field("payload", pa.string())])
"""The rows of a shard task; ``payload`` is that of ``ByteRange``."""
_BATCH_DOCUMENTS, _BATCH_CHARACTERS, _BATCH_BYTES = 256, 1 << 18, 1 << 19
"""Documents are tokenized together up to this many, this much text and this many bytes of images."""
_THREADS, _HEAVY_CHARACTERS = 2, 1 << 16
"""Threads beside a worker's own, and the characters of a batch from which a thread gains more than it costs."""
_Batch = list[tuple[int, list[Part]]]
"""Rows, each with the stored parts of its document."""
_TokenizedBatch = tuple[list[stages.Tokenized], losses.LeftOut]


# --- which documents are kept ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DocumentFilterResult(stages.FilterResult):
    """Adds which sound rows repeat an earlier one, bool (R,)."""

    repeats: np.ndarray


def filter_documents(
    plan: DocumentsPlan,
    segments: Sequence[Segment],
    config: BuildConfig,
    limit: int | None,
    held_out_before: np.ndarray | None = None,
) -> DocumentFilterResult:
    """Verdicts over the rows of the scanned units. The dataset is one task with one stream.

    ``limit`` takes only the first documents. Raises DataError if the error budget is exceeded or nothing is kept.
    """
    name = plan.config.name
    scanned = stages.ScannedRows(segments, limit)
    rows_lost, bytes_lost = losses.Losses(), losses.SourceLosses(plan.files)
    left_out = losses.LeftOut()
    hashes, contents, soundness, known = bytearray(), bytearray(), bytearray(), bytearray()
    named, pictures, texts = holdout.Links(), holdout.Links(), holdout.Links()
    for table in scanned.tables():
        first = len(soundness)
        rows_lost.add(table, plan.ids)
        bytes_lost.add(table)
        _count_images(left_out, table, plan)
        ids, groups = plan.ids(table), table["group"].to_pylist()
        keys = [id_ if group is None else f"group\0{group}" for id_, group in zip(ids, groups, strict=True)]
        hashed = _hashes(config, keys)
        hashes += hashed.tobytes()
        if held_out_before is not None:
            of_ids = hashed if keys == ids else _hashes(config, ids)
            known += np.isin(of_ids, held_out_before).tobytes()
        in_groups = np.flatnonzero([group is not None for group in groups])
        named.add(first + in_groups, hashed[in_groups])
        _link(table, first, pictures, texts, with_all=not plan.config.drop_duplicates)
        soundness += pc.is_null(table["reason"]).to_numpy().tobytes()
        if plan.config.drop_duplicates:
            contents += b"".join(value or bytes(16) for value in table["content"].to_pylist())
    bytes_lost.check_budget(config, name)
    rows_lost.check_budget(config, name, plan.kind)
    left_out.check_bounds(config, name)
    sound = np.frombuffer(soundness, bool)
    repeats = np.zeros(len(sound), bool)
    if plan.config.drop_duplicates:
        rows, content = np.flatnonzero(sound), np.frombuffer(contents, np.uint64).reshape(-1, 2)
        # The sort is stable, so the first of equal ones comes first.
        rows = rows[np.lexsort(content[rows].T)]
        same = (content[rows[1:]] == content[rows[:-1]]).all(axis=1)
        repeats[rows[1:][same]] = True
    kept = sound & ~repeats
    if not kept.any():
        raise DataError(
            f"{name}: the source holds {rows_lost.rows} documents, of which none is sound: "
            + (", ".join(f"{count} {reason}" for reason, count in rows_lost.counts.items()) or "its files are empty")
        )
    stream = stages.Stream("", int(np.count_nonzero(sound)), None, None)
    one_task = np.zeros(len(kept), np.int8)
    of_groups = holdout.together(np.frombuffer(hashes, np.uint64), kept, named, pictures, texts)
    before = None if held_out_before is None else np.frombuffer(known, bool)
    held_out = holdout.held_out(of_groups, kept, one_task, config.holdout, before)
    counts = [holdout.overlap(links, kept, held_out) for links in (pictures, texts)]
    overlap = Overlap(pictures=counts[0], texts=counts[1])
    return DocumentFilterResult(
        scanned=scanned,
        tasks=(stages.Task(name, None, None, (stream,)),),
        notices=tuple(_overlap_notices(name, overlap)),
        specs={},
        kept=kept,
        held_out=held_out,
        source_loss=bytes_lost.entry(),
        left_out=left_out,
        overlap=overlap,
        repeats=repeats,
    )


def _hashes(config: BuildConfig, keys: Sequence[str]) -> np.ndarray:
    return np.array([holdout.row_hash(config.seed, key) for key in keys], np.uint64)


def _link(table: pa.Table, first: int, pictures: holdout.Links, texts: holdout.Links, *, with_all: bool) -> None:
    """Adds the pictures and texts of scanned rows, which begin at row ``first`` of the dataset. Texts without pictures
    are added if ``with_all`` is set; else none of them comes twice."""
    lists = table["pictures"].combine_chunks()
    rows = first + pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    pictures.add(rows, pc.list_flatten(lists).to_numpy(zero_copy_only=False))
    has_text = pc.is_valid(table["text"]).to_numpy()
    texts.add(first + np.flatnonzero(has_text), table["text"].drop_null().to_numpy())
    alone = pc.and_(pc.is_null(table["pictures"]), pc.is_valid(table["content"])).to_numpy()
    if with_all or len(rows):
        contents = b"".join(value[:8] for value in table["content"].filter(pa.array(alone)).to_pylist())
        texts.add(first + np.flatnonzero(alone), np.frombuffer(contents, np.uint64))


def _overlap_notices(name: str, overlap: Overlap) -> list[str]:
    """A notice if training and held-out documents share something."""
    if not overlap.pictures and not overlap.texts:
        return []
    counts = f"{overlap.pictures:,} pictures and {overlap.texts:,} texts"
    return [f"{name}: {counts} stand in the held-out part and in the training part: too many documents share them"]


def _count_images(left_out: losses.LeftOut, scanned: pa.Table, plan: DocumentsPlan) -> None:
    """Counts the images that a scan has left out of pages."""
    left_out.totals[losses.PICTURES] += pc.sum(scanned["images"]).as_py() or 0
    pages = scanned.filter(pc.greater(scanned["images_left_out"], 0))
    for id_, detail, count in zip(plan.ids(pages), *pages.select(["detail", "images_left_out"]), strict=True):
        left_out.add(losses.PICTURES, "missing_image", count.as_py(), f"{id_}: {detail}")


# --- shard tasks -----------------------------------------------------------------------------------------------


class DocumentShardHeader(BaseModel):
    """Files of a shard of documents, and the rules for what they hold."""

    kind: Literal["documents"] = "documents"
    dataset: str
    generations: dict[str, int] = {}
    """See ``SplitEntry``; no part of what the shard depends on."""
    settings: stages.ShardSettings
    rules: DocumentRules
    files: list[dict[str, Any]]

    def source_files(self) -> list[DocumentFile]:
        """The files, ready to be read."""
        return [file_from_json(file) for file in self.files]

    def identity(self) -> dict[str, Any]:
        """What the shard depends on besides settings and rows. Files count by type, name, size and the fields that are
        read of them."""
        return {
            "rules": self.rules.model_dump(mode="json"),
            "files": [(file.type, file.identity()) for file in self.source_files()],
        }

    def kept_identity(self, files: list[int], specs: list[str]) -> dict[str, Any]:
        """What the records of documents in these of the ``files`` depend on besides settings and rows."""
        read = [file_from_json(self.files[file]) for file in files]
        return {
            "rules": self.rules.model_dump(mode="json"),
            "files": [
                (file.type, {key: value for key, value in file.identity().items() if key != "size"}) for file in read
            ],
        }

    @property
    def has_pictures(self) -> bool:
        """Whether records may hold pictures."""
        return self.rules.pictures is not None

    def builder(self, text: TextTokenizer | None) -> "DocumentShardBuilder":
        """Makes the records of the shard's rows with this vocabulary."""
        assert text is not None  # see planning.check_vocabulary
        return DocumentShardBuilder(self, text)


def shard_header(
    plan: DocumentsPlan, result: stages.FilterResult, files: list[int], rows: pa.Table, settings: stages.ShardSettings
) -> DocumentShardHeader:
    """The header of a shard task whose rows lie in these of the plan's files."""
    return DocumentShardHeader(
        dataset=plan.config.name,
        settings=settings,
        rules=document_rules(plan.config),
        files=[plan.files[number].model_dump(mode="json") for number in files],
    )


def task_rows(plan: DocumentsPlan, result: DocumentFilterResult, scanned: pa.Table, part: slice) -> pa.Table:
    """Scanned rows, which are ``part`` of the dataset's, as a shard task holds them (schema ``DOCUMENT_TASK_ROWS``)."""
    rows = scanned.num_rows
    kept, repeats, held_out = result.kept[part], result.repeats[part], result.held_out[part]
    columns = {
        "episode_id": plan.ids(scanned),
        "task": pa.repeat(plan.config.name, rows),
        "agent": pa.repeat("", rows),
        "order": scanned["position"].to_numpy().astype(np.float64),
        "split": pc.if_else(pa.array(kept), pc.if_else(pa.array(held_out), HELD_OUT, TRAIN), None),
        "kept": kept,
        "reason": pc.if_else(pa.array(repeats), "duplicate", scanned["reason"]),
        "source_file": pa.array([file.name for file in plan.files]).take(scanned["file"]),
        "source_position": scanned["position"],
        **{name: scanned[name] for name in ("detail", "lost", "file", "offset", "length", "crc", "payload")},
    }
    nothing = pa.nulls(rows)
    table = pa.table({name: columns.get(name, nothing) for name in DOCUMENT_TASK_ROWS.names})
    return table.cast(DOCUMENT_TASK_ROWS)


# --- records ---------------------------------------------------------------------------------------------------


class DocumentShardBuilder:
    """Makes the records of a shard's documents."""

    def __init__(self, header: DocumentShardHeader, text: TextTokenizer) -> None:
        self._header, self._rules = header, header.rules
        self._files = header.source_files()
        self._tokenizer = DocumentTokenizer(text, header.rules.end_of_document)
        self._unknown_id = text.unknown_id
        self.out_of_range: stages.OutOfRange = {}
        self.left_out = losses.LeftOut()

    def tokenize(self, columns: dict[str, list[Any]], rows: list[int]) -> Iterator[stages.Tokenized]:
        """Yields each of ``rows``, in order, with its records or the error that says why it has none.

        ``columns`` are those of the shard task. Raises DataError if the source changed since the scan.
        """
        # Decoding images and tokenizing text release the interpreter lock: other threads take the batches with much of
        # it, while this one reads the next documents and writes the last ones.
        with ThreadPoolExecutor(_THREADS) as others:
            waiting: deque[Future[_TokenizedBatch]] = deque()
            for batch in _batches(self._stored(columns, rows)):
                if self._is_heavy(batch):
                    waiting.append(others.submit(self._tokenize, columns, batch))
                    if len(waiting) > _THREADS:
                        yield from self._counted(waiting.popleft().result())
                else:
                    while waiting:
                        yield from self._counted(waiting.popleft().result())
                    yield from self._counted(self._tokenize(columns, batch))
            for last in waiting:
                yield from self._counted(last.result())

    def _counted(self, batch: "_TokenizedBatch") -> list[stages.Tokenized]:
        tokenized, left_out = batch
        self.left_out.merge(left_out)
        return tokenized

    def _stored(self, columns: dict[str, list[Any]], rows: list[int]) -> Iterator[tuple[int, list[Part]]]:
        """(row, parts as stored), file by file."""
        for file, rows_of_file, byte_ranges in stages.rows_by_file(columns, rows):
            yield from zip(rows_of_file, self._files[file].read(byte_ranges), strict=True)

    def _is_heavy(self, batch: _Batch) -> bool:
        """Whether there is much text, or an image, judged by the first, that must be decoded."""
        if sum(len(part) for _, parts in batch for part in parts if isinstance(part, str)) >= _HEAVY_CHARACTERS:
            return True
        image = next((part for _, parts in batch for part in parts if isinstance(part, bytes)), None)
        rule = self._rules.pictures
        return image is not None and rule is not None and not is_copied(image, rule)

    def _tokenize(self, columns: dict[str, list[Any]], batch: _Batch) -> "_TokenizedBatch":
        """The rows of a batch, each with its records or the error that says why it has none, and what they lost."""
        left_out = losses.LeftOut()
        ids, files = columns["episode_id"], columns["file"]
        documents: dict[int, Document] = {}
        remarks = {}
        tokenized: dict[int, stages.TokenizedRow | RejectedError] = {}
        for row, parts in batch:
            try:
                fitted, bad = fit_images(parts, self._rules, self._files[files[row]].separator)
                documents[row], remarks[row] = fitted, _remark(bad)
                for error in bad:
                    left_out.add(losses.PICTURES, error.reason, 1, f"{ids[row]}: {error.detail}")
            except RejectedError as error:
                tokenized[row] = error
        for row, sequence in zip(documents, self._tokenizer.encode(list(documents.values())), strict=True):
            if isinstance(sequence, RejectedError):
                tokenized[row] = sequence
            else:
                if self._unknown_id is not None:
                    stages.count_unknown(left_out, sequence, self._unknown_id, ids[row])
                records, sizes = document_records(ids[row], sequence, self._header.settings.chunk_tokens)
                tokenized[row] = stages.TokenizedRow(records, sizes, remarks[row])
        return [(row, tokenized[row]) for row, _ in batch], left_out


def _batches(documents: Iterable[tuple[int, list[Part]]]) -> Iterator[_Batch]:
    batch: _Batch = []
    characters = size = 0
    for row, parts in documents:
        batch.append((row, parts))
        for part in parts:
            if isinstance(part, str):
                characters += len(part)
            else:
                size += len(part)
        if len(batch) == _BATCH_DOCUMENTS or characters > _BATCH_CHARACTERS or size > _BATCH_BYTES:
            yield batch
            batch, characters, size = [], 0, 0
    if batch:
        yield batch


def fit_images(
    parts: list[Part], rules: DocumentRules, separator: str
) -> tuple[list[str | EncodedImage], list[RejectedError]]:
    """The parts with their images as the rules want them stored, and what was wrong with images that were left out.

    ``separator`` joins texts that become neighbours by that. Raises RejectedError if an image is damaged, unless the
    rules leave it out, or if nothing is left.
    """
    if rules.pictures is None:
        return [part for part in parts if isinstance(part, str)], []
    fitted: list[str | EncodedImage] = []
    left_out = []
    for part in parts:
        if isinstance(part, bytes):
            try:
                fitted.append(prepare(part, rules.pictures))
            except RejectedError as error:
                if rules.bad_images == "reject":
                    raise
                left_out.append(error.with_traceback(None))
        elif fitted and isinstance(fitted[-1], str):
            fitted[-1] += separator + part
        else:
            fitted.append(part)
    if not fitted:
        raise RejectedError("empty", "nothing is left of the page without its damaged pictures")
    return fitted, left_out


def _remark(left_out: list[RejectedError]) -> str | None:
    if not left_out:
        return None
    count = f"{len(left_out)} pictures" if len(left_out) > 1 else "1 picture"
    return f"{count} left out: {left_out[0].reason}: {left_out[0].detail}"


def document_records(id: str, sequence: TokenSequence, chunk_tokens: int) -> tuple[list[bytes], list[int]]:
    """The serialized records of a tokenized document in order, and how many tokens each has."""
    starts = document_cuts(len(sequence.tokens), sequence.images, chunk_tokens)
    records, sizes = [], []
    for chunk, (begin, end) in enumerate(pairwise([*starts, len(sequence.tokens)])):
        part = replace(
            sequence,
            tokens=sequence.tokens[begin:end],
            kinds=sequence.kinds[begin:end],
            positions=sequence.positions[begin:end],
            images=[PlacedImage(token - begin, image) for token, image in sequence.images if begin <= token < end],
        )
        records.append(document_record(id, chunk, len(starts), part))
        sizes.append(end - begin)
    return records, sizes


def document_cuts(tokens: int, images: list[PlacedImage], chunk_tokens: int) -> list[int]:
    """Tokens with which the records of a document begin: every ``chunk_tokens``, or earlier, before an image that would
    be divided, or behind an image that alone is larger."""
    starts, image = [0], 0
    while starts[-1] + chunk_tokens < tokens:
        cut = starts[-1] + chunk_tokens
        while image < len(images) and _end(images[image]) <= cut:
            image += 1
        if image < len(images) and images[image].token < cut:
            cut = images[image].token if images[image].token > starts[-1] else _end(images[image])
        if cut >= tokens:
            break
        starts.append(cut)
    return starts


def _end(placed: PlacedImage) -> int:
    return placed.token + patch_count(placed.image)
