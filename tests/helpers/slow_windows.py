"""The windows of a build once more, token by token: Python integers, whole episodes, loops.

Nothing of the trainer is used: episodes come from ``gatokit.inspection``, documents from the shards' own records, and
what is drawn from the same hash written out again.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from gatokit.inspection import open_directory
from gatokit.schemas.record import Record
from gatokit.tokenizers.image_codec import decode

WORD = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15
DATASET, TASK, OWNER, START, PROMPTED, PROMPT_END, PROMPT_OWNER, PROMPT_START, HIDE = range(9)
DOCUMENTS = 1 << 20
TEXT, IMAGE, DISCRETE_ACTION, CONTINUOUS_ACTION = 1, 2, 6, 7


def mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def number(seed: int, held_out: bool, sample: int, attempt: int, lane: int) -> float:
    key = mix((mix(seed) + STEP * (int(held_out) + 1)) & WORD)
    stream = mix((key + STEP * (sample + 1)) & WORD)
    return (mix((stream + STEP * ((attempt << 40 | lane) + 1)) & WORD) >> 11) * 2.0**-53


@dataclass
class Token:
    """A token, whether a step begins with it, which step of which episode it belongs to, and of a patch its picture
    and place there."""

    id: int
    kind: int
    position: int
    begins: bool = False
    step: tuple[Any, ...] = ()
    patch: tuple[bytes, int, int, int] | None = None


@dataclass
class Owner:
    tokens: list[Token]
    steps: int = 0
    agent: str = ""


def tokens_of(sequence: Any, name: str) -> list[Token]:
    begins = set(sequence.step_begin.tolist())
    found, step = [], -1
    for at in range(len(sequence.tokens)):
        step += at in begins
        found.append(
            Token(int(sequence.tokens[at]), int(sequence.kinds[at]), int(sequence.positions[at]), at in begins)
        )
        found[-1].step = (name, step)
    for placed in sequence.images:
        for patch in range(placed.image.height // 16 * (placed.image.width // 16)):
            found[placed.token + patch].patch = (placed.image.data, placed.image.height, placed.image.width, patch)
    return found


@dataclass
class Row:
    tokens: list[Token] = field(default_factory=list)
    """One more than the window, where there is one."""
    prompt: int = 0
    next: Token | None = None
    """What follows the prompt in its own episode."""
    hides: bool = False
    dataset: int = 0
    attempt: int = 0
    redrawn: int = -1
    owners: tuple[Any, ...] = ()
    documents: list[int] = field(default_factory=list)
    """Of a packed row, which document each token belongs to."""


class SlowWindows:
    """What ``Windows`` should give; the arguments are fields of the run config."""

    def __init__(
        self,
        directory: Path,
        *,
        context: int,
        seed: int = 0,
        split: str = "train",
        align: str = "token",
        group_rows: int = 8,
        slots: int = 1 << 30,
        prompt_tokens: int = 512,
        prompt_share: float = 0.25,
        end_share: float = 0.5,
        hide: float = 0.0,
        training: bool = True,
        pack: bool = True,
    ) -> None:
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})
        opened = open_directory(directory)
        self.weights = [dataset.weight for dataset in opened.manifest.datasets]
        self.tasks: list[dict[str, list[Owner]]] = []
        self.records: list[list[tuple[Record, list[Token]]]] = []
        self.pairs: list[int] = []
        self.chunk_tokens = opened.manifest.tokenizer.chunk_tokens
        self.prompts: list[dict[str, list[Owner]]] = []
        """The episodes of training, by task."""
        for totals, config in zip(opened.manifest.datasets, opened.manifest.config["datasets"], strict=True):
            reader = opened.datasets[totals.name]
            files = [part.file for item in totals.splits for part in item.parts]
            tasks: dict[str, dict[str, list[tuple[Any, ...]]]] = {split: {}, "train": {}}
            records = []
            if totals.kind == "episodes":
                for of_split in sorted(tasks):
                    for row in reader.episodes(kept=True, split=of_split):
                        place = (row.agent, files.index(row.shard), row.first_record)
                        sequence = reader.episode(row).sequence
                        owner = Owner(tokens_of(sequence, row.episode_id), len(sequence.step_begin), row.agent)
                        tasks[of_split].setdefault(row.task, []).append((*place, owner))
            else:
                for part in (part for item in totals.splits for part in item.parts):
                    shard = ArrayRecordReader(str(directory / totals.directory / part.file))
                    data = shard.read_all()
                    data = data[: part.training] if split == "train" else data[part.training :]
                    for record in map(Record.from_bytes, data):
                        records.append((record, tokens_of(record.sequence, record.owner)))
            for found, of in ((self.tasks, tasks[split]), (self.prompts, tasks["train"])):
                found.append({task: [item[-1] for item in sorted(of[task])] for task in sorted(of)})
            self.records.append(records)
            self.pairs.append(config.get("pairs_per_sequence", 0))

    def draw(self, sample: int, attempt: int, lane: int) -> float:
        return number(self.seed, self.split != "train", sample, attempt, lane)

    def row(self, sample: int, attempt: int) -> Row:
        def pick(lane: int, count: int) -> int:
            return int(self.draw(sample, attempt, lane) * count)

        total = sum(weight / sum(self.weights) for weight in self.weights)
        place = self.draw(sample, attempt, DATASET)
        if attempt == 0:
            phase = int(self.draw(0, 0, DATASET) * 2.0**53) << 11
            place = ((phase + STEP * sample & WORD) >> 11) * 2.0**-53
        place, dataset = place * total, 0
        while place >= self.weights[dataset] / sum(self.weights):
            place -= self.weights[dataset] / sum(self.weights)
            dataset += 1
        row = Row(dataset=dataset, attempt=attempt)
        if self.tasks[dataset]:
            self._episode(row, sample, attempt, pick)
            return row
        draws = 4 if not self.pairs[dataset] else 1 + self.pairs[dataset]
        while True:
            number, room = len(set(row.documents)) + 1, self.context - len(row.tokens)
            if number > 1 and (not self.pack or room < 16):
                return row

            def pick_for(lane: int, count: int, number: int = number) -> int:
                return pick(DOCUMENTS + (number - 1) * draws + lane, count)

            if self.pairs[dataset]:
                piece = self._several(row, self.records[dataset], room, pick_for)
            else:
                records = self.records[dataset]
                at = pick(OWNER, len(records)) if number == 1 else pick_for(0, len(records))
                piece = self._piece(records, at, room, pick_for)
            row.tokens += piece
            row.documents += [number] * len(piece)
            if not piece:
                return row

    def _piece(self, records: list[tuple[Record, list[Token]]], at: int, room: int, pick: Any) -> list[Token]:
        """The tokens of a document that fit into a room, and one more."""
        record = records[at][0]
        first, last = at - record.chunk, at - record.chunk + record.chunks
        document = [token for _, tokens in records[first:last] for token in tokens]
        size, early = len(document), room - 1 if self.pack else 0
        if record.chunks > 1 and self.chunk_tokens > self.context:
            start = pick(1, record.chunks * self.chunk_tokens + early) - early
            if start < 0:
                return document[: start + room + 1]
            skip = pick(2, self.chunk_tokens)
            start = sum(len(tokens) for _, tokens in records[first:at]) + skip
            if skip < len(records[at][1]) and size - start >= (2 if self.pack else room):
                return document[start : start + room + 1]
        if not self.pack:
            start = pick(3, max(0, size - room) + 1)
        else:
            start = pick(3, size + room - 2) - early if size > room + 1 else 0
        return document[max(0, start) : start + room + 1]

    def _several(self, row: Row, records: list[tuple[Record, list[Token]]], room: int, pick: Any) -> list[Token]:
        """The tokens of distinct documents; none if they do not fit behind others."""
        documents, taken = [], set()
        owners: tuple[Any, ...] = ()
        while len(documents) < self.pairs[row.dataset] and len(taken) < len(records):
            left = [at for at in range(len(records)) if at not in taken]
            chosen = left[pick(1 + len(documents), len(left))]
            record = records[chosen][0]
            of = range(chosen - record.chunk, chosen - record.chunk + record.chunks)
            taken |= set(of)
            documents.append([token for at in of for token in records[at][1]])
            owners += (record.owner,)
        joined = [token for document in documents for token in document]
        surplus = max(0, len(joined) - room - 1)
        if surplus and row.tokens:
            return []
        row.owners += owners
        start = pick(0, surplus + 1)
        return joined[start : start + room + 1]

    def _episode(self, row: Row, sample: int, attempt: int, pick: Any) -> None:
        tasks = self.tasks[row.dataset]
        task = sorted(tasks)[pick(TASK, len(tasks))]
        episodes, shown_ones = tasks[task], self.prompts[row.dataset].get(task, [])
        chosen = pick(OWNER, len(episodes))
        episode = episodes[chosen]
        row.hides = self.draw(sample, attempt, HIDE) < self.hide
        room, planned = self.context, self.context
        others = [other for other in shown_ones if other.agent == episode.agent]
        if self.split == "train":
            others = [other for at, other in enumerate(shown_ones) if other.agent == episode.agent and at != chosen]
        if others and self.draw(sample, attempt, PROMPTED) < self.prompt_share:
            shown = others[pick(PROMPT_OWNER, len(others))]
            count = min(self.prompt_tokens, self.context // 2, len(shown.tokens))
            at_end = self.draw(sample, attempt, PROMPT_END) < self.end_share
            if at_end:
                begin = len(shown.tokens) - count
                if self.align == "step":
                    later = [at for at in range(begin, len(shown.tokens)) if shown.tokens[at].begins]
                    begin = later[0] if later else begin
            else:
                begin = self._start(PROMPT_START, shown, count, pick)
            end = min(begin + count, len(shown.tokens))
            if self.align == "step" and end < len(shown.tokens):
                whole = [at for at in range(begin + 1, end + 1) if shown.tokens[at].begins]
                end = whole[-1] if whole else end
            row.tokens = shown.tokens[begin:end]
            row.next = shown.tokens[end] if end < len(shown.tokens) else None
            row.prompt = end - begin
            room, planned = self.context - row.prompt, self.context - count
            row.owners = (shown.agent, episode.agent)
        begin = self._start(START, episode, planned, pick)
        row.tokens = row.tokens + episode.tokens[begin : begin + room + 1]

    def _start(self, lane: int, owner: Owner, window: int, pick: Any) -> int:
        size = len(owner.tokens)
        extra = -(-size // owner.steps) - 1 if self.align == "step" else 0
        start = min(pick(lane, max(0, size - window) + extra + 1), size - 1)
        while self.align == "step" and not owner.tokens[start].begins:
            start -= 1
        return start

    def rows(self, samples: range) -> list[Row]:
        """The rows of samples, whole groups of them, with those drawn again whose patches are too many."""
        found = []
        for first in range(samples.start, samples.stop, self.group_rows):
            group = [self.row(sample, 0) for sample in range(first, first + self.group_rows)]
            while sum(map(self._patches, group)) > self.slots:
                last = max(at for at, row in enumerate(group) if self._patches(row))
                old = group[last]
                group[last] = self.row(first + last, old.attempt + 1)
                group[last].redrawn = old.dataset if old.redrawn < 0 else old.redrawn
            found += group
        return found

    def _patches(self, row: Row) -> int:
        return sum(token.kind == IMAGE for token in row.tokens[: self.context])

    def batch(self, samples: range) -> dict[str, Any]:
        """Every field of the batch, that of patches as one dict a group, by token."""
        rows = self.rows(samples)
        shape = len(rows), self.context
        names = {"tokens": "u2", "kinds": "u1", "positions": "u2", "hidden": "?", "private": "u2"}
        names |= {"targets": "u2", "target_kinds": "u1", "first_action": "?"}
        found: dict[str, Any] = {name: np.zeros(shape, dtype) for name, dtype in names.items()}
        found["positions"][:] = 65535
        found["dataset"] = np.array([row.dataset for row in rows], np.int32)
        found["redrawn"] = np.array([row.redrawn for row in rows], np.int32)
        found["patches"] = [{} for _ in range(len(rows) // self.group_rows)]
        for at, row in enumerate(rows):
            self._fill({name: found[name][at] for name in names}, row)
            group, in_group = divmod(at, self.group_rows)
            for column, token in enumerate(row.tokens[: self.context]):
                if token.patch is not None:
                    where = in_group * self.context + column
                    found["patches"][group][where] = self._patch(token.patch, samples[at], row.attempt, column)
        return found

    def _fill(self, into: dict[str, np.ndarray], row: Row) -> None:
        steps: list[Any] = []
        """The step of every action so far, in order; the prompt's apart, also where it is the same episode."""
        for column, token in enumerate(row.tokens):
            in_prompt = column < row.prompt
            is_action = token.kind in (DISCRETE_ACTION, CONTINUOUS_ACTION)
            step = (in_prompt, *token.step)
            if is_action and step not in steps:
                steps.append(step)
            if column < self.context:
                into["tokens"][column] = 0 if token.kind == IMAGE else token.id
                into["kinds"][column], into["positions"][column] = token.kind, token.position
                if is_action and row.hides:
                    behind = row.tokens[column + 1] if column + 1 < len(row.tokens) else None
                    if column + 1 == row.prompt:
                        behind = row.next
                    if behind is None or behind.step != token.step or behind.kind not in (6, 7):
                        into["hidden"][column], into["tokens"][column] = True, 0
                    else:
                        into["private"][column] = 1 + steps.index(step)
            predicted = column > 0 and (is_action or token.kind == TEXT) and column != row.prompt
            if self.pack and row.documents:
                predicted = predicted and row.documents[column] == row.documents[column - 1]
                if column < self.context:
                    into["private"][column] = row.documents[column]
            if predicted:
                into["targets"][column - 1], into["target_kinds"][column - 1] = token.id, token.kind
                into["first_action"][column - 1] = is_action and steps.index(step) == 0

    def _patch(self, patch: tuple[bytes, int, int, int], sample: int, attempt: int, column: int) -> Any:
        """Pixels, row and column of a patch in the tables of positions."""
        data, height, width, index = patch
        y, x = divmod(index, width // 16)
        places = []
        for axis, (at, count) in enumerate([(y, height // 16), (x, width // 16)]):
            low, high = (int(np.rint(128 * end / count)) for end in (at, at + 1))
            u = self.draw(sample, attempt, (1 << 30) + 2 * column + axis)
            middle = min(127, int(np.rint((low + high) / 2)))
            places.append(low + int(u * max(high - low, 1)) if self.training else middle)
        return decode(data)[16 * y : 16 * y + 16, 16 * x : 16 * x + 16], *places
