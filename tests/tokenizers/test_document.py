import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence
from gatokit.tokenizers.document import DocumentTokenizer, patch_count
from gatokit.tokenizers.text import TextTokenizer

TEXT, IMAGE, PATCH, END = 1, 2, 65535, 2
SMALL, WIDE, TALL = EncodedImage(b"small", 16, 16), EncodedImage(b"wide", 16, 48), EncodedImage(b"tall", 64, 32)
BYTES = 3
"""Behind unknown, begin and end stand the 256 bytes: a character that no piece has is its UTF-8 bytes plus 3."""


def model(**options) -> TextTokenizer:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the red ball is red", "the ball", "a red box", "the box is red"] * 20),
        model_writer=out,
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return TextTokenizer(out.getvalue())


EXACT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}


@pytest.fixture(scope="module")
def exact() -> TextTokenizer:
    """A model that gives every text back, but for U+2581, which is SentencePiece's own space."""
    return model(**EXACT)


@pytest.fixture(scope="module")
def endless() -> TextTokenizer:
    return model(**EXACT, eos_id=-1)


def encoded(tokenizer: DocumentTokenizer, *parts: str | EncodedImage) -> TokenSequence:
    [sequence] = tokenizer.encode([list(parts)])
    assert isinstance(sequence, TokenSequence), sequence
    return sequence


def sequence(tokens: list[int], kinds: list[int], *images: tuple[int, EncodedImage]) -> TokenSequence:
    return TokenSequence(
        np.array(tokens, np.uint16),
        np.array(kinds, np.uint8),
        np.full(len(tokens), 65535, np.uint16),
        np.empty(0, np.uint32),
        [PlacedImage(*image) for image in images],
    )


def test_a_caption_in_full(exact):
    made = encoded(DocumentTokenizer(exact, True), WIDE, "é")
    assert made.tokens.tolist() == [PATCH, PATCH, PATCH, BYTES + 0xC3, BYTES + 0xA9, END]
    assert made.kinds.tolist() == [IMAGE, IMAGE, IMAGE, TEXT, TEXT, TEXT]
    assert made.positions.tolist() == [65535] * 6
    assert (made.tokens.dtype, made.kinds.dtype, made.positions.dtype) == (np.uint16, np.uint8, np.uint16)
    assert made.images == [PlacedImage(0, WIDE)]
    assert made.step_begin.tolist() == []
    assert made.text_tokens is None


def test_a_page_in_full(exact):
    made = encoded(DocumentTokenizer(exact, True), "\0", SMALL, TALL, "ü", SMALL)
    assert made.tokens.tolist() == [3] + [PATCH] * 9 + [BYTES + 0xC3, BYTES + 0xBC, PATCH, END]
    assert made.kinds.tolist() == [TEXT] + [IMAGE] * 9 + [TEXT, TEXT, IMAGE, TEXT]
    assert made.images == [PlacedImage(1, SMALL), PlacedImage(2, TALL), PlacedImage(12, SMALL)]


def test_text_ids_are_the_models_own(exact):
    sentences = ["the red ball", " is red ", "a box"]
    made = encoded(DocumentTokenizer(exact, False), sentences[0], SMALL, sentences[1], SMALL, sentences[2])
    peer = sentencepiece.SentencePieceProcessor(model_proto=exact.model)
    first, second, third = (peer.encode(sentence) for sentence in sentences)
    assert made.tokens.tolist() == [*first, PATCH, *second, PATCH, *third]


@pytest.mark.parametrize(("end_of_document", "last"), [(True, [END]), (False, [])])
def test_the_end_piece_is_for_the_rules_to_say(exact, end_of_document, last):
    made = encoded(DocumentTokenizer(exact, end_of_document), "é")
    assert made.tokens.tolist() == [BYTES + 0xC3, BYTES + 0xA9, *last]
    assert made.kinds.tolist() == [TEXT] * (2 + len(last))


def test_a_model_without_an_end_piece_closes_nothing(endless):
    tokenizer = DocumentTokenizer(endless, True)
    assert endless.end_id is None
    # Without the end the bytes begin at 2.
    assert encoded(tokenizer, "é").tokens.tolist() == [0xC3 + 2, 0xA9 + 2]
    assert tokenizer.decode(encoded(tokenizer, "é", SMALL)) == ["é", SMALL]


def test_a_text_that_spells_the_end_piece_is_text(exact):
    tokenizer = DocumentTokenizer(exact, True)
    made = encoded(tokenizer, "the </s> end<s>")
    assert END not in made.tokens[:-1]
    assert tokenizer.decode(made) == ["the </s> end<s>"]


def test_documents_of_one_call_are_those_of_calls_of_their_own(exact):
    tokenizer = DocumentTokenizer(exact, True)
    documents = [
        ["the", SMALL, "ball"],
        [SMALL],
        [""],
        [WIDE, "red", TALL, "box"],
        ["is"],
    ]
    together = tokenizer.encode(documents)
    assert [type(made) for made in together] == [TokenSequence, TokenSequence, RejectedError] + [TokenSequence] * 2
    for document, made in zip(documents, together, strict=True):
        if isinstance(made, TokenSequence):
            assert made.tokens.tolist() == encoded(tokenizer, *document).tokens.tolist()
            assert tokenizer.decode(made) == document
    assert tokenizer.encode([]) == []


def test_what_normalisation_leaves_nothing_of_is_empty(text):
    tokenizer = DocumentTokenizer(text, True)
    [made] = tokenizer.encode([[" \n"]])
    assert isinstance(made, RejectedError)
    assert (made.reason, made.detail) == ("empty", "the vocabulary's normalisation leaves nothing of its text")
    [made] = tokenizer.encode([[]])
    assert isinstance(made, RejectedError)
    beside = encoded(tokenizer, SMALL, "\n")
    assert beside.tokens.tolist() == [PATCH, END]
    assert tokenizer.decode(beside) == [SMALL]
    assert tokenizer.decode(encoded(tokenizer, SMALL, " ", WIDE, "go")) == [SMALL, WIDE, "go"]


def test_lone_surrogates_are_refused(exact):
    with pytest.raises(UnicodeEncodeError):
        DocumentTokenizer(exact, True).encode([["half \ud83d"]])


STRINGS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20) | st.sampled_from(
    ["the red ball", " is red", "</s>", "<s>", "<0x41>", "\0", "\n\n", "\ufeff", "e\u0301", "🙂", "日本語"]
)
IMAGES = st.builds(
    lambda rows, columns, data: EncodedImage(data, 16 * rows, 16 * columns),
    st.integers(1, 5),
    st.integers(1, 5),
    st.binary(min_size=1, max_size=4),
)


@st.composite
def pages(draw) -> list[str | EncodedImage]:
    """Parts in any order, no two texts side by side."""
    parts: list[str | EncodedImage] = []
    for part in draw(st.lists(STRINGS | IMAGES, min_size=1, max_size=8)):
        if isinstance(part, EncodedImage) or not parts or isinstance(parts[-1], EncodedImage):
            parts.append(part)
    return parts


@settings(max_examples=300)
@given(documents=st.lists(pages(), max_size=4), end_of_document=st.booleans())
def test_any_page_comes_back(exact, documents, end_of_document):
    tokenizer = DocumentTokenizer(exact, end_of_document)
    for parts, made in zip(documents, tokenizer.encode(documents), strict=True):
        assert isinstance(made, TokenSequence)
        back = tokenizer.decode(made)
        assert back == [part if isinstance(part, EncodedImage) else part.replace("\u2581", " ") for part in parts]
        widths = [patch_count(part) if isinstance(part, EncodedImage) else len(exact.encode(part)) for part in parts]
        starts = np.cumsum([0, *widths]).tolist()
        assert made.images == [
            PlacedImage(start, part) for start, part in zip(starts, parts, strict=False) if not isinstance(part, str)
        ]
        assert len(made.tokens) == starts[-1] + end_of_document
        assert (made.kinds == IMAGE).tolist() == (made.tokens == PATCH).tolist()
        assert (made.tokens == END).sum() == end_of_document


@settings(max_examples=200)
@given(parts=pages())
def test_a_model_that_normalises_decodes_to_what_it_makes_of_each_text(text, parts):
    tokenizer = DocumentTokenizer(text, True)
    peer = sentencepiece.SentencePieceProcessor(model_proto=text.model)
    expected = [peer.decode(peer.encode(part)) if isinstance(part, str) else part for part in parts]
    [made] = tokenizer.encode([parts])
    if isinstance(made, RejectedError):
        assert [part for part in expected if part] == []
    else:
        assert tokenizer.decode(made) == [part for part in expected if part != ""]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (sequence([5, 7], [TEXT, 3]), "neither text nor image"),
        (sequence([33024], [5]), "neither text nor image"),
        (sequence([5, PATCH], [TEXT, IMAGE]), "patches of no image"),
        (sequence([PATCH, 5], [IMAGE, TEXT], (0, WIDE)), "the image at token 0 has other tokens"),
        (sequence([PATCH, 9, PATCH], [IMAGE] * 3, (0, WIDE)), "the image at token 0 has other tokens"),
        (sequence([PATCH, PATCH], [IMAGE] * 2, (0, WIDE)), "the image at token 0 has other tokens"),
        (sequence([PATCH], [IMAGE], (0, SMALL), (0, SMALL)), "the image at token 0 has other tokens"),
        (sequence([PATCH], [IMAGE], (1, SMALL)), "patches of no image"),
        (sequence([PATCH] * 3, [IMAGE] * 3, (0, WIDE), (2, SMALL)), "the image at token 2 has other tokens"),
        (sequence([31999], [TEXT]), "outside the vocabulary"),
        (sequence([PATCH], [TEXT]), "outside the vocabulary"),
    ],
)
def test_tokens_that_contradict_each_other_are_refused(exact, bad, says):
    with pytest.raises(ValueError, match=says):
        DocumentTokenizer(exact, True).decode(bad)


def test_decoding_does_not_mind_a_missing_end(exact):
    """Records of a document that were put together may lack the last one."""
    tokenizer = DocumentTokenizer(exact, True)
    made = encoded(tokenizer, SMALL, "é")
    cut = sequence(made.tokens[:-1].tolist(), made.kinds[:-1].tolist(), (0, SMALL))
    assert tokenizer.decode(cut) == [SMALL, "é"]


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("the red ball<|endoftext|>a red box", ["the red ball", "a red box"]),
        ("the ball\n<|endoftext|>\n\nthe box\n<|endoftext|>\n", ["the ball\n", "\n\nthe box\n"]),
        ("<|endoftext|>the ball", ["the ball"]),
        ("the ball <|endoftext|> <|endoftext|>the box", ["the ball ", "the box"]),
        ("aEND_OF_DOCUMENT_TOKEN_TO_BE_REPLACED b", ["a", " b"]),
        ("no <|endoftext| marker </s>", ["no <|endoftext| marker </s>"]),
    ],
)
def test_markers_become_an_end(exact: TextTokenizer, endless: TextTokenizer, text: str, texts: list[str]) -> None:
    tokenizer = DocumentTokenizer(exact, end_of_document=True)
    found = encoded(tokenizer, text)
    expected = [number for part in texts for number in (*exact.encode(part).tolist(), END)]
    assert found.tokens.tolist() == expected
    assert set(found.kinds.tolist()) == {TEXT}
    assert tokenizer.decode(found) == texts
    for other in (DocumentTokenizer(exact, end_of_document=False), DocumentTokenizer(endless, end_of_document=True)):
        assert other.decode(encoded(other, text)) == [text]


def test_markers_between_images(exact: TextTokenizer) -> None:
    tokenizer = DocumentTokenizer(exact, end_of_document=True)
    found = encoded(tokenizer, SMALL, "<|endoftext|>the ball<|endoftext|>", WIDE, "<|endoftext|>")
    ball = exact.encode("the ball").tolist()
    assert found.tokens.tolist() == [PATCH, END, *ball, END, PATCH, PATCH, PATCH, END]
    assert tokenizer.decode(found) == [SMALL, "the ball", WIDE]
    assert found.images == [PlacedImage(0, SMALL), PlacedImage(len(ball) + 3, WIDE)]


def test_nothing_but_markers_is_empty(exact: TextTokenizer) -> None:
    [found] = DocumentTokenizer(exact, end_of_document=True).encode([["<|endoftext|> <|endoftext|>\n"]])
    assert isinstance(found, RejectedError)
    assert found.reason == "empty"
