"""Opening directories: what is mixed, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatokit.loader.mixture import open_mixture
from gatokit.pipelines.run import scan
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import digest, json_digest
from gatokit.storage.folder import read_manifest

NAMES = ("arm", "grid", "books", "captions", "questions", "pages")


@pytest.fixture
def other(mixed: Path, tmp_path: Path) -> Path:
    """A copy of the build that may be changed."""
    return Path(shutil.copytree(mixed, tmp_path / "other"))


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest as a whole one of another build would be."""
    import json

    content = json.loads((directory / "manifest.json").read_bytes())
    del content["digest"]
    change(content)
    content["digest"] = json_digest(content)
    (directory / "manifest.json").write_text(json.dumps(content))


def test_weights_are_those_of_the_build_normalised(mixed: Path) -> None:
    mixture = open_mixture([mixed])
    assert mixture.names == NAMES
    np.testing.assert_allclose(mixture.weights, np.array([3, 2, 1.5, 1, 1, 1]) / 9.5)
    assert mixture.tokenizer.separator == 33024
    assert digest(mixture.vocabulary) == mixture.vocabulary_digest
    assert [dataset.pairs for dataset in mixture.datasets] == [None, None, None, 1, 5, None]
    assert mixture.datasets[0].described.spec_of("push").fields[0].path == "observation/image"
    assert mixture.with_records("held_out") == ("arm", "grid", "books", "captions", "questions", "pages")


def test_configured_weights_leave_other_datasets_out(mixed: Path) -> None:
    mixture = open_mixture([mixed], {"pages": 1, "grid": 3, "arm": 0})
    assert mixture.names == ("grid", "pages")
    np.testing.assert_allclose(mixture.weights, [0.75, 0.25])


def test_two_directories_mix_by_name(mixed: Path, other: Path) -> None:
    mixture = open_mixture([mixed, f"new={other}"], {"arm": 1, "new/arm": 2})
    assert mixture.names == ("arm", "new/arm")
    assert mixture.datasets[1].path == other / "arm"
    with pytest.raises(ConfigError, match=rf"{other} and {mixed} both have a dataset arm: .* new={other}"):
        open_mixture([mixed, other])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"arm": 1, "captoins": 1}, r"input.weights.captoins: .* did you mean 'captions'\?"),
        ({"zzz": 1}, "input.weights.zzz: .* there are arm, grid, books, captions, questions, pages"),
        ({"arm": 0}, "no dataset has a weight above 0"),
        ({"arm": float("inf")}, "input.weights.arm: a weight is a finite number"),
    ],
)
def test_wrong_weights_are_refused(mixed: Path, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_mixture([mixed], weights)


def test_other_tokens_are_refused_by_name(mixed: Path, other: Path) -> None:
    def move(content: dict[str, Any]) -> None:
        content["tokenizer"] |= {"discrete_offset": 33024, "separator": 34048, "vocabulary_size": 34049}

    edit(other, lambda content: content["vocabulary"].update(blake2b="ab" * 32))
    with pytest.raises(ConfigError, match=f"new={other} was built with vocabulary abababababababab and {mixed} with "):
        open_mixture([mixed, f"new={other}"])
    edit(other, move)
    with pytest.raises(ConfigError, match=f"new={other} was built with discrete_offset 33024 and {mixed} with 0, so"):
        open_mixture([mixed, f"new={other}"])


def test_directories_that_hold_no_build_are_refused(mixed_config: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory to train from"):
        open_mixture([])
    with pytest.raises(ConfigError, match=f"there is no directory {tmp_path / 'nowhere'}"):
        open_mixture([tmp_path / "nowhere"])
    scan(mixed_config, tmp_path / "scanned")
    with pytest.raises(ConfigError, match="scanned is a scan, which stores no tokens"):
        open_mixture([tmp_path / "scanned"])
    edit(other, lambda content: content.update(version=99))
    with pytest.raises(DataError, match=f"{other}/manifest.json has format version 99"):
        open_mixture([other])
    (other / "manifest.json").unlink()
    with pytest.raises(DataError, match=f"{other} has no manifest.json"):
        open_mixture([other])


def test_missing_and_changed_files_are_named(other: Path) -> None:
    manifest = read_manifest(other)
    shard = other / "arm" / manifest.datasets[0].splits[0].parts[0].file
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{shard} has {len(content) - 1} bytes and the manifest says {len(content)}"):
        open_mixture([other])
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard} cannot be read: No such file or directory; gatokit verify"):
        open_mixture([other])
    # A dataset that is not drawn may be missing.
    assert open_mixture([other], {"grid": 1}).names == ("grid",)
    vocabulary = other / "vocabulary.model"
    vocabulary.write_bytes(vocabulary.read_bytes()[::-1])
    with pytest.raises(DataError, match=r"vocabulary\.model is not the model that the tokens were made with"):
        open_mixture([other])


def test_a_damaged_index_is_named(other: Path) -> None:
    index = other / "grid" / read_manifest(other).datasets[1].splits[0].index
    index.write_bytes(index.read_bytes()[:-100].ljust(index.stat().st_size))
    with pytest.raises(DataError, match=rf"{index} cannot be read"):
        open_mixture([other]).datasets[1].index("train")
