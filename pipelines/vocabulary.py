"""Trains a SentencePiece model."""

import io
import logging
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from gatokit.pipelines.storage import write_atomically
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.tokens import TEXT_IDS

_LONGEST_SENTENCE_BYTES = 1 << 16


def train_vocabulary(sentences: Iterable[str], path: str | Path, pieces: int = TEXT_IDS) -> int:
    """Trains a unigram model with byte fallback and NFKC normalisation, and writes it to ``path``.

    A corpus too small for ``pieces`` gives a smaller model, with a warning in the log. Returns the number of
    pieces; ConfigError where there is no text at all.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=pieces,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc",
            max_sentence_length=_LONGEST_SENTENCE_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(f"{path}: no vocabulary can be trained on this text: {error}") from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    if trained < pieces:
        logging.getLogger(__name__).warning("the text gives %d pieces instead of %d", trained, pieces)
    write_atomically(path, model.getvalue())
    return int(trained)
