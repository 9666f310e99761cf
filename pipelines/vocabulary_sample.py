"""The text that a vocabulary is trained on: a sample of what a build of the config keeps for training.

The same rows are kept, dropped as damaged or duplicate and held out as in a build. Documents, and the distinct texts of
an episode, are taken by the hash of their id: those with the lowest hashes, as many as fit. So each dataset has its
share by bytes, and neither the order of files nor where they lie decides anything. One of more than
``LONGEST_CHARACTERS`` is cut first and its pieces are taken each by its own hash.
"""

import hashlib
import heapq
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from gatokit.pipelines.documents.plan import DocumentsPlan
from gatokit.pipelines.episodes.plan import EpisodesPlan
from gatokit.pipelines.episodes.reader import RawEpisode, SourceFeatures
from gatokit.pipelines.formats.records import ByteRange
from gatokit.pipelines.planning.kinds import plan_dataset
from gatokit.pipelines.planning.plan import DatasetPlan, Judged
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.index import HELD_OUT, TRAIN
from gatokit.storage.files import write_rows

Progress = Callable[[str, int, int], None]
"""Called with a stage, the pieces that are done and their number."""

LONGEST_CHARACTERS = 1 << 14
"""Of a sentence for SentencePiece, which drops longer ones than it is told; at most four times as many bytes."""
CUT = "\0"
"""Stands between the sentences of a sampled text."""
# SentencePiece drops a sentence that holds its own sign for rare characters, takes NUL for the end of one, and writes
# its sign for a space where the text has a space: none of the three can be in a piece.
_SIGNS = re.compile("[\0\u2581\u2585]+")
_BATCH_ROWS = 8192


class Piece(NamedTuple):
    """A document, or a part of a long one: its dataset's and its own number, its sentences with ``CUT`` between them,
    and their size as UTF-8."""

    dataset: int
    document: int
    text: str
    size: int


class Sample:
    """The pieces with the lowest keys, as many as ``most_bytes`` holds, whatever the order they come in."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._heap: list[tuple[int, Piece]] = []
        self._lowest_dropped: int | None = None

    def wants(self, key: int) -> bool:
        """Whether a piece of this key still has a chance."""
        return self._lowest_dropped is None or key < self._lowest_dropped

    def add(self, key: int, piece: Piece) -> None:
        """Takes a piece; where there is no room, those with the highest keys go."""
        if self.wants(key):
            heapq.heappush(self._heap, (-key, piece))
            self._left -= piece.size
            while self._left < 0:
                dropped, last = heapq.heappop(self._heap)
                self._lowest_dropped = -dropped
                self._left += last.size

    def pieces(self) -> list[Piece]:
        """What is in the sample, by key."""
        return [piece for _, piece in sorted(self._heap, reverse=True)]


@dataclass(frozen=True)
class Drawn:
    """A sample of the training part and one of what is held out; ``names`` are those of the datasets that have text,
    ``documents`` how many training documents each has."""

    train: list[Piece]
    held_out: list[Piece]
    names: list[str]
    documents: list[int]


def draw(
    config: BuildConfig, base: Path, work: Path, most_bytes: int, held_out_bytes: int, progress: Progress
) -> Drawn:
    """Reads the config's datasets that have text; paths start at ``base``, and ``work`` takes the scanned rows.

    Errors as in a scan of the same config.
    """
    plans = [plan_dataset(config, number, base) for number in range(len(config.datasets))]
    plans = [plan for plan in plans if isinstance(plan, DocumentsPlan) or any(_text_fields(plan))]
    units = [(plan, unit) for plan in plans for unit in plan.units(config.max_episode_bytes)]
    results: dict[str, list[Path]] = {plan.config.name: [] for plan in plans}
    rows = 0
    for done, (plan, unit) in enumerate(units):
        progress("scan", done, len(units))
        table = unit.scan()
        rows += table.num_rows
        results[plan.config.name].append(work / f"{unit.fingerprint}.arrow")
        write_rows(results[plan.config.name][-1], table)
    progress("scan", len(units), len(units))
    reading = _Reading({TRAIN: Sample(most_bytes), HELD_OUT: Sample(held_out_bytes)}, config.seed, rows, progress)
    for plan in plans:
        reading.read(plan, plan.judge(results[plan.config.name], config, None))
    progress("sample", rows, rows)
    names = [plan.config.name for plan in plans]
    return Drawn(reading.samples[TRAIN].pieces(), reading.samples[HELD_OUT].pieces(), names, reading.documents)


def sentences(text: str) -> Iterator[str]:
    """What SentencePiece gets of a text: everything but its own signs, in pieces that it does not drop.

    It removes line ends from the end of a sentence, so cuts are made before them, not behind.
    """
    for part in _SIGNS.split(text):
        begin = 0
        while len(part) - begin > LONGEST_CHARACTERS:
            end = _place(part, begin + LONGEST_CHARACTERS // 2, begin + LONGEST_CHARACTERS)
            yield part[begin:end]
            begin = end
        if begin < len(part):
            yield part[begin:]


def _place(text: str, low: int, high: int) -> int:
    """Where to cut: before the last line ends, else before the last space, else at ``high``."""
    place = text.rfind("\n", low, high)
    while place > low and text[place - 1] in "\r\n":
        place -= 1
    if place <= low:
        place = text.rfind(" ", low, high)
    return place if place > low else high


def _packed(texts: Iterable[str]) -> Iterator[list[str]]:
    """The sentences of a document, together up to ``LONGEST_CHARACTERS``."""
    pack: list[str] = []
    room = LONGEST_CHARACTERS
    for text in texts:
        for sentence in sentences(text):
            if pack and len(sentence) > room:
                yield pack
                pack, room = [], LONGEST_CHARACTERS
            pack.append(sentence)
            room -= len(sentence)
    if pack:
        yield pack


class _Row(NamedTuple):
    number: int
    id: str
    split: str
    file: int
    position: int
    offset: int
    length: int
    crc: int
    payload: str | None


class _Reading:
    """Reads the documents that have a chance into the sample of their split."""

    def __init__(self, samples: dict[str, Sample], seed: int, rows: int, progress: Progress) -> None:
        self.samples = samples
        self.documents: list[int] = []
        """How many training documents each dataset has."""
        self._seed, self._rows, self._progress = seed, rows, progress
        self._done = 0

    def read(self, plan: DatasetPlan, judged: Judged) -> None:
        """Reads the next dataset."""
        dataset, name = len(self.documents), plan.config.name
        self.documents.append(0)
        for file, rows in groupby(self._kept(judged), key=lambda row: row.file):
            waiting: deque[_Row] = deque()
            for texts in _texts(plan, file, self._with_a_chance(name, rows, waiting)):
                row = waiting.popleft()
                for ordinal, pack in enumerate(_packed(texts)):
                    size = sum(len(sentence.encode()) for sentence in pack)
                    piece = Piece(dataset, row.number, CUT.join(pack), size)
                    self.samples[row.split].add(self._key(name, row.id, ordinal), piece)

    def _kept(self, judged: Judged) -> Iterator[_Row]:
        names = ("episode_id", "split", "file", "source_position", "offset", "length", "crc", "payload")
        number = 0
        for table in judged.tables():
            table = table.select([name for name in names if name in table.schema.names])
            for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
                self._progress("sample", self._done, self._rows)
                self._done += batch.num_rows
                columns = [column.to_pylist() for column in batch.columns]
                if len(columns) < len(names):
                    columns.append([None] * batch.num_rows)
                for values in zip(*columns, strict=True):
                    number += 1
                    if values[1] is not None:
                        self.documents[-1] += values[1] == TRAIN
                        yield _Row(number, *values)

    def _with_a_chance(self, dataset: str, rows: Iterator[_Row], waiting: deque[_Row]) -> Iterator[_Row]:
        """Rows that may come into the sample as it is when they are asked for; they are noted in ``waiting``."""
        for row in rows:
            # Two packs that follow each other hold more than LONGEST_CHARACTERS, and none more than its stored bytes.
            packs = 2 * row.length // LONGEST_CHARACTERS + 1
            sample = self.samples[row.split]
            if any(sample.wants(self._key(dataset, row.id, ordinal)) for ordinal in range(packs)):
                waiting.append(row)
                yield row

    def _key(self, dataset: str, id_: str, ordinal: int) -> int:
        name = f"{self._seed}\0vocabulary\0{dataset}\0{id_}\0{ordinal}"
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")


def _texts(plan: DatasetPlan, file: int, rows: Iterator[_Row]) -> Iterator[list[str]]:
    """The texts of each row of a file."""
    if isinstance(plan, DocumentsPlan):
        places = (ByteRange(row.position, row.offset, row.length, row.crc, row.payload) for row in rows)
        for parts in plan.files[file].read(places):
            yield [part for part in parts if isinstance(part, str)]
        return
    assert isinstance(plan, EpisodesPlan)
    (source, features), paths = plan.files[file], _text_fields(plan)[file]
    for raw in source.read_some(ByteRange(row.position, row.offset, row.length, row.crc) for row in rows):
        yield _texts_of_episode(raw, features, paths)


def _text_fields(plan: DatasetPlan) -> list[list[str]]:
    """Per file of a dataset of episodes the step fields that are text."""
    assert isinstance(plan, EpisodesPlan)
    return [
        [field.path for field in directory.spec.fields if field.kind == "text"]
        for directory in plan.directories
        for _ in directory.directory.files
    ]


def _texts_of_episode(raw: RawEpisode, features: SourceFeatures, paths: Sequence[str]) -> list[str]:
    """The distinct texts of an episode's steps; none of a field that the build will reject."""
    texts: dict[Any, None] = {}
    for path in paths:
        source = features.step(path)
        try:
            texts |= dict.fromkeys([] if source is None else list(raw.column(source)))
        except RejectedError:
            continue
    return [text.decode(errors="ignore") for text in texts]
