"""Where worker processes of a build on objects write what they say."""

import os
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from gatokit.pipelines.beam import jobs


class _StopError(Exception):
    pass


def test_logs_of_workers_lie_in_a_folder_that_nobody_foresees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs: list[Path] = []

    def environment(log: str) -> NoReturn:
        logs.append(Path(log))
        raise _StopError

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(jobs, "ProcessEnvironment", environment)
    monkeypatch.setattr(jobs, "_listed", lambda *_: (Path("pieces"), []))
    where = jobs.Execution(PipelineOptions([]), 2)
    for _ in range(2):
        with pytest.raises(_StopError):
            jobs.run([], lambda _: {}, "build", where, lambda: None, Path("gs:/bucket/out/.work"), lambda *_: None)
    first, second = (log.parent for log in logs)
    assert first != second
    for folder in (first, second):
        assert folder.parent == tmp_path
        status = folder.stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o700, os.getuid())
        assert list(folder.iterdir()) == []
    with pytest.raises(_StopError):
        jobs.run([], lambda _: {}, "build", where, lambda: None, tmp_path / "out" / ".work", lambda *_: None)
    assert logs[-1] == tmp_path / "out" / ".work" / "workers.log"
