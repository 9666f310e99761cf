"""What ``verify`` finds wrong."""

from collections import Counter
from dataclasses import dataclass

MOST_OF_A_FILE = 10
"""A file's further faults are counted and not listed."""


@dataclass(frozen=True)
class Fault:
    """One fault: the file below the directory, with forward slashes, and what is wrong with it."""

    file: str
    fault: str


class Faults:
    """Collects faults, at most ``MOST_OF_A_FILE`` sentences of each file."""

    def __init__(self) -> None:
        self._found: list[Fault] = []
        self._counts: Counter[str] = Counter()

    def add(self, file: str, fault: str) -> None:
        """Notes one fault of a file."""
        self._counts[file] += 1
        if self._counts[file] <= MOST_OF_A_FILE:
            self._found.append(Fault(file, fault))

    def extend(self, faults: list[Fault]) -> None:
        """Notes faults in order."""
        for fault in faults:
            self.add(fault.file, fault.fault)

    def has(self, file: str) -> bool:
        """Whether anything is wrong with a file."""
        return file in self._counts

    def listed(self) -> list[Fault]:
        """All faults in the order in which they were found, the counts of those left out last."""
        more = {file: count - MOST_OF_A_FILE for file, count in self._counts.items() if count > MOST_OF_A_FILE}
        return self._found + [Fault(file, f"and {count:,} more faults of this file") for file, count in more.items()]
