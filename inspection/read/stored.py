"""A stored episode or document: its records joined and decoded.

Legend: S time steps, T tokens.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatokit.inspection.read.index import EpisodeRow
from gatokit.schemas.errors import DataError
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence
from gatokit.tokenizers.document import DocumentTokenizer
from gatokit.tokenizers.episode import EpisodeTokenizer, FieldValues


@dataclass(frozen=True)
class Step:
    """One decoded time step.

    ``observation`` and ``action`` are a dict from the key path below them to the value, or the value itself if the
    field has no keys. Values are arrays, NumPy scalars, ``str`` and ``EncodedImage``. ``reward`` and ``discount`` are
    None if the source has none; ``flags`` is made of FIRST, LAST and TERMINAL.
    """

    step: int
    observation: Any
    action: Any
    reward: float | None
    discount: float | None
    flags: int


@dataclass(frozen=True)
class StoredEpisode:
    """An episode of a finished build.

    ``sequence`` holds T tokens of S steps; ``reward`` and ``discount`` are float64 (S,), None if the source has
    none; ``flags`` is uint8 (S,) of FIRST, LAST and TERMINAL.
    """

    row: EpisodeRow
    sequence: TokenSequence
    reward: np.ndarray | None
    discount: np.ndarray | None
    flags: np.ndarray
    tokenizer: EpisodeTokenizer

    @property
    def spec(self) -> EpisodeSpec:
        """The task's fields in token order."""
        return self.tokenizer.spec

    @property
    def steps(self) -> int:
        """S, the number of time steps."""
        return len(self.flags)

    def decode(self) -> dict[str, FieldValues]:
        """The S values of every field by path, as ``EpisodeTokenizer.decode`` gives them. Raises DataError if the
        tokens are not of the spec."""
        try:
            return self.tokenizer.decode(self.sequence)
        except ValueError as error:
            raise DataError(f"episode {self.row.episode_id!r} does not decode: {error}") from None

    def decoded_steps(self, first: int = 0, end: int | None = None) -> Iterator[Step]:
        """The time steps [first, end), decoded; all of them by default."""
        values = self.decode()
        observation = [field for field in self.spec.observation if field.path in values]
        for step in range(first, self.steps if end is None else min(end, self.steps)):
            yield Step(
                step=step,
                observation=_step_values(observation, values, step),
                action=_step_values(self.spec.action, values, step),
                reward=None if self.reward is None else float(self.reward[step]),
                discount=None if self.discount is None else float(self.discount[step]),
                flags=int(self.flags[step]),
            )


@dataclass(frozen=True)
class StoredDocument:
    """A document of a finished build: its index row and its records in order."""

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
        """The images in reading order."""
        return [placed.image for record in self.records for placed in record.sequence.images]

    @functools.cached_property
    def sequence(self) -> TokenSequence:
        """The T tokens of the whole document, without steps."""
        return _joined(self.records)

    @functools.cached_property
    def parts(self) -> list[str | EncodedImage]:
        """The texts and images in reading order. Raises DataError if the tokens are not those of a document."""
        try:
            return self.tokenizer.decode(self.sequence)
        except ValueError as error:
            raise DataError(f"document {self.id!r} does not decode: {error}") from None


def join_episode(records: Sequence[Record], row: EpisodeRow, tokenizer: EpisodeTokenizer) -> StoredEpisode:
    """The episode of these records, in order. Raises DataError if a record belongs elsewhere, or steps are missing."""
    steps = 0
    for chunk, record in enumerate(records):
        if not _is_chunk_of(record, chunk, row) or (record.spec, record.first_step) != (row.spec, steps):
            raise _misplaced(record, chunk, row, "episode", f" from step {record.first_step} on")
        steps += len(record.flags)
    if steps != row.steps:
        raise DataError(f"the records of episode {row.episode_id!r} hold {steps} steps and its index row {row.steps}")
    rewards = [record.reward for record in records if record.reward is not None]
    discounts = [record.discount for record in records if record.discount is not None]
    return StoredEpisode(
        row=row,
        sequence=_joined(records),
        reward=np.concatenate(rewards) if len(rewards) == len(records) else None,
        discount=np.concatenate(discounts) if len(discounts) == len(records) else None,
        flags=np.concatenate([record.flags for record in records]),
        tokenizer=tokenizer,
    )


def join_document(records: Sequence[Record], row: EpisodeRow, tokenizer: DocumentTokenizer) -> StoredDocument:
    """The document of these records, in order. Raises DataError if one belongs to another document or place."""
    for chunk, record in enumerate(records):
        if not _is_chunk_of(record, chunk, row):
            raise _misplaced(record, chunk, row, "document")
    return StoredDocument(row, tuple(records), tokenizer)


def _is_chunk_of(record: Record, chunk: int, row: EpisodeRow) -> bool:
    return (record.owner, record.chunk, record.chunks) == (row.episode_id, chunk, len(row.record_tokens or ()))


def _misplaced(record: Record, chunk: int, row: EpisodeRow, noun: str, step: str = "") -> DataError:
    return DataError(
        f"record {chunk} of {noun} {row.episode_id!r} holds chunk {record.chunk} of {record.chunks} of "
        f"{record.owner!r}{step}: index and shard are not of one build. gatokit verify says more"
    )


def _joined(records: Sequence[Record]) -> TokenSequence:
    sequences = [record.sequence for record in records]
    begins = np.cumsum([0, *(len(sequence.tokens) for sequence in sequences)])[:-1].tolist()
    step_begins, images = [], []
    for begin, sequence in zip(begins, sequences, strict=True):
        step_begins.append(sequence.step_begin + np.uint32(begin))
        images += [PlacedImage(placed.token + begin, placed.image) for placed in sequence.images]
    texts = [sequence.text_tokens for sequence in sequences if sequence.text_tokens is not None]
    return TokenSequence(
        tokens=np.concatenate([sequence.tokens for sequence in sequences]),
        kinds=np.concatenate([sequence.kinds for sequence in sequences]),
        positions=np.concatenate([sequence.positions for sequence in sequences]),
        step_begin=np.concatenate(step_begins),
        images=images,
        text_tokens=np.concatenate(texts) if len(texts) == len(sequences) else None,
    )


def _step_values(fields: Sequence[FieldSpec], values: dict[str, FieldValues], step: int) -> Any:
    if len(fields) == 1 and len(fields[0].components) == 1:
        return values[fields[0].path][step]
    return {"/".join(field.components[1:]): values[field.path][step] for field in fields}
