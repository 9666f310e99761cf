"""What a vocabulary keeps of a text, and what it is trained on."""

import io
import json
import random
from pydoc_data.topics import topics

import pytest
import sentencepiece
from hypothesis import example, given, settings
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


# Characters of a script, the sign between its words, and what a sample of it may lack altogether.
SCRIPTS = {
    "latin": ("abcdefghijklmnopqrstuvwxyzäöüßéñ", " "),
    "cjk": ("".join(map(chr, range(0x4E00, 0x4F00))), ""),
    "kana": ("あいうえおかきくけこアイウエオ。、", ""),
    "arabic": ("ابتثجحخدذرزسشصضطظعغفقكلمنهوي\u064b\u0651", " "),
    "devanagari": ("अआइईउऊकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह\u093e\u093f\u094d", " "),
    "emoji": ("😀😁🤖👩\u200d\U0001f3fd\ufe0f🇩🇪", ""),
    "no spaces": ("ab", ""),
    "lines": ("ab", "\n"),
}


@pytest.fixture(scope="module", params=SCRIPTS)
def scripted(request: pytest.FixtureRequest) -> TextTokenizer:
    """A small vocabulary that was trained on words of one script."""
    characters, between = SCRIPTS[request.param]
    drawn = random.Random(0)
    words = ["".join(drawn.choices(characters, k=drawn.randint(1, 9))) for _ in range(400)]
    lines = [between.join(drawn.choices(words, k=12)) for _ in range(300)]
    return TextTokenizer(train_model(lines, 700, "identity"))


WRITTEN = "".join(characters for characters, _ in SCRIPTS.values())
MARKS = [" ", "  ", "   ", "\n", "\r\n", "\t", "\0", "\x07", "\x1b", "\x7f", "\u0085", "\u3000", "\u2585", "\u2047"]


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.text(st.sampled_from(WRITTEN), min_size=1, max_size=8),
            st.sampled_from(MARKS),
            st.characters(exclude_categories=["Cs"]),
        ),
        max_size=30,
    ).map("".join)
)
@example("a red cat")
@example("  two  dogs \n in a park  ")
@example(" ")
@example("\u2581a\u2581\u2581 b\u2581")
def test_every_script_round_trips_whatever_the_vocabulary_saw(scripted, text):
    """The exception has a name: U+2581, the sign for a space, comes back as one."""
    assert scripted.decode(scripted.encode(text)) == text.replace("\u2581", " ")


def test_a_space_has_a_piece_of_its_own_in_every_script(scripted):
    assert len(scripted.encode(" ")) == 1


def test_a_vocabulary_without_a_piece_for_spaces_decodes_them(tmp_path):
    """One space among 60,000 characters gets no piece from SentencePiece alone, and is written as bytes."""
    drawn = random.Random(0)
    lines = ["".join(drawn.choices(SCRIPTS["cjk"][0], k=60)) for _ in range(1000)] + ["a red cat"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=700,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=3,
    )
    text = TextTokenizer(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert processor.decode(processor.encode("a red cat")) == "a\u2581red\u2581cat"
    assert text.encode("a red cat").tolist() == processor.encode("a red cat")
    assert text.decode(text.encode("a red cat")) == "a red cat"


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
