"""Counts finished pieces while a job runs, at a cost that does not grow with the pieces that are left.

Workers of this machine append a line to a file for each piece that they finish, and the command reads what was added.
Other machines share no file that grows, so there the results are listed, the more rarely the longer a listing takes.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gatokit.schemas.progress import Progress
from gatokit.storage import files

_FINISHED = "finished.txt"
"""Name in the working directory of the file that grows."""
_LISTING_SECONDS = 5.0
"""The least time between two listings of ``gs://``: a listing costs requests."""
_LISTING_SHARE = 0.01
"""The share of the time that listings may take."""


def note(work: str | Path, name: str, rows: int) -> None:
    """A worker says that the piece ``name`` is finished and has so many rows."""
    if not files.is_remote(work):
        files.append_line(Path(work) / _FINISHED, f"{rows} {name}")


class Watch:
    """Tells ``progress`` how many pieces of a stage are done.

    ``results`` has the result of each piece by the piece's name, ``sizes`` their bytes of the source by result.
    """

    def __init__(
        self,
        stage: str,
        results: Mapping[str, Path],
        sizes: Mapping[Path, int],
        work: Path,
        progress: Progress | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._results, self._sizes, self._progress = stage, results, sizes, progress
        self._path, self._is_remote, self._clock = work / _FINISHED, files.is_remote(work), clock
        self._done: set[Path] = set()
        self._rows = self._size = self._read = 0
        self._total_size = sum(sizes.values())
        self._next = 0.0
        if not self._is_remote:
            files.remove(self._path)

    def finished(self, results: set[Path]) -> None:
        """These results exist."""
        for result in results - self._done:
            self._done.add(result)
            self._size += self._sizes.get(result, 0)
        self._say()

    def look(self) -> None:
        """Counts what was finished since the last look. Call it as often as you like."""
        if self._progress is None:
            return
        if not self._is_remote:
            self._read_on()
        elif self._clock() >= self._next:
            begin = self._clock()
            self.finished(files.existing(set(self._results.values()) - self._done))
            end = self._clock()
            self._next = end + max(_LISTING_SECONDS, (end - begin) / _LISTING_SHARE)
        self._say()

    def _read_on(self) -> None:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            rows, _, name = line.partition(" ")
            result = self._results.get(name)
            if result is not None and result not in self._done:
                self._done.add(result)
                self._rows += int(rows)
                self._size += self._sizes.get(result, 0)

    def _say(self) -> None:
        if self._progress is not None:
            self._progress(
                self._stage,
                len(self._done),
                len(self._results),
                rows=self._rows,
                size=self._size,
                total_size=self._total_size,
            )
