"""Runs the command in this process and returns what it printed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from shared import shared

from gatokit.cli.main import main


@dataclass(frozen=True)
class Ran:
    """Exit status and both outputs."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def gatokit(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """``gatokit(*words) -> Ran``."""

    def run(*words: object) -> Ran:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def scanned(tmp_path_factory: pytest.TempPathFactory, recorded_config: Path) -> Path:
    """A finished scan of ``recorded_config``."""
    from gatokit.pipelines.run import scan

    return shared(tmp_path_factory, "scanned", lambda folder: scan(recorded_config, folder / "out")) / "out"
