"""Every kind of damage is found and named; what is sound has no fault."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatokit.inspection import Fault, open_directory
from gatokit.inspection.read.directory import open_shard
from gatokit.inspection.verify.directory import MOST_OF_A_FILE, Faults, verify
from gatokit.inspection.verify.pictures import ImageDecoder
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import Manifest, json_digest
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import EncodedImage, PlacedImage
from gatokit.tokenizers.image_codec import encode


def flip(path, at, mask=0x01):
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


def name_of(path, root):
    return path.relative_to(root).as_posix()


def index_of(shard):
    [index] = shard.parent.glob(f"{shard.stem}-*.index.parquet")
    return index


def only(faults, file):
    """The one fault there is, which must be of ``file``."""
    assert [fault.file for fault in faults] == [file], faults
    return faults[0].fault


def change_index(shard, change):
    path = index_of(shard)
    table = pq.read_table(path)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, table.schema), path)


def change_record(number, change):
    """For ``rewrite``: one record changed."""

    def changed(records):
        record = change(Record.from_bytes(records[number]))
        return [*records[:number], record.to_bytes(), *records[number + 1 :]]

    return changed


def with_tokens(record, **arrays):
    return replace(record, sequence=replace(record.sequence, **arrays))


@pytest.fixture
def lean(small, edit_manifest, tmp_path):
    """A copy of one dataset of the small build: a directory of few files, of every kind."""
    root = shutil.copytree(small.built, tmp_path / "lean", ignore=shutil.ignore_patterns("arm", "against_random"))

    def only_grid(content):
        for datasets in (content, content["config"]):
            datasets["datasets"] = [dataset for dataset in datasets["datasets"] if dataset["name"] == "grid"]
        content["config_digest"] = json_digest(content["config"])
        content["files"] = [entry for entry in content["files"] if (root / entry["path"]).exists()]
        content["data_digest"] = Manifest.model_validate(content).digest_of_data

    edit_manifest(root, only_grid)
    return root


def test_what_is_finished_is_sound(small, lean):
    moved = []
    assert verify(small.built, lambda *now: moved.append(now)) == []
    manifest = open_directory(small.built).manifest
    records = sum(dataset.records for dataset in manifest.datasets)
    assert ("files", len(manifest.files), len(manifest.files)) in moved
    assert moved[-1] == ("records", records, records)
    assert verify(small.scanned) == []
    assert verify(lean) == []


def test_a_flipped_byte_anywhere_in_a_shard_is_found(lean):
    (shard,) = lean.glob("grid/*.arrayrecord")
    for at in [*range(0, shard.stat().st_size, 4093), shard.stat().st_size - 1]:
        flip(shard, at)
        assert only(verify(lean), name_of(shard, lean)) == "its content does not match its digest"
        flip(shard, at)
    assert verify(lean) == []


def test_a_flipped_byte_in_any_file_is_found(lean):
    for path in sorted(lean.rglob("*")):
        if path.is_file() and path.name != "build.log.jsonl" and ".scan" not in path.parts:
            for at in (0, path.stat().st_size // 2, path.stat().st_size - 1):
                flip(path, at)
                assert name_of(path, lean) in {fault.file for fault in verify(lean)}, (path, at)
                flip(path, at)
    assert verify(lean) == []


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(lean):
    path = lean / "manifest.json"
    for at in range(0, path.stat().st_size, 101):
        for mask in (0x01, 0x03, 0x20):
            flip(path, at, mask)
            only(verify(lean), "manifest.json")
            flip(path, at, mask)
    assert verify(lean) == []


@pytest.mark.parametrize("left", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_shard_is_found(damaged, shard, left):
    data = shard.read_bytes()
    shard.write_bytes(data[: int(left if left >= 1 else left * len(data))])
    assert only(verify(damaged), name_of(shard, damaged)).startswith("truncated")


def test_a_shard_with_more_bytes_is_found(damaged, shard):
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert only(verify(damaged), name_of(shard, damaged)).startswith("too long")


def test_swapped_shards_are_both_named(damaged, shard):
    other = damaged / "grid" / open_directory(damaged).datasets["grid"].totals.splits[0].parts[0].file
    shutil.move(shard, damaged / "kept")
    shutil.move(other, shard)
    shutil.move(damaged / "kept", other)
    found = verify(damaged)
    assert {fault.file for fault in found} == {name_of(shard, damaged), name_of(other, damaged)}
    assert {fault.fault for fault in found} == {
        f"holds the content of {name_of(other, damaged)}",
        f"holds the content of {name_of(shard, damaged)}",
    }


def test_every_missing_file_is_named(lean):
    for entry in open_directory(lean).manifest.files:
        shutil.move(lean / entry.path, lean.parent / "away")
        assert Fault(entry.path, "missing") in verify(lean)
        shutil.move(lean.parent / "away", lean / entry.path)
    assert verify(lean) == []


def test_unlisted_files_are_named(damaged):
    (damaged / "arm" / "notes.txt").write_text("mine")
    (damaged / "arm" / ".tmp-1234-x.arrayrecord").write_text("")
    (damaged / ".work" / "scan").mkdir(parents=True)
    (damaged / ".work" / "scan" / "x.parquet").write_text("")
    (damaged / ".lock").write_text("")
    (damaged / "other").symlink_to(damaged / "grid")
    found = {fault.file: fault.fault for fault in verify(damaged)}
    assert set(found) == {"arm/notes.txt", "arm/.tmp-1234-x.arrayrecord", ".work", ".lock", "other"}
    assert "temporary file" in found["arm/.tmp-1234-x.arrayrecord"]
    assert "did not end" in found[".work"]


def test_a_build_without_a_manifest_is_not_complete(damaged):
    (damaged / "manifest.json").unlink()
    assert only(verify(damaged), "manifest.json").startswith("missing: the directory is not complete")


def test_no_directory_is_no_fault(tmp_path):
    with pytest.raises(ConfigError, match="there is no directory"):
        verify(tmp_path / "absent")


def test_an_edited_manifest_is_named(damaged):
    path = damaged / "manifest.json"
    path.write_text(path.read_text().replace('"weight": 1.0', '"weight": 2.0', 1))
    assert only(verify(damaged), "manifest.json").startswith("was edited")


def test_another_spelling_of_the_manifest_is_named(damaged):
    path = damaged / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes())))
    assert "another spelling" in only(verify(damaged), "manifest.json")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda content: content["datasets"][0].update(tokens=1), "arm: tokens is 1, and its splits add up to"),
        (lambda content: content["datasets"][0].update(shards=99), "arm: shards is 99"),
        (lambda content: content["tokenizer"].update(separator=7), "the separator"),
        (lambda content: content["config"].update(seed=5), "the config does not match its digest"),
        (lambda content: content["datasets"][0].update(name="leg"), "not those of its config"),
        (lambda content: content["files"].pop(), "is not among the files"),
        (lambda content: content.update(data_digest="0" * 64), "the data digest is not that of its shards"),
        (lambda content: content["provenance"].clear(), "what made its splits is not what its provenance lists"),
        (
            lambda content: content["files"].append({"path": "extra", "size": 0, "blake2b": ""}),
            "extra belongs to no dataset",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_named(damaged, edit_manifest, edit, says):
    edit_manifest(damaged, edit)
    assert any(fault.file == "manifest.json" and says in fault.fault for fault in verify(damaged))


def test_wrong_totals_with_right_sums_are_found_in_the_indexes(damaged, edit_manifest):
    edit_manifest(damaged, lambda content: content["datasets"][0].update(episodes=31))
    assert "31 episodes" in only(verify(damaged), "manifest.json")


# From here on the digests are right: a faulty writer, not a faulty disk.


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: replace(record, owner="another"), "it belongs to episode 'another'"),
        (lambda record: replace(record, chunks=record.chunks + 1), "and the index says 0 of"),
        (lambda record: replace(record, first_step=3), "it begins with step 3, and step 0 comes next"),
        (lambda record: replace(record, spec="0" * 12), "it has the spec 000000000000"),
        (lambda record: replace(record, reward=record.reward + 1), "its rewards sum to"),
        (lambda record: replace(record, flags=record.flags | 2), "marked as the first, last or terminal one"),
        (lambda record: with_tokens(record, tokens=record.sequence.tokens[::-1].copy()), "which no"),
        (lambda record: with_tokens(record, kinds=np.roll(record.sequence.kinds, 1)), "of its spec"),
        (lambda record: with_tokens(record, positions=record.sequence.positions + 1), "the positions"),
        (lambda record: with_tokens(record, images=record.sequence.images[1:]), "its images are not at the tokens"),
        (
            lambda record: with_tokens(
                record,
                images=[
                    PlacedImage(0, EncodedImage(encode(np.zeros((16, 96, 3), np.uint8)), 32, 48)),
                    *record.sequence.images[1:],
                ],
            ),
            "observation/image at step 0 of the record: the encoded image is 16 x 96 pixels",
        ),
        (
            lambda record: with_tokens(
                record, images=[PlacedImage(0, EncodedImage(b"gif", 32, 48)), *record.sequence.images[1:]]
            ),
            "neither PNG nor JPEG",
        ),
    ],
)
def test_a_wrong_record_is_named(damaged, shard, rewrite, seal, change, says):
    rewrite(shard, change_record(0, change))
    seal(damaged)
    found = verify(damaged)
    assert {fault.file for fault in found} == {name_of(shard, damaged)}
    assert any(says in fault.fault for fault in found), found
    assert all("episode '" in fault.fault for fault in found)


def test_bytes_that_are_no_record_are_named(damaged, shard, rewrite, seal):
    rewrite(shard, lambda records: [b"\xff\xff", *records[1:]])
    seal(damaged)
    assert "record 0 of episode" in only(verify(damaged), name_of(shard, damaged))


def test_exchanged_records_are_named(damaged, shard, rewrite, seal):
    rewrite(shard, lambda records: [records[1], records[0], *records[2:]])
    seal(damaged)
    found = verify(damaged)
    assert {fault.file for fault in found} == {name_of(shard, damaged)}
    assert found[0].fault.startswith("record 0 of episode")


def test_a_missing_record_is_named(damaged, shard, rewrite, seal):
    rewrite(shard, lambda records: records[:-1])
    seal(damaged)
    fault = only(verify(damaged), name_of(shard, damaged))
    assert fault.startswith("holds ")
    assert "records, and the manifest says" in fault


def test_a_shard_of_another_format_is_named(damaged, shard, seal):
    shard.write_bytes(b"something else" * 8192)
    seal(damaged)
    assert "ArrayRecord" in only(verify(damaged), name_of(shard, damaged))


def first_kept(columns):
    return columns["kept"].index(True)


def set_first_kept(name, value):
    def change(columns):
        columns[name][first_kept(columns)] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_first_kept("reason", "too_short"), "are kept and have a reason"),
        (set_first_kept("split", None), "are kept and in no split"),
        (set_first_kept("part", None), "are kept and not stored"),
        (set_first_kept("tokens", 7), "have other tokens than their records"),
        (set_first_kept("spec", "0" * 12), "have another spec"),
        (set_first_kept("return", -1e9), "are kept below the threshold"),
        (set_first_kept("first_record", 1000), "do not cover"),
        (set_first_kept("task", "unheard of"), "have another spec"),
        (set_first_kept("kept", False), "are dropped without a known reason"),
    ],
)
def test_a_wrong_index_is_named(damaged, shard, seal, change, says):
    change_index(shard, change)
    seal(damaged)
    index = name_of(index_of(shard), damaged)
    found = [fault.fault for fault in verify(damaged) if fault.file == index]
    assert any(says in fault for fault in found), found


def test_an_index_without_a_row_or_column_is_named(damaged, shard, seal):
    table = pq.read_table(index_of(shard))
    pq.write_table(table.slice(1), index_of(shard))
    seal(damaged)
    assert "rows" in verify(damaged)[0].fault
    pq.write_table(table.drop_columns(["lost"]), index_of(shard))
    seal(damaged)
    assert only(verify(damaged), name_of(index_of(shard), damaged)).startswith("has the columns")
    pq.write_table(table.replace_schema_metadata({"gatokit.index": "99"}), index_of(shard))
    seal(damaged)
    assert "index version 99" in only(verify(damaged), name_of(index_of(shard), damaged))
    index_of(shard).write_bytes(b"PAR1")
    seal(damaged)
    assert "cannot be read" in only(verify(damaged), name_of(index_of(shard), damaged))


def test_two_rows_of_one_id_are_named(damaged, shard, seal):
    change_index(shard, lambda columns: columns["episode_id"].__setitem__(0, columns["episode_id"][1]))
    seal(damaged)
    assert any("have the episode id" in fault.fault for fault in verify(damaged))


@pytest.mark.parametrize("column", ["episodes", "kept", "dropped", "held_out", "steps", "tokens"])
def test_wrong_task_totals_are_named(damaged, seal, column):
    path = damaged / "arm" / "tasks.parquet"
    table = pq.read_table(path)
    columns = table.to_pydict()
    columns[column][0] += 1
    pq.write_table(pa.table(columns, table.schema), path)
    seal(damaged)
    found = verify(damaged)
    assert {fault.file for fault in found} == {"arm/tasks.parquet"}
    assert "task 'push'" in found[0].fault


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda content: content.update(episodes=1), "1 episodes"),
        (lambda content: content.update(name="leg"), "describes 'leg'"),
        (lambda content: content["tasks"].pop("push"), "task 'push' stands only in one"),
        (lambda content: content["tasks"]["push"].update(spec="x"), "has the spec x"),
        (lambda content: next(iter(content["specs"].values()))["fields"][0].update(dtype="x"), "was edited"),
        (lambda content: content.update(version=99), "version 99"),
    ],
)
def test_a_wrong_dataset_file_is_named(damaged, seal, edit, says):
    path = damaged / "arm" / "dataset.json"
    content = json.loads(path.read_bytes())
    edit(content)
    path.write_text(json.dumps(content))
    seal(damaged)
    assert says in only(verify(damaged), "arm/dataset.json")


def test_many_faults_of_a_file_are_counted():
    faults = Faults()
    for number in range(MOST_OF_A_FILE + 5):
        faults.add("a", f"fault {number}")
    faults.add("b", "other")
    listed = faults.listed()
    assert len(listed) == MOST_OF_A_FILE + 2
    assert listed[-1] == Fault("a", "and 5 more faults of this file")


# --- images that do not decode -----------------------------------------------------------------------------------


def decoded(root):
    moved = []
    with ImageDecoder() as decoder:
        faults = verify(root, lambda *now: moved.append(now), decoder)
    records = sum(dataset.records for dataset in open_directory(root).manifest.datasets)
    assert moved[-1] == ("images", records, records) or faults
    return faults, decoder.images


def test_all_images_of_a_sound_build_decode(small):
    images = 0
    for path in small.built.rglob("*.arrayrecord"):
        with open_shard(path) as opened:
            images += sum(len(Record.from_bytes(data).sequence.images) for data in opened.read(0, opened.records))
    assert images == 231
    assert decoded(small.built) == ([], images)


def test_an_image_that_does_not_decode_is_named_with_its_step(damaged, shard, rewrite, seal):
    """Only the pixels are damaged: everything that stands in headers and in the index agrees."""
    with open_shard(shard) as opened:
        [data] = opened.read(1, 2)
    record = Record.from_bytes(data)
    at = 2

    def damage(record):
        placed = record.sequence.images[at]
        data = bytearray(placed.image.data)
        data[len(data) // 2] ^= 0x55
        images = list(record.sequence.images)
        images[at] = PlacedImage(placed.token, placed.image._replace(data=bytes(data)))
        return with_tokens(record, images=images)

    rewrite(shard, change_record(1, damage))
    seal(damaged)
    assert verify(damaged) == []
    faults, images = decoded(damaged)
    step, token = record.first_step + at, record.sequence.images[at].token
    assert only(faults, name_of(shard, damaged)) == (
        f"record 1 of episode {record.owner!r}: the image of step {step} at token {token} does not decode: the PNG's "
        "IDAT chunk does not match its checksum"
    )
    assert images > at
