"""A stored document as a whole: its records joined, decoded to texts and pictures.

Legend: T tokens.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gatokit.inspection.read.rows import EpisodeRow
from gatokit.schemas.errors import DataError
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence
from gatokit.tokenizers.document import DocumentTokenizer


@dataclass(frozen=True)
class StoredDocument:
    """A document of a finished build: its index row and its records, as they are stored, in order."""

    row: EpisodeRow
    records: tuple[Record, ...]
    tokenizer: DocumentTokenizer

    @property
    def id(self) -> str:
        """The id in the index."""
        return self.row.episode_id

    @property
    def tokens(self) -> int:
        """T, the number of tokens of all records."""
        return sum(len(record.sequence.tokens) for record in self.records)

    @property
    def images(self) -> list[EncodedImage]:
        """The pictures in reading order."""
        return [placed.image for record in self.records for placed in record.sequence.images]

    @functools.cached_property
    def sequence(self) -> TokenSequence:
        """The T tokens of the whole document, without steps."""
        sequences = [record.sequence for record in self.records]
        begin = np.cumsum([0, *(len(sequence.tokens) for sequence in sequences)])[:-1].tolist()
        return TokenSequence(
            tokens=np.concatenate([sequence.tokens for sequence in sequences]),
            kinds=np.concatenate([sequence.kinds for sequence in sequences]),
            positions=np.concatenate([sequence.positions for sequence in sequences]),
            step_begin=np.empty(0, np.uint32),
            images=[
                PlacedImage(placed.token + at, placed.image)
                for sequence, at in zip(sequences, begin, strict=True)
                for placed in sequence.images
            ],
        )

    @functools.cached_property
    def parts(self) -> list[str | EncodedImage]:
        """The texts and pictures in reading order; DataError where the tokens are not those of a document."""
        try:
            return self.tokenizer.decode(self.sequence)
        except ValueError as error:
            raise DataError(f"document {self.id!r} does not decode: {error}") from None


def join_document(records: Sequence[Record], row: EpisodeRow, tokenizer: DocumentTokenizer) -> StoredDocument:
    """The document whose records, in order, these are; DataError where one belongs to another, or elsewhere."""
    chunks = len(row.record_tokens or ())
    for chunk, record in enumerate(records):
        if (record.owner, record.chunk, record.chunks) != (row.episode_id, chunk, chunks):
            raise DataError(
                f"record {chunk} of document {row.episode_id!r} holds chunk {record.chunk} of {record.chunks} of "
                f"{record.owner!r}: index and shard are not of one build. gatokit verify says more"
            )
    return StoredDocument(row, tuple(records), tokenizer)
