"""Reads many small files in order, several at a time where each waits for an answer."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from gatokit.storage.files import CONNECTIONS, is_remote

_MOST_BYTES = 64 << 20
"""About as many bytes are read before they are asked for."""

Read = TypeVar("Read")


def prefetch(paths: Iterable[Path], read: Callable[[Path], Read], size: Callable[[Read], int]) -> Iterator[Read]:
    """Yields ``read(path)`` for each path, in order. Several paths on ``gs://`` are read at a time.

    How many at a time follows from the ``size``, in bytes, of the largest result so far.
    """
    rest = iter(paths)
    for first in rest:
        result = read(first)
        largest = max(1, size(result))
        yield result
        if not is_remote(first):
            yield from map(read, rest)
            return
        waiting: deque[Future[Read]] = deque()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            try:
                while True:
                    most = max(1, min(CONNECTIONS, _MOST_BYTES // largest))
                    waiting.extend(pool.submit(read, path) for path in islice(rest, max(0, most - len(waiting))))
                    if not waiting:
                        return
                    result = waiting.popleft().result()
                    largest = max(largest, size(result))
                    yield result
            finally:
                for future in waiting:
                    future.cancel()
