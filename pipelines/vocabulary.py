"""Trains a SentencePiece model on a sample of a config's text.

The sample is taken from what a build of the config keeps for training. Of all documents, and the distinct texts of each
episode, it takes those whose ids have the lowest hashes, as many as fit. So each dataset has its share by bytes, and
neither the order of files nor where they lie matters. A document of more than ``LONGEST_CHARACTERS`` is cut into
pieces, each with a hash of its own.
"""

import hashlib
import heapq
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, tee
from pathlib import Path
from typing import Any, Literal, NamedTuple

import sentencepiece

from gatokit.pipelines.documents.reader import DocumentsPlan
from gatokit.pipelines.episodes.plan import EpisodesPlan
from gatokit.pipelines.episodes.tokenize import texts_of
from gatokit.pipelines.formats.records import ByteRange
from gatokit.pipelines.inputs import local_path, read_inputs
from gatokit.pipelines.planning import DatasetPlan, filter_dataset, plan_datasets, scan_units, task_rows, text_in
from gatokit.pipelines.scan_cache import Segment
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import HELD_OUT, TRAIN
from gatokit.schemas.progress import Progress, no_progress
from gatokit.schemas.tokens import TEXT_IDS
from gatokit.storage.files import write_atomically, write_rows
from gatokit.storage.ownership import check_output
from gatokit.tokenizers.document import END_MARKERS
from gatokit.tokenizers.text import SPACE, TextTokenizer

Normalization = Literal["identity", "nfkc"]

FEWEST_PIECES = 260
"""256 bytes, three signs and one character."""
SAMPLE_BYTES = 60_000_000
FEWEST_SAMPLE_BYTES = 1_000_000
LONGEST_CHARACTERS = 1 << 14
"""The longest sentence for SentencePiece, which drops longer ones than it is told; at most four times as many bytes."""
CUT = "\0"
"""Stands between the sentences of a sampled text."""

_NORMALIZATIONS: dict[Normalization, dict[str, Any]] = {
    # Without a space put in front of every text, the texts of a document's records join to the document's text.
    "identity": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
    },
    "nfkc": {"normalization_rule_name": "nmt_nfkc"},
}
_FEW_SPACES = 0.001
"""The share of a sample's bytes below which spaces may be too rare for a piece."""
_THREADS = 4
"""Threads of the training on a sample. The model's bytes depend on it, so it does not follow the machine."""
_MEASURED_BYTES = 1_000_000
_FAILED = 3
# SentencePiece drops a sentence that holds its own sign for rare characters, takes NUL for the end of one, and writes
# its sign for a space where the text has a space: no sentence can hold any of the three. Markers become end pieces.
_SIGNS = re.compile("[\0\u2581\u2585]+|" + END_MARKERS.pattern)
_BATCH_ROWS = 8192


@dataclass(frozen=True)
class Sampled:
    """What the sample holds of a dataset: documents (or episodes), of how many, and bytes of text."""

    name: str
    documents: int
    of: int
    bytes: int


@dataclass(frozen=True)
class TrainedVocabulary:
    """A model on disk, what it was trained on, and sentences for the user.

    ``characters_per_token`` is measured on a million bytes of the sample, ``held_out_characters_per_token`` on up to
    as many of held-out documents (None if there are none).
    """

    file: str
    pieces: int
    blake2b: str
    normalization: Normalization
    sentences: int
    bytes: int
    datasets: tuple[Sampled, ...]
    characters_per_token: float
    held_out_characters_per_token: float | None
    warnings: tuple[str, ...]
    seconds: float


def make_vocabulary(
    config_path: str | Path,
    out: str | Path,
    *,
    pieces: int = TEXT_IDS,
    normalization: Normalization = "identity",
    sample_bytes: int = SAMPLE_BYTES,
    progress: Progress = no_progress,
) -> TrainedVocabulary | None:
    """Trains a model on a sample of a config's text and writes it to ``out``. None if nothing of the data is text.

    The same sources and arguments give the same sample, whatever the paths, and the same model on the same machine.
    Raises ConfigError if all texts are empty or the arguments make no sense, DataError as a scan does.
    """
    begin = time.monotonic()
    if not FEWEST_PIECES <= pieces <= TEXT_IDS:
        raise ConfigError(f"--pieces {pieces}: must be between {FEWEST_PIECES} and {TEXT_IDS}")
    if sample_bytes < FEWEST_SAMPLE_BYTES:
        raise ConfigError(f"--sample-bytes {sample_bytes}: must be at least {FEWEST_SAMPLE_BYTES}")
    config, base = read_inputs(config_path)
    _check_out(out)
    with tempfile.TemporaryDirectory(prefix="gatokit-") as work:
        drawn = draw(config, base, Path(work), sample_bytes, _MEASURED_BYTES, progress)
    if not drawn.names:
        return None
    if not drawn.train:
        raise ConfigError(f"{config_path}: its datasets hold no text to train a vocabulary on; add one that does")
    progress("train", 0, 1)
    model = _train_in_child([piece.text for piece in drawn.train], pieces, normalization)
    progress("train", 1, 1)
    text = TextTokenizer(model)
    write_atomically(out, model)
    warnings = []
    size = sum(piece.size for piece in drawn.train)
    if text.pieces < pieces:
        warnings.append(
            f"the text gives {text.pieces:,} pieces instead of {pieces:,}: {size:,} bytes are too few for more"
        )
    if config.vocabulary is None:
        warnings.append(f"{config_path} names no vocabulary; write `vocabulary: {out}` into it")
    elif Path(local_path(config.vocabulary, base, "vocabulary")).resolve() != Path(out).resolve():
        warnings.append(f"{config_path} names another vocabulary, {config.vocabulary}; builds use that one")
    sizes: Counter[int] = Counter()
    for piece in drawn.train:
        sizes[piece.dataset] += piece.size
    sampled = Counter(dataset for dataset, _ in {(piece.dataset, piece.document) for piece in drawn.train})
    return TrainedVocabulary(
        file=str(out),
        pieces=text.pieces,
        blake2b=text.digest,
        normalization=normalization,
        sentences=sum(piece.text.count(CUT) + 1 for piece in drawn.train),
        bytes=size,
        datasets=tuple(
            Sampled(name, sampled[number], drawn.documents[number], sizes[number])
            for number, name in enumerate(drawn.names)
        ),
        characters_per_token=_characters_per_token(text, drawn.train) or 0.0,
        held_out_characters_per_token=_characters_per_token(text, drawn.held_out),
        warnings=tuple(warnings),
        seconds=time.monotonic() - begin,
    )


def _check_out(out: str | Path) -> None:
    """Raises ConfigError if the model cannot be written, before minutes are spent on it."""
    path = Path(out)
    if "://" in str(out):
        raise ConfigError(f"--out {out}: no local path; write to a local or mounted directory")
    if path.is_dir() and not path.is_symlink():
        raise ConfigError(f"--out {path}: is a directory; name a file in it")
    check_output(path)
    try:
        if path.exists():
            TextTokenizer.load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except ConfigError:
        raise ConfigError(f"--out {path}: is there and is no SentencePiece model; choose another file") from None
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written: {error.strerror}; choose another file") from None


# --- the sample ------------------------------------------------------------------------------------------------


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
        """Takes a piece; if there is no room, those with the highest keys are dropped."""
        if self.wants(key):
            heapq.heappush(self._heap, (-key, piece))
            self._left -= piece.size
            while self._left < 0:
                negative_key, dropped = heapq.heappop(self._heap)
                self._lowest_dropped = -negative_key
                self._left += dropped.size

    def pieces(self) -> list[Piece]:
        """The pieces in the sample, by key."""
        return [piece for _, piece in sorted(self._heap, reverse=True)]


class Drawn(NamedTuple):
    """A sample of the training part and one of what is held out; ``names`` are those of the datasets that have text,
    ``documents`` how many training documents each has."""

    train: list[Piece]
    held_out: list[Piece]
    names: list[str]
    documents: list[int]


class _Row(NamedTuple):
    number: int
    id: str
    split: str
    file: int
    byte_range: ByteRange


def draw(
    config: BuildConfig, base: Path, work: Path, most_bytes: int, held_out_bytes: int, progress: Progress
) -> Drawn:
    """Reads the config's datasets that have text; paths start at ``base``, and ``work`` takes the scanned rows.

    Errors are those of a scan of the same config.
    """
    plans = [plan for plan in plan_datasets(config, base) if text_in(plan) is not None]
    units = [(number, unit) for number, plan in enumerate(plans) for unit in scan_units(plan, config.max_episode_bytes)]
    scanned: list[list[Segment]] = [[] for _ in plans]
    total = read = 0
    for done, (dataset, unit) in enumerate(units):
        progress("scan", done, len(units))
        table = unit.scan()
        total += table.num_rows
        scanned[dataset].append(Segment(work / f"{dataset}-{unit.fingerprint}.arrow"))
        write_rows(scanned[dataset][-1].path, table)
    progress("scan", len(units), len(units))
    samples = {TRAIN: Sample(most_bytes), HELD_OUT: Sample(held_out_bytes)}
    documents = [0] * len(plans)

    def key(dataset: int, row: _Row, pack: int) -> int:
        name = f"{config.seed}\0vocabulary\0{plans[dataset].config.name}\0{row.id}\0{pack}"
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")

    def rows(dataset: int) -> Iterator[_Row]:
        """The rows of a dataset that may still come into a sample at the time they are asked for."""
        nonlocal read
        plan, number = plans[dataset], 0
        names = ["episode_id", "split", "file", "source_position", "offset", "length", "crc"]
        names += ["payload"] if isinstance(plan, DocumentsPlan) else []
        for table in task_rows(plan, filter_dataset(plan, scanned[dataset], config, None)):
            for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
                progress("sample", read, total)
                read += batch.num_rows
                columns = (batch.column(name).to_pylist() for name in names)
                for id_, split, file, *stored in zip(*columns, strict=True):
                    number += 1
                    if split is None:
                        continue
                    documents[dataset] += split == TRAIN
                    row = _Row(number, id_, split, file, ByteRange(*stored))
                    # Two packs that follow each other hold more than LONGEST_CHARACTERS, and none more than its bytes.
                    packs = range(2 * row.byte_range.length // LONGEST_CHARACTERS + 1)
                    if any(samples[split].wants(key(dataset, row, pack)) for pack in packs):
                        yield row

    for dataset, plan in enumerate(plans):
        for file, of_file in groupby(rows(dataset), key=lambda row: row.file):
            chosen, asked = tee(of_file)
            texts_of_rows = _texts(plan, file, (row.byte_range for row in asked))
            for texts, row in zip(texts_of_rows, chosen, strict=True):
                for ordinal, pack in enumerate(_packed(texts)):
                    size = sum(len(sentence.encode()) for sentence in pack)
                    piece = Piece(dataset, row.number, CUT.join(pack), size)
                    samples[row.split].add(key(dataset, row, ordinal), piece)
    progress("sample", total, total)
    names = [plan.config.name for plan in plans]
    return Drawn(samples[TRAIN].pieces(), samples[HELD_OUT].pieces(), names, documents)


def _texts(plan: DatasetPlan, file: int, byte_ranges: Iterator[ByteRange]) -> Iterator[list[str]]:
    """The texts of each document of a file, or the distinct texts of each episode's steps."""
    if isinstance(plan, DocumentsPlan):
        for parts in plan.files[file].read(byte_ranges):
            yield [part for part in parts if isinstance(part, str)]
        return
    assert isinstance(plan, EpisodesPlan)
    spec = plan.directories[plan.directory_of[file]].spec
    for episode in plan.files[file].read_some(byte_ranges):
        yield list(texts_of(episode, plan.features[file], spec))


# --- sentences -------------------------------------------------------------------------------------------------


def sentences(text: str) -> Iterator[str]:
    """What SentencePiece gets of a text: everything but its own signs, in sentences that it does not drop.

    It removes line ends from the end of a sentence, so cuts are made before them, not behind.
    """
    for part in _SIGNS.split(text):
        begin = 0
        while len(part) - begin > LONGEST_CHARACTERS:
            end = _cut_between(part, begin + LONGEST_CHARACTERS // 2, begin + LONGEST_CHARACTERS)
            yield part[begin:end]
            begin = end
        if begin < len(part):
            yield part[begin:]


def _cut_between(text: str, low: int, high: int) -> int:
    """Where to cut: before the last line ends, else before the last space, else at ``high``."""
    cut = text.rfind("\n", low, high)
    while cut > low and text[cut - 1] in "\r\n":
        cut -= 1
    if cut <= low:
        cut = text.rfind(" ", low, high)
    return cut if cut > low else high


def _packed(texts: Iterable[str]) -> Iterator[list[str]]:
    """The sentences of a document in packs, each together up to ``LONGEST_CHARACTERS``."""
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


# --- the training ----------------------------------------------------------------------------------------------


def _characters_per_token(text: TextTokenizer, sample: list[Piece]) -> float | None:
    characters = tokens = size = 0
    for piece in sample:
        if size > _MEASURED_BYTES:
            break
        parts = piece.text.split(CUT)
        size += piece.size
        characters += sum(map(len, parts))
        tokens += sum(map(len, text.encode_batch(parts)))
    return characters / tokens if tokens else None


def train_model(lines: Iterable[str | bytes], pieces: int, normalization: Normalization, threads: int = 1) -> bytes:
    """The bytes of a unigram model with byte fallback; fewer pieces than asked for if the text is too small.

    Raises RuntimeError if SentencePiece cannot make a model of these sentences.
    """
    encoded = [line.encode() if isinstance(line, str) else line for line in lines]
    spaces, size = sum(line.count(b" ") for line in encoded), sum(map(len, encoded))
    # Of the rarest characters, 0.05 % of the text together, SentencePiece makes no pieces; a space gets one anyway.
    required: dict[str, Any] = {"required_chars": SPACE} if spaces < _FEW_SPACES * size else {}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(encoded),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        max_sentence_length=4 * LONGEST_CHARACTERS,
        num_threads=threads,
        minloglevel=3,
        **required,
        **_NORMALIZATIONS[normalization],
    )
    return model.getvalue()


def _train_in_child(texts: Sequence[str], pieces: int, normalization: Normalization) -> bytes:
    """A model that a child process trains, because SentencePiece prints, ignores Ctrl-C and may end its process."""
    command = [sys.executable, "-P", "-m", __name__, json.dumps([pieces, normalization])]
    child = subprocess.run(command, input=CUT.join(texts).encode(), capture_output=True)
    if not child.returncode:
        return child.stdout
    sentence = child.stderr.decode(errors="replace").strip()
    if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", sentence):
        raise ConfigError(f"--pieces {pieces}: the characters of the sample alone need {needed[1]}; give more")
    if child.returncode == _FAILED:
        raise DataError(f"no vocabulary can be trained on this text: {sentence}")
    lines = sentence.splitlines() or ["no memory left?"]
    raise DataError(f"the training ended with status {child.returncode}: {lines[-1]}. Lower --sample-bytes")


def _main() -> None:
    # The terminal sends Ctrl-C to both processes, and the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pieces, normalization = json.loads(sys.argv[1])
    try:
        model = train_model(sys.stdin.buffer.read().split(CUT.encode()), pieces, normalization, _THREADS)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        sys.exit(_FAILED)
    sys.stdout.buffer.write(model)


if __name__ == "__main__":
    _main()
