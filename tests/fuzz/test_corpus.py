"""Every input that a search found worth keeping, through its target: what once failed, as files by what it is, and
what reaches other lines than the rest, in an archive a target."""

import zipfile
from pathlib import Path

import pytest
from targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_readers_raise_their_own_errors_alone(name: str) -> None:
    inputs = {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}
    with zipfile.ZipFile(CORPUS / f"{name}.zip") as archive:
        inputs |= {item: archive.read(item) for item in archive.namelist()}
    assert len(inputs) > 1
    for data in inputs.values():
        TARGETS[name](data)
