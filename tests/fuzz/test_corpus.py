"""Every input that a search found worth keeping, through its target."""

from pathlib import Path

import pytest
from targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for name in TARGETS for path in (CORPUS / name).iterdir())


@pytest.mark.parametrize("name", TARGETS)
def test_readers_raise_their_own_errors_alone(name: str) -> None:
    files = [path for path in FILES if path.parent.name == name]
    assert len(files) >= 1
    for path in files:
        TARGETS[name](path.read_bytes())
