"""What a vocabulary keeps of a text, and what it is trained on."""

import json
from pydoc_data.topics import topics

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from gatokit.pipelines.vocabulary import make_vocabulary, train_model
from gatokit.schemas.errors import DataError
from gatokit.tokenizers.text import TextTokenizer
from tests.helpers.vocabularies import train_vocabulary

LINES = [
    "def run(self):\n    if a <  b:  \n\treturn 'ä € 漢字 😀'\n\n",
    "The cat sat on the mat, and the dog sat on the cat.\r\n",
    "a\0b\u2585c and \u2581 too",
]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("models") / "identity.model"
    train_vocabulary([*LINES * 20, *list(topics.values())[:40]], path, 1500, normalization="identity")
    return TextTokenizer.load(path)


CHARACTERS = "\n\t\r \0\u2585\u3000\xa0\u200b\ufeff\ufffdﬁ😀\U0010ffff\u2028"
WORDS = ["\r\n", "  ", "e\u0301", "<s>", "</s>", "<unk>", "<0x0A>", "⁇", "the cat", "return", "漢字"]
PARTS = st.sampled_from([*CHARACTERS, *WORDS])


@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")),
        st.lists(PARTS).map("".join),
        st.lists(st.one_of(PARTS, st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))).map("".join),
    ),
    st.integers(0, 20),
)
@example("", 0)
@example("\n", 1)
@example(" a ", 1)
def test_identity_decodes_to_the_source_text(identity, text, cut):
    ids = identity.encode(text)
    assert identity.decode(ids) == text
    # A record's tokens decode without those of the records before it, unless the cut divides a character's bytes.
    parts = identity.decode(ids[:cut]) + identity.decode(ids[cut:])
    assert parts == text or "\ufffd" in parts


def test_every_character_but_one_survives_identity(identity):
    for begin in range(0, 0x110000, 1 << 12):
        codes = (code for code in range(begin, begin + (1 << 12)) if not 0xD800 <= code < 0xE000)
        text = "".join(f"{chr(code)} a{chr(code)}" for code in codes)
        assert identity.decode(identity.encode(text)) == text.replace("\u2581", " "), hex(begin)


def test_nfkc_unifies_what_looks_alike(tmp_path):
    train_vocabulary(LINES * 20, tmp_path / "nfkc.model", 400)
    text = TextTokenizer.load(tmp_path / "nfkc.model")
    assert text.decode(text.encode("  ﬁne\n\tＡ e\u0301 ")) == "fine A é"


def test_line_ends_and_runs_of_spaces_have_pieces(identity):
    processor = sentencepiece.SentencePieceProcessor(model_proto=identity.model)
    pieces = {processor.id_to_piece(number) for number in range(identity.pieces)}
    assert {"\n", "\u2581" * 4} <= pieces
    assert not any(sign in piece for piece in pieces for sign in "\0\u2585")
    assert len(identity.encode("\n")) == 1


def test_a_sentence_with_a_sign_of_sentencepiece_is_no_loss(tmp_path):
    # SentencePiece skips a sentence that holds U+2585.
    train_vocabulary(["a zebra ran\u2585 the zebra\0 one zebra"] * 50, tmp_path / "v.model", normalization="identity")
    assert len(TextTokenizer.load(tmp_path / "v.model").encode(" zebra")) == 1


def test_long_sentences_are_cut_not_dropped(tmp_path):
    train_vocabulary(["zebra " * 20_000], tmp_path / "v.model", 300, normalization="identity")
    assert len(TextTokenizer.load(tmp_path / "v.model").encode(" zebra")) == 1


def test_a_small_text_gives_fewer_pieces_and_no_text_none(tmp_path):
    assert train_vocabulary(["a b"], tmp_path / "v.model", 32_000, normalization="identity") == 262
    with pytest.raises(RuntimeError):
        train_model([], 300, "identity")


def test_the_child_trains_what_this_process_would(tmp_path):
    """One model, whether it is trained here or in a process of its own."""
    texts = [f"{number} {line}" for number in range(50) for line in LINES[:2]]
    config = tmp_path / "c.yaml"
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config.write_text(
        "vocabulary: a.model\nholdout: 0\ndatasets: [{name: t, kind: text, source: t.jsonl, drop_duplicates: false}]"
    )
    first = make_vocabulary(config, tmp_path / "a.model", pieces=500)
    again = make_vocabulary(config, tmp_path / "b.model", pieces=500)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert first.blake2b == again.blake2b == TextTokenizer.load(tmp_path / "a.model").digest
    assert first.sentences == len(texts)
    assert first.bytes == sum(len(text.encode()) for text in texts)


def test_a_child_that_dies_is_named(monkeypatch):
    from gatokit.pipelines import vocabulary

    monkeypatch.setattr(vocabulary.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match="the training ended with status 1: no memory left"):
        vocabulary._train_in_child(["a" * (1 << 20)] * 4, 300, "identity")
