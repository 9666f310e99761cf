import base64
import functools
import hashlib
import io
import pickle
from typing import Any
from unittest import mock

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from gatokit.schemas.errors import ConfigError
from gatokit.tokenizers import text as text_module
from gatokit.tokenizers.text import TextTokenizer

TEXTS = ["go to the red ball", "", "  spaces  kept?  ", "naïve café", "日本", "😀", "a\nb\tc"]


def test_ids_are_sentencepiece_s_own(text, model_bytes):
    peer = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    for sentence in TEXTS:
        ids = text.encode(sentence)
        assert ids.dtype == np.uint16
        assert ids.tolist() == peer.encode(sentence)
        assert text.decode(ids) == peer.decode(peer.encode(sentence))
    assert text.pieces == peer.vocab_size()
    assert text.digest == hashlib.blake2b(model_bytes, digest_size=32).hexdigest()
    assert text.model == model_bytes
    assert text.end_id == peer.eos_id()


def test_a_batch_equals_its_texts(text):
    batch = text.encode_batch(TEXTS)
    assert [ids.dtype for ids in batch] == [np.uint16] * len(TEXTS)
    assert [ids.tolist() for ids in batch] == [text.encode(sentence).tolist() for sentence in TEXTS]
    assert text.encode_batch([]) == []


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1).map(lambda word: f"go {word} up"))
def test_words_come_back(text, sentence):
    assert text.decode(text.encode(sentence)) == sentence


def test_lone_surrogates_are_refused(text):
    for encode in (text.encode, lambda sentence: text.encode_batch(["ok", sentence])):
        with pytest.raises(UnicodeEncodeError):
            encode("red \ud800 ball")


def test_an_id_beyond_the_pieces_is_refused(text):
    with pytest.raises(ValueError, match=f"text id {text.pieces} is outside"):
        text.decode(np.array([1, text.pieces], np.uint16))


@pytest.mark.parametrize("model", [b"", b"not a model", b"\x00" * 100])
def test_bytes_that_are_no_model_are_named(model):
    with pytest.raises(ConfigError, match=r"vocab/text\.model is no SentencePiece model"):
        TextTokenizer(model, source="vocab/text.model")


def test_a_file_that_is_no_model_or_absent_is_named(tmp_path):
    path = tmp_path / "text.model"
    with pytest.raises(ConfigError, match=f"{path} cannot be read: No such file"):
        TextTokenizer.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=f"{path} is no SentencePiece model"):
        TextTokenizer.load(path)


def test_a_vocabulary_above_32000_pieces_is_refused(text, model_bytes):
    # A model's bytes are a protobuf message, so appended pieces (field 1, of which field 1 is the string) are its own.
    def piece(number: int) -> bytes:
        name = b"<%05d>" % number
        return bytes([0x0A, len(name) + 2, 0x0A, len(name)]) + name

    full = model_bytes + b"".join(piece(number) for number in range(32_000 - text.pieces))
    assert TextTokenizer(full).pieces == 32_000
    with pytest.raises(ConfigError, match="the vocabulary has 32001 pieces and text ids end at 32000"):
        TextTokenizer(full + piece(99_999))


def test_it_travels_as_its_path(tmp_path, text, model_bytes):
    path = tmp_path / "text.model"
    path.write_bytes(model_bytes)
    pickled = pickle.dumps(TextTokenizer.load(path))
    assert len(pickled) < 500
    assert pickle.loads(pickled).encode("red ball").tolist() == text.encode("red ball").tolist()
    assert pickle.loads(pickle.dumps(text)).digest == text.digest

    path.write_bytes(model_bytes + b"\x0a\x05\x0a\x01Z\x18\x01")
    with pytest.raises(ConfigError, match="changed"):
        pickle.loads(pickled)


# --- long texts --------------------------------------------------------------------------------------------------

IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
EXACT = IDENTITY | {"add_dummy_prefix": False, "allow_whitespace_only_pieces": True}
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "this project's": (EXACT, True),
    "nfkc": ({}, True),
    "nfkc, case folded": ({"normalization_rule_name": "nmt_nfkc_cf"}, True),
    "without a first space": ({"add_dummy_prefix": False, "remove_extra_whitespaces": False}, True),
    "pairs of bytes": ({"model_type": "bpe"}, True),
    "characters": ({"model_type": "char"}, True),
    "no bytes": ({"byte_fallback": False}, True),
    "a first space that stays": (IDENTITY, False),
    "spaces behind words": ({"treat_whitespace_as_suffix": True}, False),
    "pieces of several words": ({"split_by_whitespace": False}, False),
    "a symbol of two words": ({"user_defined_symbols": ["red ball"]}, False),
    **{
        f"as they are, {name}": (EXACT | options, divides)
        for name, options, divides in [
            ("pairs of bytes", {"model_type": "bpe"}, True),
            ("characters", {"model_type": "char"}, True),
            ("words", {"model_type": "word"}, False),
            ("no bytes", {"byte_fallback": False}, True),
            ("spaces behind words", {"treat_whitespace_as_suffix": True}, True),
            ("several words", {"split_by_whitespace": False}, True),
            ("a symbol", {"user_defined_symbols": ["red ball", "日本日"]}, True),
        ]
    },
}
"""Options of a model, and whether a text with spaces is divided."""
WORD = st.sampled_from(
    ["red", "ball", "blue", "the", "box", "1", "naïve", "日本", "ﬁ", "e\u0301", "😀", "\u3000", ".", "\n"]
)
LONG_TEXT = st.lists(
    st.tuples(WORD, st.sampled_from(["", " ", " ", " ", "  ", "\n", "\t", "\u00a0"])), max_size=60
).map(lambda words: "".join(word + space for word, space in words))


ANY_TEXT = st.text(
    st.sampled_from("redblu gon日本語あ한é\u0301😀\u2581\u3000\n\0=/+7A") | st.characters(codec="utf-8"), max_size=80
)
"""Text of any script, mostly without spaces."""


@functools.cache
def model(name: str) -> TextTokenizer:
    words = ["red", "blue", "green", "ball", "box", "key", "go", "to", "the", "café", "x.\ny"]
    sink = io.BytesIO()
    options = {"model_type": "unigram", "byte_fallback": True, "hard_vocab_limit": False, "vocab_size": 340}
    options |= MODELS[name][0]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{a} {b} {c}" for a in words for b in words for c in words if a < b]),
        model_writer=sink,
        minloglevel=2,
        num_threads=1,
        **(options | ({"hard_vocab_limit": True, "vocab_size": 300} if options["model_type"] == "bpe" else {})),
    )
    return TextTokenizer(sink.getvalue())


@pytest.mark.parametrize("name", MODELS)
@given(sentence=LONG_TEXT | ANY_TEXT)
def test_a_text_in_pieces_has_the_ids_of_the_whole(name, sentence):
    tokenizer = model(name)
    whole = tokenizer._processor.encode(sentence)
    with mock.patch.object(text_module, "_LONG", 4):
        assert tokenizer.encode(sentence).tolist() == whole
        assert [ids.tolist() for ids in tokenizer.encode_batch([sentence, "red"])] == [
            whole,
            tokenizer.encode("red").tolist(),
        ]


@pytest.mark.parametrize("name", MODELS)
def test_only_texts_that_may_be_divided_are(name):
    tokenizer, sentence, calls = model(name), "red ball, the blue box 日本 " * 20_000, []
    encode = tokenizer._ids
    with mock.patch.object(tokenizer, "_ids", lambda data: calls.append(len(data)) or encode(data)):
        ids = tokenizer.encode(sentence)
    assert ids.tolist() == tokenizer._processor.encode(sentence)
    assert (len(calls) > 5) == MODELS[name][1]
    assert sum(calls) == len(sentence.encode())
    if MODELS[name][1]:
        assert max(calls) < 80_000


NO_SPACES = {
    "Chinese": "".join(chr(0x4E00 + 7919 * number % 20_000) for number in range(300_000)),
    "base64": base64.b64encode(np.random.default_rng(0).bytes(225_000)).decode(),
    "Thai": "ภาษาไทยไม่มีช่องว่าง" * 15_000,
    "lines": "red\nball\n" * 40_000,
}


@pytest.mark.parametrize("script", NO_SPACES)
def test_a_long_text_without_spaces_is_divided(script):
    tokenizer, sentence, calls = model("this project's"), NO_SPACES[script], []
    encode = tokenizer._ids
    with mock.patch.object(tokenizer, "_ids", lambda data: calls.append(data.decode()) or encode(data)):
        ids = tokenizer.encode(sentence)
    assert ids.tolist() == tokenizer._processor.encode(sentence)
    assert "".join(calls) == sentence
    assert max(map(len, calls)) < 66_000


def test_a_part_that_the_pieces_join_everywhere_stays_whole():
    tokenizer, calls = model("this project's"), []
    assert any("ll" in piece for piece in map(tokenizer.piece, range(tokenizer.pieces)))
    encode = tokenizer._ids
    with mock.patch.object(tokenizer, "_ids", lambda data: calls.append(len(data)) or encode(data)):
        tokenizer.encode("l" * 200_000 + "日" + "l" * 10)
    assert calls == [200_000, 13]
