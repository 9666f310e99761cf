"""Damage to builds of documents is found and named; what is sound has no fault."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import EncodedImage, PlacedImage
from gatokit.tokenizers.document import DocumentTokenizer
from gatokit.tokenizers.image_codec import encode
from gatokit.tokenizers.text import TextTokenizer


@pytest.fixture
def root(corpora, tmp_path):
    """A copy of the build, to be damaged."""
    return shutil.copytree(corpora.built, tmp_path / "damaged")


def shard_of(root, name):
    dataset = open_directory(root).datasets[name]
    return dataset.path / dataset.totals.splits[0].parts[0].file


def index_of(root, name):
    dataset = open_directory(root).datasets[name]
    return dataset.path / dataset.totals.splits[0].index


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def only(faults, file):
    """The one fault there is, which must be of ``file``."""
    assert [fault.file for fault in faults] == [file], faults
    return faults[0].fault


def changed(owner, chunk, change):
    """For ``rewrite``: the record of a document's chunk, changed."""

    def change_all(records):
        for data in records:
            record = Record.from_bytes(data)
            yield change(record).to_bytes() if (record.owner, record.chunk) == (owner, chunk) else data

    return change_all


def with_tokens(record, **arrays):
    return replace(record, sequence=replace(record.sequence, **arrays))


def put(array, at, value):
    changed = array.copy()
    changed[at] = value
    return changed


def with_image(record, data, height=None, width=None):
    first, *rest = record.sequence.images
    height, width = height or first.image.height, width or first.image.width
    return with_tokens(record, images=[PlacedImage(first.token, EncodedImage(data, height, width)), *rest])


def test_what_is_finished_is_sound(corpora):
    moved = []
    assert verify(corpora.built, lambda *now: moved.append(now)) == []
    assert moved[-1] == ("records", 22, 22)
    assert verify(corpora.scanned) == []


def test_every_record_of_a_sound_build_decodes(corpora):
    text = open_directory(corpora.built).text
    for dataset in open_directory(corpora.built).datasets.values():
        tokenizer = DocumentTokenizer(text, dataset.described.documents.end_of_document)
        for _, records in dataset.records(dataset.rows(kept=True)):
            assert all(tokenizer.decode(record.sequence) for record in records)


def test_a_flipped_byte_in_any_file_is_found(root):
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != "build.log.jsonl" and ".scan" not in path.parts:
            for at in (0, path.stat().st_size // 2, path.stat().st_size - 1):
                flip(path, at)
                assert path.relative_to(root).as_posix() in {fault.file for fault in verify(root)}, (path, at)
                flip(path, at)
    assert verify(root) == []


def test_truncated_swapped_and_missing_files_are_named(root):
    pages, captions = shard_of(root, "pages"), shard_of(root, "captions")
    data = pages.read_bytes()
    pages.write_bytes(data[:-1])
    assert only(verify(root), f"pages/{pages.name}").startswith("truncated")
    pages.write_bytes(captions.read_bytes())
    assert only(verify(root), f"pages/{pages.name}") == f"holds the content of captions/{captions.name}"
    pages.unlink()
    assert only(verify(root), f"pages/{pages.name}") == "missing"
    pages.write_bytes(data)
    assert verify(root) == []


# From here on the digests are right: a faulty writer, not a faulty disk.


@pytest.mark.parametrize(
    ("name", "owner", "chunk", "change", "says"),
    [
        ("notes", "notes.jsonl#0", 0, lambda r: replace(r, owner="another"), "it belongs to document 'another'"),
        ("notes", "notes.jsonl#1", 3, lambda r: replace(r, chunk=4), "it is chunk 4 of 8, and the index says 3 of 8"),
        ("notes", "notes.jsonl#0", 0, lambda r: replace(r, spec="x"), "it has a spec or time steps"),
        ("notes", "notes.jsonl#1", 1, lambda r: replace(r, first_step=1), "it has a spec or time steps"),
        (
            "notes",
            "notes.jsonl#0",
            0,
            lambda r: replace(
                with_tokens(r, step_begin=np.zeros(1, np.uint32)), reward=np.zeros(1), flags=np.ones(1, np.uint8)
            ),
            "it has a spec or time steps",
        ),
        (
            "notes",
            "notes.jsonl#0",
            0,
            lambda r: with_tokens(r, kinds=put(r.sequence.kinds, 2, 3)),
            "token 2 has the kind 3, which no document has",
        ),
        (
            "notes",
            "notes.jsonl#0",
            0,
            lambda r: with_tokens(r, kinds=put(r.sequence.kinds, 2, 99)),
            "token 2 has the kind 99, which no document has",
        ),
        (
            "notes",
            "notes.jsonl#0",
            0,
            lambda r: with_tokens(r, kinds=put(r.sequence.kinds, 1, 2)),
            "token 1 is a patch of no image",
        ),
        (
            "pages",
            "pages.jsonl#0",
            0,
            lambda r: with_tokens(r, kinds=put(r.sequence.kinds, 5, 1)),
            "token 5 lies in an image and has the kind 1",
        ),
        (
            "pages",
            "pages.jsonl#0",
            0,
            lambda r: with_tokens(r, tokens=put(r.sequence.tokens, 5, 7)),
            "token 5 has the id 7, which no image has",
        ),
        (
            "notes",
            "notes.jsonl#0",
            0,
            lambda r: with_tokens(r, tokens=put(r.sequence.tokens, 0, 1500)),
            "token 0 has the id 1500, which no text has",
        ),
        (
            "notes",
            "notes.jsonl#0",
            0,
            lambda r: with_tokens(r, positions=put(r.sequence.positions, 4, 0)),
            "token 4 has a position, which no document has",
        ),
        (
            "notes",
            "notes.jsonl#0",
            0,
            lambda r: with_tokens(r, tokens=put(r.sequence.tokens, -1, 9)),
            "it does not end with the vocabulary's end piece, and end_of_document is true",
        ),
        (
            "pages",
            "pages.jsonl#3",
            0,
            lambda r: with_tokens(r, tokens=put(r.sequence.tokens, -1, 2)),
            "it holds the vocabulary's end piece, and end_of_document is false",
        ),
        (
            "notes",
            "notes.jsonl#1",
            0,
            lambda r: with_tokens(r, tokens=put(put(r.sequence.tokens, 3, 2), 4, 2)),
            "two end pieces follow each other",
        ),
        (
            "pages",
            "pages.jsonl#0",
            0,
            lambda r: with_tokens(r, images=r.sequence.images[1:]),
            "token 0 is a patch of no image",
        ),
        (
            "captions",
            "captions.tar#0",
            0,
            lambda r: with_image(r, b"gif"),
            "image 0 of the record: the image is neither PNG nor JPEG",
        ),
        (
            "captions",
            "captions.tar#0",
            0,
            lambda r: with_image(r, encode(np.zeros((16, 96, 3), np.uint8))),
            "image 0 of the record: the encoded image is 16 x 96 pixels, and the record says 32 x 48",
        ),
        (
            "captions",
            "captions.tar#0",
            0,
            lambda r: with_image(r, r.sequence.images[0].image.data[:-12]),
            "image 0 of the record: the PNG is truncated",
        ),
        (
            "captions",
            "captions.tar#1",
            0,
            lambda r: with_image(r, r.sequence.images[0].image.data[:-2]),
            "image 0 of the record: the JPEG is",
        ),
        (
            "questions",
            "questions.json#10",
            0,
            lambda r: with_image(r, encode(np.zeros((32, 32, 3), np.uint8))),
            "image 0 of the record: the image is PNG, and the rule says JPEG",
        ),
        (
            "questions",
            "questions.json#10",
            0,
            lambda r: with_image(r, encode(np.zeros((64, 16, 3), np.uint8), "jpeg"), 64, 16),
            "image 0 of the record: the image is 64 x 16 pixels, and the rule says 32 x 32",
        ),
    ],
)
def test_a_wrong_record_is_named(root, rewrite, seal, name, owner, chunk, change, says):
    shard = shard_of(root, name)
    rewrite(shard, changed(owner, chunk, change))
    seal(root)
    fault = only(verify(root), f"{name}/{shard.name}")
    assert f" of document {owner!r}: {says}" in fault


def test_pictures_in_a_dataset_of_text_are_named(root, rewrite, seal):
    def with_picture(record):
        tokens, kinds = record.sequence.tokens.copy(), record.sequence.kinds.copy()
        tokens[0], kinds[0] = 65535, 2
        image = EncodedImage(encode(np.zeros((16, 16, 3), np.uint8)), 16, 16)
        return with_tokens(record, tokens=tokens, kinds=kinds, images=[PlacedImage(0, image)])

    rewrite(shard_of(root, "notes"), changed("notes.jsonl#0", 0, with_picture))
    seal(root)
    assert "image 0 of the record: the dataset holds text alone" in verify(root)[0].fault


def test_more_patches_than_the_rule_are_named(root, rewrite, seal):
    """A picture of 64 x 80 pixels, 20 patches, in the place of one of 80 x 48 and of five of its text tokens."""

    def larger(record):
        tokens, kinds = record.sequence.tokens.copy(), record.sequence.kinds.copy()
        tokens[:20], kinds[:20] = 65535, 2
        image = EncodedImage(encode(np.zeros((64, 80, 3), np.uint8)), 64, 80)
        return with_tokens(record, tokens=tokens, kinds=kinds, images=[PlacedImage(0, image)])

    rewrite(shard_of(root, "captions"), changed("captions.tar#1", 0, larger))
    seal(root)
    assert "the image is 64 x 80 pixels, and the rule says 16 patches at most" in verify(root)[0].fault


def test_exchanged_and_missing_records_are_named(root, rewrite, seal):
    shard = shard_of(root, "notes")
    rewrite(shard, lambda records: [*records[:-2], records[-1], records[-2]])
    seal(root)
    first, second = verify(root)
    assert first.fault == ("record 9 of document 'notes.jsonl#1': it is chunk 7 of 8, and the index says 6 of 8")
    assert second.fault.startswith("record 10 of document 'notes.jsonl#1'")
    rewrite(shard, lambda records: records[:-1])
    seal(root)
    assert only(verify(root), f"notes/{shard.name}") == "holds 10 records, and the manifest says 11"


def test_a_divided_picture_is_named(root, rewrite, seal):
    """The records of a page, cut in its last picture, and an index that agrees."""

    def cut(records):
        for data in records:
            record = Record.from_bytes(data)
            if (record.owner, record.chunk) == ("pages.jsonl#2", 1):
                record = with_tokens(record, images=[])
            yield record.to_bytes()

    rewrite(shard_of(root, "pages"), cut)
    seal(root)
    assert "record 3 of document 'pages.jsonl#2': token 0 is a patch of no image" in verify(root)[0].fault


def test_a_record_above_chunk_tokens_is_named(root, edit_manifest):
    edit_manifest(root, lambda content: content["tokenizer"].update(chunk_tokens=63))
    found = [fault.fault for fault in verify(root) if fault.file.startswith("pages/")]
    assert found == [
        "record 2 of document 'pages.jsonl#2': it has 64 tokens, more than the 63 of chunk_tokens, and is no single "
        "image"
    ]


def edit_index(root, name, column, values):
    path = index_of(root, name)
    table = pq.read_table(path)
    columns = table.to_pydict()
    for row, value in values.items():
        columns[column][row] = value
    pq.write_table(pa.table(columns, table.schema), path)


@pytest.mark.parametrize(
    ("name", "column", "values", "says"),
    [
        ("notes", "tokens", {0: 7}, "1 rows have other tokens than their records; the first is 'notes.jsonl#0'"),
        ("notes", "record_tokens", {0: [3, 3]}, "its rows do not cover the 11 records"),
        ("notes", "first_record", {0: 5}, "its rows do not cover the 11 records"),
        ("notes", "split", {0: "held_out"}, "held-out records"),
        ("notes", "split", {0: None}, "are kept and in no split"),
        ("notes", "reason", {2: "because"}, "are dropped without a known reason"),
        ("notes", "reason", {2: "below_threshold"}, "are dropped by a rule of episodes"),
        ("questions", "reason", {0: "duplicate"}, "are dropped as duplicates, which the config keeps"),
        ("notes", "kept", {2: True}, "are kept and have a reason to be dropped"),
        ("notes", "spec", {0: "x"}, "have a value in spec, and documents have none"),
        ("notes", "steps", {0: 1}, "have a value in steps, and documents have none"),
        ("notes", "return", {4: 1.0}, "have a value in return, and documents have none"),
        ("notes", "task", {0: "other"}, "are of another task than their dataset"),
        ("notes", "task", {0: None}, "are of another task than their dataset"),
        ("notes", "agent", {0: "a"}, "are of another task than their dataset, or of an agent"),
        ("notes", "order", {0: 3.0}, "have another order than their position"),
    ],
)
def test_a_wrong_index_is_named(root, seal, name, column, values, says):
    edit_index(root, name, column, values)
    seal(root)
    index = f"{name}/{index_of(root, name).name}"
    found = [fault.fault for fault in verify(root) if fault.file == index]
    assert any(says in fault for fault in found), found


def test_two_rows_of_one_id_are_named(root, seal):
    edit_index(root, "notes", "episode_id", {2: "notes.jsonl#3"})
    seal(root)
    assert "the episode id 'notes.jsonl#3'" in only(verify(root), "notes/dataset.json")


@pytest.mark.parametrize("column", ["kept", "dropped", "held_out", "steps", "tokens"])
@pytest.mark.parametrize("name", ["notes", "captions"])
def test_wrong_task_totals_are_named(root, seal, name, column):
    edit_tasks(root, name, column, lambda value: value + 1)
    seal(root)
    faults = verify(root)
    assert {fault.file for fault in faults} == {f"{name}/tasks.parquet"}
    assert f"task {name!r}" in faults[0].fault


def edit_tasks(root, name, column, change):
    path = root / name / "tasks.parquet"
    table = pq.read_table(path)
    columns = table.to_pydict()
    columns[column][0] = change(columns[column][0])
    pq.write_table(pa.table(columns, table.schema), path)


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        # Four kept and a duplicate; the empty one may have been found by the scan or by the build.
        ("notes", {5, 6}),
        # Three kept, a duplicate, and two whose pictures only the build looked at.
        ("captions", {4, 5, 6}),
        ("questions", {3}),
    ],
)
def test_how_many_documents_the_scan_found_sound(root, seal, name, sound):
    for count in range(2, 9):
        edit_tasks(root, name, "episodes", lambda _, count=count: count)
        seal(root)
        assert (verify(root) == []) == (count in sound), count


def test_a_scan_says_exactly_how_many_are_sound(corpora, tmp_path, seal):
    root = shutil.copytree(corpora.scanned, tmp_path / "scanned")
    edit_tasks(root, "notes", "episodes", lambda count: count + 1)
    seal(root)
    assert only(verify(root), "notes/tasks.parquet") == ("task 'notes', agent '': 6 episodes, and the indexes hold 5")
    edit_tasks(root, "notes", "episodes", lambda count: count - 1)
    edit_index(root, "notes", "tokens", {0: 6})
    seal(root)
    assert "1 rows have a value in tokens, in a scan" in verify(root)[0].fault


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        ("notes", lambda content: content.update(episodes=8), "notes: 8 documents, 4 kept, and the indexes hold 7"),
        ("notes", lambda content: content.update(documents=None), "its rules of documents are not those of the config"),
        ("pages", lambda content: content["documents"].update(end_of_document=True), "are not those of the config"),
        ("pages", lambda content: content["documents"].update(bad_images="reject"), "are not those of the config"),
        (
            "captions",
            lambda content: content["documents"]["pictures"].update(max_patches=64),
            "are not those of the config",
        ),
        ("notes", lambda content: content["tasks"]["notes"].update(spec="x"), "has specs, or other tasks than 'notes'"),
        ("notes", lambda content: content.update(kind="episodes"), "describes 'notes' of kind episodes"),
    ],
)
def test_a_wrong_dataset_file_is_named(root, seal, name, edit, says):
    path = root / name / "dataset.json"
    content = json.loads(path.read_bytes())
    edit(content)
    path.write_text(json.dumps(content))
    seal(root)
    assert says in only(verify(root), f"{name}/dataset.json")


def test_returns_and_further_tasks_of_documents_are_named(root, seal):
    edit_tasks(root, "notes", "expert_return", lambda _: 1.0)
    seal(root)
    assert only(verify(root), "notes/dataset.json") == (
        "tasks.parquet has a value in expert_return, and documents have none"
    )
    path = root / "notes" / "tasks.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    seal(root)
    assert "tasks.parquet has other rows than the one of 'notes'" in verify(root)[0].fault


def test_rules_of_documents_in_a_dataset_of_episodes_are_named(small, corpora, tmp_path, seal):
    root = shutil.copytree(small.built, tmp_path / "episodes")
    path = root / "arm" / "dataset.json"
    rules = json.loads((corpora.built / "pages" / "dataset.json").read_bytes())["documents"]
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "documents": rules}))
    seal(root)
    assert only(verify(root), "arm/dataset.json") == "holds rules of documents, and the manifest has episodes here"


def test_a_vocabulary_of_another_size_is_named(root, edit_manifest):
    edit_manifest(root, lambda content: content["vocabulary"].update(pieces=1400))
    pieces = TextTokenizer.load(root / "vocabulary.model").pieces
    assert only(verify(root), "vocabulary.model") == f"has {pieces} pieces, and the manifest says 1400"


def test_a_vocabulary_that_is_no_model_is_named(root, seal, edit_manifest):
    (root / "vocabulary.model").write_bytes(b"no model")
    seal(root)
    digest = {entry.path: entry.blake2b for entry in open_directory(root).manifest.files}["vocabulary.model"]
    edit_manifest(root, lambda content: content["vocabulary"].update(blake2b=digest))
    assert "is no SentencePiece model" in only(verify(root), "vocabulary.model")
