"""Documents of a finished build: rows, sequences joined from records, decoded parts, what they hold, errors."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import sentencepiece

from gatokit.inspection import open_directory, preview
from gatokit.inspection.tables.summary import Contents, Effort, ImageSize, Lengths, contents, drops, lengths
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_codec import decode, encode, resize

ALL = Effort(records=1000, bytes=1 << 30)


def note(corpora, line):
    return json.loads((corpora.source / "notes.jsonl").read_text().splitlines()[line])["text"]


@pytest.fixture(scope="module")
def pieces(corpora):
    """``pieces(*texts)``: how many pieces SentencePiece makes of them."""
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(corpora.built / "vocabulary.model"))
    return lambda *texts: sum(len(vocabulary.encode(text)) for text in texts)


def test_ten_lines_walk_every_document(corpora):
    seen = {}
    for dataset in open_directory(corpora.built).datasets.values():
        assert dataset.holds_documents
        for document in dataset.documents():
            shape = [part if isinstance(part, str) else (part.height, part.width) for part in document.parts]
            seen[document.id] = shape
            assert document.tokens == len(document.sequence.tokens) == document.row.tokens
            assert [len(record.sequence.tokens) for record in document.records] == list(document.row.record_tokens)
            assert document.images == [part for part in document.parts if isinstance(part, EncodedImage)]
    assert seen == {
        "notes.jsonl#0": ["A short note."],
        "notes.jsonl#1": [note(corpora, 1).strip()],
        "notes.jsonl#5": ["Notes :copyright: are [bold]kept[/bold]."],
        "notes.jsonl#6": ["The end."],
        "captions.tar#0": [(32, 48), "a ramp of colours"],
        "captions.tar#1": [(80, 48), "a tall ramp"],
        "captions.tar#5": [(32, 48), "another ramp"],
        "pages.jsonl#0": [(64, 64), "First a ramp.", (64, 64), "Then nothing more."],
        "pages.jsonl#1": ["A page with a broken picture."],
        "pages.jsonl#2": [*[(64, 64)] * 5, "Five pictures."],
        "pages.jsonl#3": ["No picture here."],
        "questions.json#10": [(32, 32), "Q: What is it? A: a ramp"],
        "questions.json#11": [(32, 32), "Q: Is it red? A: a ramp"],
        "questions.json#12": [(32, 32), "Q: Is it blue? A: a ramp"],
    }


def test_a_copied_picture_is_the_source_file(corpora):
    datasets = open_directory(corpora.built).datasets
    page = datasets["pages"].document("pages.jsonl#2")
    for number, image in enumerate(page.images):
        assert image.data == (corpora.source / "images" / f"{number}.png").read_bytes()
    with tarfile.open(corpora.source / "captions.tar") as tar:
        assert datasets["captions"].document("captions.tar#0").images[0].data == tar.extractfile("0.png").read()


def test_a_long_document_is_joined_from_its_records(corpora, pieces):
    page = open_directory(corpora.built).datasets["pages"].document("pages.jsonl#2")
    assert [len(record.sequence.images) for record in page.records] == [4, 1]
    assert [placed.token for placed in page.sequence.images] == [0, 16, 32, 48, 64]
    np.testing.assert_array_equal(page.sequence.kinds, [2] * 80 + [1] * pieces("Five pictures."))
    np.testing.assert_array_equal(page.sequence.tokens[:80], 65535)
    np.testing.assert_array_equal(page.sequence.positions, 65535)
    assert len(page.sequence.step_begin) == 0
    long = open_directory(corpora.built).datasets["notes"].document("notes.jsonl#1")
    tokens = pieces(note(corpora, 1).strip()) + 1
    assert tokens > 64 * 2
    assert [len(record.sequence.tokens) for record in long.records] == [64] * (tokens // 64) + [tokens % 64]
    np.testing.assert_array_equal(
        long.sequence.tokens, np.concatenate([record.sequence.tokens for record in long.records])
    )


def test_rows_and_splits(corpora):
    notes = open_directory(corpora.built).datasets["notes"]
    assert [(row.source_position, row.kept, row.reason) for row in notes.rows()] == [
        (0, True, None),
        (1, True, None),
        (2, False, "duplicate"),
        (3, False, "empty"),
        (4, False, "corrupt_record"),
        (5, True, None),
        (6, True, None),
    ]
    held_out = [document.id for document in notes.documents(split="held_out")]
    training = [document.id for document in notes.documents(split="train")]
    assert held_out == [row.episode_id for row in notes.rows(split="held_out")]
    assert len(held_out) == notes.tasks[0].held_out == 1
    assert sorted(held_out + training) == sorted(document.id for document in notes.documents())
    row = notes.row("notes.jsonl#5")
    assert notes.document(row).parts == notes.document("notes.jsonl#5").parts
    assert open_directory(corpora.built).datasets["pages"].row("pages.jsonl#1").detail == (
        "1 picture left out: bad_image: the PNG is truncated"
    )


def test_nothing_is_read_ahead(corpora):
    notes = open_directory(corpora.built).datasets["notes"]
    taken = []

    def rows():
        for row in notes.rows(kept=True):
            taken.append(row.episode_id)
            yield row

    found = notes.read_documents(rows())
    assert taken == []
    assert next(found).id == "notes.jsonl#0"
    assert taken == ["notes.jsonl#0"]


def test_a_made_picture_is_the_source_resized(corpora):
    (image,) = open_directory(corpora.built).datasets["questions"].document("questions.json#10").images
    source = decode((corpora.source / "images" / "0.png").read_bytes())
    assert image == EncodedImage(encode(resize(source, 32, 32), "jpeg", 95), 32, 32)


@pytest.mark.parametrize(("wanted", "says"), [("nobody", "notes has no document 'nobody'"), ("notes.jsonl#2", "dropp")])
def test_what_is_not_stored_is_named(corpora, wanted, says):
    with pytest.raises(DataError, match=says):
        open_directory(corpora.built).datasets["notes"].document(wanted)


def test_a_scan_has_rows_and_no_documents(corpora):
    notes = open_directory(corpora.scanned).datasets["notes"]
    assert [row.tokens for row in notes.rows()] == [None] * 7
    with pytest.raises(
        DataError, match=r"of document 'notes.jsonl#0': the directory is a scan, which stores no tokens"
    ):
        next(notes.documents())
    assert lengths(notes) is None


def test_episodes_and_documents_are_not_taken_for_each_other(corpora, small):
    notes = open_directory(corpora.built).datasets["notes"]
    arm = open_directory(small.built).datasets["arm"]
    assert not arm.holds_documents
    with pytest.raises(DataError, match="notes holds documents: documents"):
        notes.episodes()
    with pytest.raises(DataError, match="it is no episode"):
        notes.episode("notes.jsonl#0")
    for read in (arm.documents, lambda: arm.document("x")):
        with pytest.raises(DataError, match="arm holds episodes: episodes"):
            read()
    with pytest.raises(ConfigError, match="notes holds documents, which have no threshold"):
        preview(notes, 0.9)


def test_a_shard_of_another_build_is_refused(corpora, tmp_path, rewrite):
    root = shutil.copytree(corpora.built, tmp_path / "damaged")
    notes = open_directory(root).datasets["notes"]
    rewrite(notes.path / notes.totals.splits[0].parts[0].file, lambda records: records[::-1])
    with pytest.raises(DataError, match="index and shard are not of one build"):
        notes.document("notes.jsonl#0")


def test_what_documents_hold(corpora, pieces):
    datasets = open_directory(corpora.built).datasets
    assert contents(datasets["captions"], ALL) == Contents(
        counted=3,
        records=3,
        text_tokens=pieces("a ramp of colours", "a tall ramp", "another ramp") + 3,
        image_tokens=6 + 15 + 6,
        images=3,
        sizes=(ImageSize(32, 48, 2), ImageSize(80, 48, 1)),
    )
    texts = (
        "First a ramp.",
        "Then nothing more.",
        "A page with a broken picture.",
        "Five pictures.",
        "No picture here.",
    )
    assert contents(datasets["pages"], ALL) == Contents(5, 5, pieces(*texts), 7 * 16, 7, (ImageSize(64, 64, 7),))
    texts = note(corpora, 0), note(corpora, 1).strip(), note(corpora, 5), note(corpora, 6)
    records = 3 + -(-(pieces(texts[1]) + 1) // 64)
    found = contents(datasets["notes"], Effort(1, 1))
    assert found == Contents(records, records, pieces(*texts) + 4, 0, 0, ())


def test_a_sample_is_evenly_spaced_and_says_so(corpora):
    datasets = open_directory(corpora.built).datasets
    moved = []
    sample = contents(datasets["pages"], Effort(2, 1 << 30), lambda *now: moved.append(now))
    assert (sample.counted, sample.records, sample.is_complete) == (2, 5, False)
    # Records 0 and 2 of five: a page of two pictures, and the first four pictures of another.
    assert (sample.image_tokens, sample.images) == (6 * 16, 6)
    assert moved == [(2, 2)]
    assert contents(datasets["pages"], Effort(1000, 1)).counted == 1


def test_lengths_are_exact(corpora, pieces):
    datasets = open_directory(corpora.built).datasets
    texts = note(corpora, 0), note(corpora, 1).strip(), note(corpora, 5), note(corpora, 6)
    first, second, third, last = sorted(pieces(text) + 1 for text in texts)
    assert lengths(datasets["notes"]) == Lengths(first, first, second, third, last, "notes.jsonl#1")
    first, second, last = (
        pieces(text) + 1 + patches
        for text, patches in (("another ramp", 6), ("a ramp of colours", 6), ("a tall ramp", 15))
    )
    assert lengths(datasets["captions"]) == Lengths(first, first, second, second, last, "captions.tar#1")


def test_drops_of_documents(corpora):
    found = drops(open_directory(corpora.built).datasets["captions"])
    assert [(drop.reason, drop.episodes, drop.example) for drop in found] == [
        ("bad_image", 1, "captions.tar#3"),
        ("duplicate", 1, "captions.tar#4"),
        ("image_animated", 1, "captions.tar#2"),
    ]
