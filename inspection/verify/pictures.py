"""Do the stored images decode? All of them, by the decoder of training, on all cores."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gatokit.inspection.read.directory import open_shard
from gatokit.inspection.verify.records import Owner
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.record import Record
from gatokit.tokenizers.image_codec import decode

_BATCH = 32


class _Decoded(NamedTuple):
    images: int
    damaged: list[str]


class ImageDecoder:
    """Decodes the images of shards and counts them in ``images``. OpenCV decodes outside of Python's lock, so that
    threads use all cores."""

    def __init__(self) -> None:
        self.images = 0
        self._threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> "ImageDecoder":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def faults(
        self, path: Path, owners: Sequence[Owner], records: int, *, noun: str, count: Callable[[int], None]
    ) -> Iterator[str]:
        """The images of a shard that do not decode, by record and place.

        The shard has no other fault: it holds ``records`` records, those of ``owners`` in order, each an episode or a
        document, as ``noun`` says. ``count`` is called with the number of records whose images were decoded.
        """
        ids = [owner.id for owner in owners for _ in owner.record_tokens]
        pending: deque[tuple[int, Future[_Decoded]]] = deque()

        def first() -> Iterator[str]:
            number, future = pending.popleft()
            decoded = future.result()
            self.images += decoded.images
            count(1)
            for problem in decoded.damaged:
                yield f"record {number:,} of {noun} {ids[number]!r}: {problem}"

        with open_shard(path) as shard:
            for begin in range(0, records, _BATCH):
                for number, data in enumerate(shard.read(begin, min(begin + _BATCH, records)), begin):
                    pending.append((number, self._pool.submit(_decoded, data)))
                    if len(pending) > 4 * self._threads:
                        yield from first()
            while pending:
                yield from first()


def _decoded(data: bytes) -> _Decoded:
    """Decodes the images of a record."""
    record = Record.from_bytes(data)
    damaged = []
    for placed in record.sequence.images:
        try:
            decode(placed.image.data)
        except RejectedError as error:
            begins = record.sequence.step_begin
            step = int(np.searchsorted(begins, placed.token, "right")) - 1
            where = f" of step {record.first_step + step}" if len(begins) else ""
            damaged.append(f"the image{where} at token {placed.token} does not decode: {error.detail}")
    return _Decoded(len(record.sequence.images), damaged)
