"""A stored episode as a whole: its records joined, decoded and walked step by step.

Legend: S time steps, T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatokit.inspection.read.rows import EpisodeRow
from gatokit.schemas.episode import EpisodeSpec, FieldSpec
from gatokit.schemas.errors import DataError
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import PlacedImage, TokenSequence
from gatokit.tokenizers.episode import EpisodeTokenizer, FieldValues


@dataclass(frozen=True)
class Step:
    """One decoded time step.

    ``observation`` and ``action`` are a dict, key path below them → value, or the value itself where the field
    is bare. Values are arrays, NumPy scalars, ``str`` and ``EncodedImage``. ``discount`` is None where the
    source has none; ``flags`` is made of FIRST, LAST and TERMINAL.
    """

    step: int
    observation: Any
    action: Any
    reward: float
    discount: float | None
    flags: int


@dataclass(frozen=True)
class StoredEpisode:
    """An episode of a finished build.

    ``sequence`` holds T tokens of S steps; ``reward`` and ``discount`` are float64 (S,), ``discount`` None where
    the source has none; ``flags`` is uint8 (S,) of FIRST, LAST and TERMINAL.
    """

    row: EpisodeRow
    sequence: TokenSequence
    reward: np.ndarray
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
        """The S values of every field by path, as ``EpisodeTokenizer.decode`` gives them; DataError where the
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
                observation=_part(observation, values, step),
                action=_part(self.spec.action, values, step),
                reward=float(self.reward[step]),
                discount=None if self.discount is None else float(self.discount[step]),
                flags=int(self.flags[step]),
            )


def join(records: Sequence[Record], row: EpisodeRow, tokenizer: EpisodeTokenizer) -> StoredEpisode:
    """The episode whose records, in order, these are.

    DataError where a record belongs to another episode or place, or the records are not all of it.
    """
    _check(records, row)
    begin = np.cumsum([0, *(len(record.sequence.tokens) for record in records)])
    sequences = [record.sequence for record in records]
    discounts = [record.discount for record in records if record.discount is not None]
    texts = [sequence.text_tokens for sequence in sequences if sequence.text_tokens is not None]
    return StoredEpisode(
        row=row,
        sequence=TokenSequence(
            tokens=np.concatenate([sequence.tokens for sequence in sequences]),
            kinds=np.concatenate([sequence.kinds for sequence in sequences]),
            positions=np.concatenate([sequence.positions for sequence in sequences]),
            step_begin=np.concatenate(
                [sequence.step_begin + np.uint32(at) for sequence, at in zip(sequences, begin[:-1], strict=True)]
            ),
            images=[
                PlacedImage(placed.token + int(at), placed.image)
                for sequence, at in zip(sequences, begin[:-1], strict=True)
                for placed in sequence.images
            ],
            text_tokens=np.concatenate(texts) if len(texts) == len(records) else None,
        ),
        reward=np.concatenate([record.reward for record in records]),
        discount=np.concatenate(discounts) if len(discounts) == len(records) else None,
        flags=np.concatenate([record.flags for record in records]),
        tokenizer=tokenizer,
    )


def _check(records: Sequence[Record], row: EpisodeRow) -> None:
    sizes = row.record_tokens or ()
    if len(records) != len(sizes):
        raise DataError(f"episode {row.episode_id!r} has {len(sizes)} records and {len(records)} were read")
    step = 0
    for chunk, record in enumerate(records):
        found = (record.owner, record.spec, record.chunk, record.chunks, record.first_step)
        if found != (row.episode_id, row.spec, chunk, len(sizes), step):
            raise DataError(
                f"record {chunk} of episode {row.episode_id!r} holds chunk {record.chunk} of {record.chunks} of "
                f"{record.owner!r} from step {record.first_step} on: index and shard are not of one build. "
                "gatokit verify says more"
            )
        step += len(record.flags)
    if step != row.steps:
        raise DataError(f"the records of episode {row.episode_id!r} hold {step} steps and its index row {row.steps}")


def _part(fields: Sequence[FieldSpec], values: dict[str, FieldValues], step: int) -> Any:
    if len(fields) == 1 and len(fields[0].components) == 1:
        return values[fields[0].path][step]
    return {"/".join(field.components[1:]): values[field.path][step] for field in fields}
