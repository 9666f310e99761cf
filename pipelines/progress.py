"""How a job reports: its progress while it runs, and what happened when in ``build.log.jsonl``."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gatokit.storage import files

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how many pieces of its work are done, and how many there are."""
_LISTING_SECONDS = 5.0
"""Time between two listings of ``gs://``: a listing costs a request."""


def file_counter(progress: Progress | None, stage: str, results: Sequence[Path]) -> Callable[[], None]:
    """A function that reports how many of the files exist. Call it a few times a second."""
    waiting, listed = set(results), 0.0

    def report() -> None:
        nonlocal listed
        now = time.monotonic()
        if progress is None or (waiting and files.is_remote(results[0]) and now - listed < _LISTING_SECONDS):
            return
        waiting.difference_update(files.existing(waiting))
        listed = now
        progress(stage, len(results) - len(waiting), len(results))

    return report


class JobLog:
    """``build.log.jsonl``: one JSON object a line for each event. ``seconds`` has the time that each stage took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = {}

    def write(self, event: str, **values: Any) -> None:
        """Appends an event with the present time."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **values}
        files.append_line(self._path, json.dumps(line, ensure_ascii=False))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a stage and writes how it ended."""
        begin = time.monotonic()
        try:
            yield
        except BaseException as error:
            seconds = round(time.monotonic() - begin, 3)
            with suppress(OSError):  # the first error matters more
                self.write("failed", stage=name, seconds=seconds, error=type(error).__name__, message=str(error))
            raise
        self.seconds[name] = time.monotonic() - begin
        self.write("stage finished", stage=name, seconds=round(self.seconds[name], 3))
