"""``manifest.json`` and ``dataset.json`` come back as they were, and every edit is noticed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gatokit.schemas.errors import DataError
from gatokit.schemas.manifest import (
    DatasetEntry,
    DatasetFile,
    EpisodeSpec,
    FieldSpec,
    FileEntry,
    Manifest,
    ShardEntry,
    SplitEntry,
    TaskEntry,
    TokenizerSettings,
    VocabularyEntry,
)
from gatokit.storage.folder import read_dataset_file, read_manifest

PART = ShardEntry(file="a-1.arrayrecord", size=70, blake2b="p1", training=3, held_out=2, tokens=40)
SPLIT = SplitEntry(fingerprint="1", index="a-1.index.parquet", rows=6, kept=5, parts=[PART])
DATASET = DatasetEntry(
    name="a",
    kind="episodes",
    directory="a",
    weight=2.5,
    license="CC-BY-4.0",
    hz=None,
    ordered=True,
    episodes=6,
    kept=5,
    tokens=40,
    training=3,
    held_out=2,
    shards=1,
    bytes=70,
    splits=[SPLIT],
)
MANIFEST = Manifest(
    content="build",
    packages={"numpy": "2.4.0"},
    config={"vocabulary": "v.model", "name": "Zürich"},
    config_digest="c0",
    tokenizer=TokenizerSettings(discrete_offset=0, separator=33024, vocabulary_size=33025, chunk_tokens=4096),
    vocabulary=VocabularyEntry(file="vocabulary.model", pieces=330, blake2b="v0"),
    datasets=[DATASET],
    files=[FileEntry(path="a/a-1.arrayrecord", size=70, blake2b="p1")],
)
DIGEST = "96144e7678113463b65a11d974b326b0fbabb66ff50e017168b3b6e35c86271e"


def refused(directory: Path, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        read_manifest(directory)


def rewrite(directory: Path, change: Any) -> None:
    """Writes the manifest with ``change`` done to its content, and the digest as it was."""
    content = json.loads(MANIFEST.to_bytes())
    change(content)
    (directory / "manifest.json").write_text(json.dumps(content))


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(MANIFEST.to_bytes())
    assert read_manifest(tmp_path) == MANIFEST.model_copy(update={"digest": DIGEST})
    assert read_manifest(tmp_path).to_bytes() == MANIFEST.to_bytes()


def test_digest_is_the_last_key_and_that_of_everything_else() -> None:
    lines = MANIFEST.to_bytes().decode().splitlines()
    assert lines[-2:] == [f' "digest": "{DIGEST}"', "}"]
    assert "Zürich" in MANIFEST.to_bytes().decode()


def test_records_are_training_and_held_out_ones() -> None:
    assert (PART.records, DATASET.records) == (5, 5)


def test_layout_of_the_json_does_not_matter(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda content: None)
    assert read_manifest(tmp_path).datasets == [DATASET]


def set_size(content: dict[str, Any]) -> None:
    content["files"][0]["size"] = 71


@pytest.mark.parametrize(
    "change",
    [
        set_size,
        lambda content: content.update(extra=1),
        lambda content: content["datasets"][0].update(weight=2.6),
        lambda content: content.update(config_digest="\ud800"),
        lambda content: content.update(digest="0" * 64),
        lambda content: content.pop("digest"),
        lambda content: content.pop("files"),
    ],
)
def test_an_edit_is_noticed(tmp_path: Path, change: Any) -> None:
    rewrite(tmp_path, change)
    refused(tmp_path, f"{tmp_path}/manifest.json was edited: its content does not match its own digest")


def test_a_newer_version_says_so(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda content: content.update(version=3, invention=[1]))
    refused(
        tmp_path,
        f"{tmp_path}/manifest.json has format version 3 and this gatokit reads up to 2: install a newer gatokit",
    )


@pytest.mark.parametrize("version", ["1", None, 1.5])
def test_a_version_that_is_no_number_is_refused(tmp_path: Path, version: object) -> None:
    rewrite(tmp_path, lambda content: content.update(version=version))
    refused(tmp_path, f"{tmp_path}/manifest.json has format version {version} and this gatokit reads up to 2")


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format": "other"}'])
def test_other_json_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    refused(tmp_path, f"{tmp_path}/manifest.json is no Gatokit manifest")


NAN = MANIFEST.to_bytes().replace(b'"weight": 2.5', b'"weight": NaN')


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, MANIFEST.to_bytes()[:-20], NAN])
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    refused(tmp_path, f"{tmp_path}/manifest.json cannot be read as JSON: ")


def test_a_directory_without_manifest_is_not_finished(tmp_path: Path) -> None:
    refused(
        tmp_path,
        f"{tmp_path} has no manifest.json: it is no finished build or scan. Run the build again to finish it",
    )


def test_a_field_of_a_wrong_type_is_named_though_the_digest_holds(tmp_path: Path) -> None:
    broken = MANIFEST.model_copy(update={"datasets": [DATASET.model_copy(update={"kept": "five"})]})
    with pytest.warns(UserWarning, match="PydanticSerializationUnexpectedValue"):
        (tmp_path / "manifest.json").write_bytes(broken.to_bytes())
    refused(tmp_path, f"{tmp_path}/manifest.json: datasets.0.kept: Input should be a valid integer")


SPEC = EpisodeSpec(fields=(FieldSpec(path="action", kind="discrete", dtype="int64", num=3),))
DESCRIBED = DatasetFile(
    name="a",
    kind="episodes",
    specs={SPEC.id: SPEC},
    tasks={"go": TaskEntry(spec=SPEC.id, ordered=True)},
    episodes=6,
    kept=5,
)


def test_dataset_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(DESCRIBED.to_bytes())
    assert read_dataset_file(path.parent) == DESCRIBED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DESCRIBED.to_bytes().decode().replace('"version": 2', '"version": 3'), "has format version 3 and"),
        (DESCRIBED.to_bytes().decode().replace('"kept": 5', '"kept": "x"'), "cannot be read: "),
        (DESCRIBED.to_bytes().decode().replace('"version": 2', '"version": "x"'), "cannot be read: "),
        ("{}", "cannot be read: "),
        ("[]", "cannot be read: "),
        ("", "cannot be read as JSON: "),
    ],
)
def test_a_bad_dataset_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"^{re.escape(f'{path} {message}')}"):
        read_dataset_file(path.parent)


def test_a_missing_dataset_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/dataset.json cannot be read: ")):
        read_dataset_file(tmp_path)
