"""The demonstration of a task, which a policy reads before it acts (Gato, section 2.4)."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from gatokit.policy.spans import PRIVATE_NUMBERS, Span, concatenate
from gatokit.schemas.errors import DataError
from gatokit.schemas.policy import Prompt
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import TokenSequence
from gatokit.storage.array_record import ArrayRecordFile


def private_number(step: int) -> int:
    """The number of a step's private tokens, 1 or more."""
    return step % PRIVATE_NUMBERS + 1


def read_prompt(path: Path, prompt: Prompt, tokens: int, action_tokens: int, hide: bool) -> list[Span]:
    """The first whole steps of a demonstration that have at most ``tokens`` tokens together, one span each.

    ``path`` is the file of demonstrations, ``action_tokens`` the number at the end of every step; with ``hide`` these
    are hidden (``Span.of_actions``). Raises DataError if the file is missing or damaged.
    """
    steps: list[Span] = []
    if not tokens:
        return steps
    if not path.exists():
        raise DataError(
            f"{path} is missing, which holds the demonstrations: take the policy's folder of the run, or play without "
            "a prompt"
        )
    left = tokens
    for sequence in _sequences(path, prompt):
        for begin, end in pairwise([*sequence.step_begin.tolist(), len(sequence.tokens)]):
            if end - begin > left:
                return steps
            left -= end - begin
            action = end - action_tokens
            number = private_number(len(steps)) if hide else 0
            actions = Span.of_actions(sequence.tokens[action:end], sequence.kinds[action:end], number)
            steps.append(concatenate([Span.of(sequence, begin, action), actions]))
    return steps


def _sequences(path: Path, prompt: Prompt) -> Iterator[TokenSequence]:
    """The tokens of each record of the demonstration."""
    with ArrayRecordFile(path) as file:
        for ordinal in range(prompt.first_record, prompt.first_record + prompt.records):
            (data,) = file.read(ordinal, ordinal + 1)
            try:
                yield Record.from_bytes(data).sequence
            except ValueError as error:
                raise DataError(
                    f"{path}, record {ordinal}: {error}; take the policy's folder of the run again"
                ) from None
