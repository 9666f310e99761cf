"""Trains a SentencePiece model: on given sentences, or on a sample of a config's text."""

import io
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import sentencepiece

from gatokit.pipelines.config_loading import read_inputs
from gatokit.pipelines.find import local_path
from gatokit.pipelines.vocabulary_sample import CUT, LONGEST_CHARACTERS, Piece, Progress, draw, sentences
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.tokens import TEXT_IDS
from gatokit.storage.files import write_atomically
from gatokit.tokenizers.text import TextTokenizer

Normalization = Literal["identity", "nfkc"]
FEWEST_PIECES = 260
"""256 bytes, three signs and one character."""
SAMPLE_BYTES = 60_000_000
FEWEST_SAMPLE_BYTES = 1_000_000

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
_THREADS = 4
"""Of the training on a sample. The model's bytes depend on it, so it does not follow the machine."""
_MEASURED_BYTES = 1_000_000
_FAILED = 3
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Sampled:
    """What the sample holds of a dataset: documents of it (or episodes), of how many, and bytes of text."""

    name: str
    documents: int
    of: int
    bytes: int


@dataclass(frozen=True)
class TrainedVocabulary:
    """A model on disk, what it was trained on, and sentences that a person should read.

    ``characters_per_token`` is measured on a million bytes of the sample, ``held_out_characters_per_token`` on up to
    as many of held-out documents (None where there are none).
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


def train_vocabulary(
    texts: Iterable[str], path: str | Path, pieces: int = TEXT_IDS, *, normalization: Normalization = "nfkc"
) -> int:
    """Trains a unigram model with byte fallback, and writes it to ``path``; texts that are too long are cut.

    A corpus too small for ``pieces`` gives a smaller model, with a warning in the log. Returns the number of
    pieces; ConfigError where there is no text at all.
    """
    try:
        model = _train((sentence for text in texts for sentence in sentences(text)), pieces, normalization)
    except RuntimeError as error:
        raise ConfigError(f"{path}: no vocabulary can be trained on this text: {error}") from None
    trained = TextTokenizer(model).pieces
    if trained < pieces:
        logging.getLogger(__name__).warning("the text gives %d pieces instead of %d", trained, pieces)
    write_atomically(path, model)
    return trained


def make_vocabulary(
    config_path: str | Path,
    out: str | Path,
    *,
    pieces: int = TEXT_IDS,
    normalization: Normalization = "identity",
    sample_bytes: int = SAMPLE_BYTES,
    progress: Progress | None = None,
) -> TrainedVocabulary:
    """Trains a model on a sample of a config's text and writes it to ``out``.

    The same sources and arguments give the same sample, whatever the paths, and the same model on the same machine.
    ConfigError where the config has no text or the arguments make no sense; DataError as in a scan.
    """
    begin = time.monotonic()
    if not FEWEST_PIECES <= pieces <= TEXT_IDS:
        raise ConfigError(f"--pieces {pieces}: must be between {FEWEST_PIECES} and {TEXT_IDS}")
    if sample_bytes < FEWEST_SAMPLE_BYTES:
        raise ConfigError(f"--sample-bytes {sample_bytes}: must be at least {FEWEST_SAMPLE_BYTES}")
    config, base = read_inputs(config_path)
    _check_out(out)
    report = progress or (lambda stage, done, total: None)
    with tempfile.TemporaryDirectory(prefix="gatokit-") as work:
        drawn = draw(config, base, Path(work), sample_bytes, _MEASURED_BYTES, report)
    if not drawn.train:
        raise ConfigError(f"{config_path}: its datasets hold no text to train a vocabulary on; add one that does")
    report("train", 0, 1)
    model = _train_apart([piece.text for piece in drawn.train], pieces, normalization)
    report("train", 1, 1)
    text = TextTokenizer(model)
    write_atomically(out, model)
    warnings = []
    size = sum(piece.size for piece in drawn.train)
    if text.pieces < pieces:
        warnings.append(
            f"the text gives {text.pieces:,} pieces instead of {pieces:,}: {size:,} bytes are too few for more"
        )
    named = Path(local_path(config.vocabulary, base, "vocabulary"))
    if named.resolve() != Path(out).resolve():
        warnings.append(f"{config_path} names another vocabulary, {config.vocabulary}; builds use that one")
    return TrainedVocabulary(
        file=str(out),
        pieces=text.pieces,
        blake2b=text.digest,
        normalization=normalization,
        sentences=sum(piece.text.count(CUT) + 1 for piece in drawn.train),
        bytes=size,
        datasets=_counted(drawn.train, drawn.names, drawn.documents),
        characters_per_token=_characters_per_token(text, drawn.train) or 0.0,
        held_out_characters_per_token=_characters_per_token(text, drawn.held_out),
        warnings=tuple(warnings),
        seconds=time.monotonic() - begin,
    )


def _check_out(out: str | Path) -> None:
    """ConfigError where the model cannot be written, before minutes are spent on it."""
    path = Path(out)
    if "://" in str(out):
        raise ConfigError(f"--out {out}: no local path; write to a local or mounted directory")
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a directory; name a file in it")
    try:
        if path.exists():
            TextTokenizer.load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except ConfigError:
        raise ConfigError(f"--out {path}: is there and is no SentencePiece model; choose another file") from None
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written: {error.strerror}; choose another file") from None


def _counted(sample: list[Piece], names: list[str], documents: list[int]) -> tuple[Sampled, ...]:
    taken = Counter(dataset for dataset, _ in {(piece.dataset, piece.document) for piece in sample})
    sizes: Counter[int] = Counter()
    for piece in sample:
        sizes[piece.dataset] += piece.size
    return tuple(
        Sampled(name, taken[number], of, sizes[number])
        for number, (name, of) in enumerate(zip(names, documents, strict=True))
    )


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


def _train(lines: Iterable[str | bytes], pieces: int, normalization: Normalization, threads: int = 1) -> bytes:
    """The bytes of a model; RuntimeError where SentencePiece makes none of these sentences."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        max_sentence_length=4 * LONGEST_CHARACTERS,
        num_threads=threads,
        minloglevel=3,
        **_NORMALIZATIONS[normalization],
    )
    return model.getvalue()


def _train_apart(texts: Sequence[str], pieces: int, normalization: Normalization) -> bytes:
    """A model that is trained in a process of its own: nothing else runs beside it, no progress and no Ctrl-C."""
    command = [sys.executable, "-P", "-m", __name__, json.dumps([pieces, normalization])]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(texts, process.stdin)
            model = process.stdout.read()
            status = process.wait()
        finally:
            process.kill()
        said.seek(0)
        sentence = said.read().decode(errors="replace").strip()
    if not status:
        return model
    if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", sentence):
        raise ConfigError(f"--pieces {pieces}: the characters of the sample alone need {needed[1]}; give more")
    if status == _FAILED:
        raise DataError(f"no vocabulary can be trained on this text: {sentence}")
    lines = sentence.splitlines() or ["no memory left?"]
    raise DataError(f"the training ended with status {status}: {lines[-1]}. Lower --sample-bytes")


def _send(texts: Sequence[str], stream: IO[bytes]) -> None:
    try:
        with stream:
            for text in texts:
                stream.write(text.encode() + CUT.encode())
    except BrokenPipeError:
        pass  # the process has ended, and its status says why


def _received(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while data := stream.read(_READ_BYTES):
        *whole, rest = (rest + data).split(CUT.encode())
        yield from whole


def _main() -> int:
    import signal

    # The terminal sends Ctrl-C to both processes, and the other one ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pieces, normalization = json.loads(sys.argv[1])
    try:
        model = _train(_received(sys.stdin.buffer), pieces, normalization, _THREADS)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return _FAILED
    sys.stdout.buffer.write(model)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
