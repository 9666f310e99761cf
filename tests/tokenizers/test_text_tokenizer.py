import base64
import functools
import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.tokenizers import text as text_module
from gatokit.tokenizers.document import DocumentTokenizer
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
RULES = {
    "red": "日本",
    "e ": "",
    "語日": "e",
    "日": "gr ",
    "あ": "",
    "b": " ",
    "ba": "l",
    "ed": "本x",
    "本e\u0301b": "7",
}
"""Rules of normalization: what is replaced, and by what."""
RULES_OF_SPACE = {" b": "x"}
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "this project's": (EXACT, True),
    "nfkc": ({}, True),
    "nfkc, case folded": ({"normalization_rule_name": "nmt_nfkc_cf"}, True),
    "without a first space": ({"add_dummy_prefix": False, "remove_extra_whitespaces": False}, True),
    "pairs of bytes": ({"model_type": "bpe"}, True),
    "characters": ({"model_type": "char"}, True),
    "no bytes": ({"byte_fallback": False}, True),
    "a first space that stays": (IDENTITY, True),
    "spaces behind words": ({"treat_whitespace_as_suffix": True}, True),
    "pieces of several words": ({"split_by_whitespace": False}, True),
    "a symbol of two words": ({"user_defined_symbols": ["red ball"]}, True),
    "words": ({"model_type": "word"}, False),
    **{
        f"{rule} without bytes, {name}": (
            {"normalization_rule_name": rule, "byte_fallback": False, "character_coverage": 1.0} | options,
            True,
        )
        for rule in ("nmt_nfkc", "nfkc_cf")
        for name, options in [
            ("unigram", {}),
            ("pairs", {"model_type": "bpe"}),
            ("characters", {"model_type": "char"}),
            ("spaces behind", {"treat_whitespace_as_suffix": True, "split_by_whitespace": False}),
            ("all spaces", {"remove_extra_whitespaces": False, "add_dummy_prefix": False}),
            (
                "symbols",
                {"user_defined_symbols": ["\uff21\uff22", "日\uff21", "\uff22本", "e\u0301", "z\uff21", "\uff21B"]},
            ),
        ]
    },
    "rules": ({"normalization_rule_tsv": RULES}, True),
    "rules, pairs, no bytes": ({"normalization_rule_tsv": RULES, "model_type": "bpe", "byte_fallback": False}, True),
    "rules of a space": ({"normalization_rule_tsv": RULES_OF_SPACE}, True),
    **{
        f"as they are, {name}": (EXACT | options, divides)
        for name, options, divides in [
            ("pairs of bytes", {"model_type": "bpe"}, True),
            ("characters", {"model_type": "char"}, True),
            ("words", {"model_type": "word"}, False),
            ("no bytes", {"byte_fallback": False}, True),
            ("spaces behind words", {"treat_whitespace_as_suffix": True}, True),
            ("several words", {"split_by_whitespace": False}, True),
            ("a symbol", {"user_defined_symbols": ["red ball", "日本x"]}, True),
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
    st.sampled_from("redblu gon日本語あか\u3099한\u1112\u1161\u11abé\u0301\uff21\uff22😀\u2581\u3000\u00a8\n\0=/+7A")
    | st.characters(codec="utf-8"),
    max_size=80,
)
"""Text of any script, mostly without spaces."""


@functools.cache
def model(name: str) -> TextTokenizer:
    words = ["red", "blue", "green", "ball", "box", "key", "go", "to", "the", "café", "x.\ny", "日本語AB", "かがな"]
    sink = io.BytesIO()
    options = {"model_type": "unigram", "byte_fallback": True, "hard_vocab_limit": False, "vocab_size": 340}
    options |= MODELS[name][0]
    of_pairs = {"hard_vocab_limit": True, "vocab_size": 320 if options["byte_fallback"] else 80}
    if own_rules := options.get("normalization_rule_tsv"):
        rules = Path(tempfile.mkdtemp()) / "rules.tsv"
        codes = [[" ".join(f"{ord(character):X}" for character in side) for side in rule] for rule in own_rules.items()]
        rules.write_text("".join(f"{before}\t{after}\n" for before, after in codes))
        options["normalization_rule_tsv"] = str(rules)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{a} {b} {c}" for a in words for b in words for c in words if a < b]),
        model_writer=sink,
        minloglevel=2,
        num_threads=1,
        **(options | (of_pairs if options["model_type"] == "bpe" else {})),
    )
    return TextTokenizer(sink.getvalue())


def is_tie(tokenizer: TextTokenizer, ids: list[int], others: list[int]) -> bool:
    """Whether both are divisions of one text with one score, of which a unigram model's rounding takes either."""
    scores = [sum(map(tokenizer._processor.get_score, each)) for each in (ids, others)]
    texts = [tokenizer._processor.decode(each) for each in (ids, others)]
    is_unigram = tokenizer._trainer.get(text_module._MODEL_TYPE, 1) == 1
    return is_unigram and texts[0] == texts[1] and scores[0] == pytest.approx(scores[1], abs=1e-4, rel=0)


@pytest.mark.parametrize("name", MODELS)
@given(sentence=LONG_TEXT | ANY_TEXT)
@example(sentence="redz\uff21\uff22B")
def test_a_text_in_pieces_has_the_ids_of_the_whole(name, sentence):
    tokenizer = model(name)
    whole = tokenizer._processor.encode(sentence)
    with mock.patch.object(text_module, "_LONG", 4):
        ids = tokenizer.encode(sentence).tolist()
        assert ids == whole or is_tie(tokenizer, ids, whole)
        assert [ids.tolist() for ids in tokenizer.encode_batch([sentence, "red"])] == [
            ids,
            tokenizer.encode("red").tolist(),
        ]


@pytest.mark.parametrize("name", MODELS)
def test_only_texts_that_may_be_divided_are(name):
    tokenizer, sentence, calls = model(name), "red ball, the blue box 日本 " * 20_000, []
    encode = tokenizer._ids
    with mock.patch.object(tokenizer, "_ids", lambda data, *model: calls.append(len(data)) or encode(data, *model)):
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
    with mock.patch.object(tokenizer, "_ids", lambda data, *model: calls.append(data.decode()) or encode(data, *model)):
        ids = tokenizer.encode(sentence)
    assert ids.tolist() == tokenizer._processor.encode(sentence)
    assert "".join(calls) == sentence
    assert max(map(len, calls)) < 66_000


@pytest.mark.parametrize(("kind", "text_of"), [("nfkc", "Chinese"), ("nmt_nfkc without bytes, pairs", "lines")])
def test_a_long_text_of_a_vocabulary_that_normalizes_is_divided(kind, text_of):
    tokenizer, sentence, calls = model(kind), NO_SPACES[text_of].replace("\n", "日語"), []
    encode = tokenizer._ids
    with mock.patch.object(tokenizer, "_ids", lambda data, *model: calls.append(data.decode()) or encode(data, *model)):
        ids = tokenizer.encode(sentence)
    assert ids.tolist() == tokenizer._processor.encode(sentence)
    assert "".join(calls) == sentence
    assert max(map(len, calls)) < 66_000


@mock.patch.object(text_module, "_LARGEST_PART", 100_000)
def test_a_part_that_is_too_large_is_refused():
    tokenizer = model("this project's")
    assert len(tokenizer.encode("l" * 100_000 + "日" + "l" * 99_997)) > 1_000
    with pytest.raises(
        RejectedError, match=r"too_large: the vocabulary cannot divide .* 100,001 bytes, which are more"
    ):
        tokenizer.encode("l" * 100_001 + "日")
    small = tokenizer.encode("red")
    sequences = DocumentTokenizer(tokenizer, False).encode([["red"], ["l" * 300_000], ["red"]])
    assert [sequences[0].tokens.tolist(), sequences[2].tokens.tolist()] == [small.tolist()] * 2
    assert isinstance(sequences[1], RejectedError)
    assert sequences[1].reason == "too_large"


_MEASURE = """
import re, resource, sys
from gatokit.tokenizers.text import TextTokenizer
tokenizer, text = TextTokenizer.load(sys.argv[1]), ("日語本B\uff21" * 1_200_000)
tokenizer.encode(text[:200_000])
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
begin = peak()
assert len(tokenizer.encode(text)) > 1_000_000
print((peak() - begin) / len(text.encode()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["nfkc", "nmt_nfkc without bytes, unigram"])
def test_a_text_takes_less_than_eight_bytes_of_memory_a_byte(tmp_path, name):
    path = tmp_path / "text.model"
    path.write_bytes(model(name).model)
    measured = subprocess.run([sys.executable, "-c", _MEASURE, path], capture_output=True, text=True, check=True)
    assert float(measured.stdout) < 8


def test_a_part_that_the_pieces_join_everywhere_stays_whole():
    tokenizer, calls = model("this project's"), []
    assert any("ll" in piece for piece in map(tokenizer.piece, range(tokenizer.pieces)))
    encode = tokenizer._ids
    with mock.patch.object(tokenizer, "_ids", lambda data, *model: calls.append(len(data)) or encode(data, *model)):
        tokenizer.encode("l" * 200_000 + "日" + "l" * 10)
    assert calls == [200_000, 13]
