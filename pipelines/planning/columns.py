"""Columns over all rows of a scan, which come a unit at a time."""

import numpy as np

_BLOCK_ROWS = 1 << 20


class Column:
    """An array that grows at its end.

    It grows by large blocks: the many small arrays that units bring would leave memory behind that nobody else can use.
    """

    def __init__(self, dtype: type, *shape: int) -> None:
        """``shape`` is that of a row; nothing for a number."""
        self._full: list[np.ndarray] = []
        self._block: np.ndarray = np.empty((0, *shape), dtype)
        self._dtype, self._shape, self._filled = dtype, shape, 0

    def add(self, values: np.ndarray) -> None:
        """Appends rows."""
        while len(values):
            if self._filled == len(self._block):
                self._full.append(self._block)
                self._block, self._filled = np.empty((_BLOCK_ROWS, *self._shape), self._dtype), 0
            taken = min(len(values), len(self._block) - self._filled)
            self._block[self._filled : self._filled + taken] = values[:taken]
            self._filled, values = self._filled + taken, values[taken:]

    def joined(self) -> np.ndarray:
        """All rows; the column is given up here."""
        full, self._full = self._full, []
        return np.concatenate([*full, self._block[: self._filled]])
