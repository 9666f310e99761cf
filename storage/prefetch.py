"""Many small files read one after the other, where each waits for its answer."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from gatokit.storage.gcs import CONNECTIONS, is_remote

_MOST_BYTES = 64 << 20
"""What is read before it is asked for stays about below this."""

Read = TypeVar("Read")


def ahead(paths: Iterable[Path], read: Callable[[Path], Read], size: Callable[[Read], int]) -> Iterator[Read]:
    """What ``read`` makes of each path, in order; of paths on ``gs://`` several are read at a time.

    How many follows from the ``size``, in bytes, of the largest so far.
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
        with ThreadPoolExecutor(CONNECTIONS) as others:
            try:
                while True:
                    most = max(1, min(CONNECTIONS, _MOST_BYTES // largest))
                    more = islice(rest, max(0, most - len(waiting)))
                    waiting.extend(others.submit(read, path) for path in more)
                    if not waiting:
                        return
                    result = waiting.popleft().result()
                    largest = max(largest, size(result))
                    yield result
            finally:
                for future in waiting:
                    future.cancel()
