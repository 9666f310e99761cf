"""A small SentencePiece model, trained once per session."""

import io

import pytest
import sentencepiece

from gatokit.tokenizers.text import TextTokenizer

WORDS = ["red", "blue", "green", "ball", "box", "key", "door", "go", "to", "the", "pick", "up", "open", "put", "next"]


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    sentences = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS if a < b]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=330,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def text(model_bytes: bytes) -> TextTokenizer:
    return TextTokenizer(model_bytes)
