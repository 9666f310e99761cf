"""From stored documents to the records of a shard: images are fitted, texts tokenized, long documents cut."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, pairwise
from typing import Any, Literal

from pydantic import BaseModel

from gatokit.pipelines.documents.reader import DocumentFile, Part, file_from_json
from gatokit.pipelines.formats.records import ByteRange
from gatokit.pipelines.stages import OutOfRange, ShardSettings, Tokenized, TokenizedRow
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.manifest import DocumentRules
from gatokit.schemas.record import document_record
from gatokit.schemas.tokens import Document, EncodedImage, PlacedImage, TokenSequence
from gatokit.tokenizers.document import DocumentTokenizer, is_copied, patch_count, prepare
from gatokit.tokenizers.text import TextTokenizer

_BATCH_DOCUMENTS, _BATCH_CHARACTERS, _BATCH_BYTES = 256, 1 << 18, 1 << 19
"""Documents are tokenized together up to this many, this much text and this many bytes of images."""
_THREADS, _HEAVY_CHARACTERS = 2, 1 << 16
"""Threads beside a worker's own, and the text of a batch that is worth one: handing over less costs more."""
_Batch = list[tuple[int, list[Part]]]
"""Rows, each with the stored parts of its document."""


class DocumentShardHeader(BaseModel):
    """Files of a shard of documents, and the rules for what they hold."""

    kind: Literal["documents"] = "documents"
    dataset: str
    settings: ShardSettings
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
            "files": [
                (file["type"], item.identity()) for file, item in zip(self.files, self.source_files(), strict=True)
            ],
        }

    def builder(self, text: TextTokenizer) -> "DocumentShardBuilder":
        """Makes the records of the shard's rows with this vocabulary."""
        return DocumentShardBuilder(self, text)


class DocumentShardBuilder:
    """Makes the records of a shard's documents."""

    def __init__(self, header: DocumentShardHeader, text: TextTokenizer) -> None:
        self._header, self._rules = header, header.rules
        self._files = header.source_files()
        self._tokenizer = DocumentTokenizer(text, header.rules.end_of_document)
        self.out_of_range: OutOfRange = {}

    def tokenize(self, columns: dict[str, list[Any]], rows: list[int]) -> Iterator[Tokenized]:
        """Yields each of ``rows``, in order, with its records or the error that says why it has none.

        ``columns`` are those of the shard task. Raises DataError if the source changed since the scan.
        """
        # Decoding images and tokenizing text release the interpreter lock: other threads take the batches with much of
        # it, while this one reads the next documents and writes the last ones.
        with ThreadPoolExecutor(_THREADS) as others:
            waiting: deque[Future[list[Tokenized]]] = deque()
            for batch in _batches(self._stored(columns, rows)):
                if self._is_heavy(batch):
                    waiting.append(others.submit(self._tokenize, columns, batch))
                    if len(waiting) > _THREADS:
                        yield from waiting.popleft().result()
                else:
                    while waiting:
                        yield from waiting.popleft().result()
                    yield from self._tokenize(columns, batch)
            for last in waiting:
                yield from last.result()

    def _is_heavy(self, batch: _Batch) -> bool:
        """Whether there is much text, or an image, judged by the first, that must be decoded."""
        if sum(len(part) for _, parts in batch for part in parts if isinstance(part, str)) >= _HEAVY_CHARACTERS:
            return True
        image = next((part for _, parts in batch for part in parts if isinstance(part, bytes)), None)
        rule = self._rules.pictures
        return image is not None and rule is not None and not is_copied(image, rule)

    def _tokenize(self, columns: dict[str, list[Any]], batch: _Batch) -> list[Tokenized]:
        """The rows of a batch, each with its records or the error that says why it has none."""
        ids, files = columns["episode_id"], columns["file"]
        documents, remarks = {}, {}
        tokenized: dict[int, TokenizedRow | RejectedError] = {}
        for row, parts in batch:
            try:
                fitted, remarks[row] = fit_images(parts, self._rules, self._files[files[row]].separator)
                documents[row] = Document(ids[row], fitted)
            except RejectedError as error:
                tokenized[row] = error
        for row, sequence in zip(documents, self._tokenizer.encode(list(documents.values())), strict=True):
            if isinstance(sequence, RejectedError):
                tokenized[row] = sequence
            else:
                records, sizes = document_records(ids[row], sequence, self._header.settings.chunk_tokens)
                tokenized[row] = TokenizedRow(records, sizes, remarks[row])
        return [(row, tokenized[row]) for row, _ in batch]

    def _stored(self, columns: dict[str, list[Any]], rows: list[int]) -> Iterator[tuple[int, list[Part]]]:
        """(row, parts as stored), file by file."""
        names = ("source_position", "offset", "length", "crc", "payload")
        for ordinal, members in groupby(rows, key=lambda row: columns["file"][row]):
            rows_of_file = list(members)
            byte_ranges = [ByteRange(*(columns[name][row] for name in names)) for row in rows_of_file]
            yield from zip(rows_of_file, self._files[ordinal].read(byte_ranges), strict=True)


def fit_images(parts: list[Part], rules: DocumentRules, separator: str) -> tuple[list[str | EncodedImage], str | None]:
    """The parts with their images as the rules want them stored, and a remark on images that were left out.

    ``separator`` joins texts that become neighbours by that. Raises RejectedError if an image is damaged, unless the
    rules leave it out, or if nothing is left.
    """
    if rules.pictures is None:
        return [part for part in parts if isinstance(part, str)], None
    fitted: list[str | EncodedImage] = []
    left_out = []
    for part in parts:
        if isinstance(part, bytes):
            try:
                fitted.append(prepare(part, rules.pictures))
            except RejectedError as error:
                if rules.bad_images == "reject":
                    raise
                left_out.append(f"{error.reason}: {error.detail}")
        elif fitted and isinstance(fitted[-1], str):
            fitted[-1] += separator + part
        else:
            fitted.append(part)
    if not fitted:
        raise RejectedError("empty", "nothing is left of the page without its damaged pictures")
    if not left_out:
        return fitted, None
    count = f"{len(left_out)} pictures" if len(left_out) > 1 else "1 picture"
    return fitted, f"{count} left out: {left_out[0]}"


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


def document_records(id: str, sequence: TokenSequence, chunk_tokens: int) -> tuple[list[bytes], list[int]]:
    """The serialized records of a tokenized document in order, and how many tokens each has."""
    starts = document_cuts(len(sequence.tokens), sequence.images, chunk_tokens)
    records, sizes = [], []
    for chunk, (begin, end) in enumerate(pairwise([*starts, len(sequence.tokens)])):
        part = (
            sequence
            if len(starts) == 1
            else TokenSequence(
                tokens=sequence.tokens[begin:end],
                kinds=sequence.kinds[begin:end],
                positions=sequence.positions[begin:end],
                step_begin=sequence.step_begin,
                images=[PlacedImage(token - begin, image) for token, image in sequence.images if begin <= token < end],
            )
        )
        records.append(document_record(id, chunk, len(starts), part))
        sizes.append(end - begin)
    return records, sizes


def _end(placed: PlacedImage) -> int:
    return placed.token + patch_count(placed.image)


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
