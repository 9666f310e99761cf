"""The patches of a batch's pictures, and how many slots a group of rows has for them.

Legend: L tokens of a window, G groups of rows, P patch slots of a group.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from gatokit.loader.batch import NO_TOKEN
from gatokit.loader.records import DamagedRecordError, OpenShards, RecordSpan
from gatokit.loader.rows import Rows
from gatokit.loader.sampler import PATCH_LANES, Rng, below, spread
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import PATCH
from gatokit.tokenizers.image_codec import decode
from gatokit.tokenizers.patches import evaluation_positions, patches, position_intervals

MOST_REDRAWN = 0.005
"""The default slots are so many that of the windows of no dataset a larger share is expected to be drawn again."""
SLOTS = 8
"""The default number of slots is a multiple of this."""
_GROUPS = 4096
"""Groups that are simulated to find it."""


# --- slots -------------------------------------------------------------------------------------------------------


class SlotShares:
    """How full the slots of a group get, by a simulation that does not depend on the seed of a run.

    ``tried`` has for each dataset the patches of some of its windows, int (windows,), and ``bounds`` its share, as in
    ``Sampler``; a group has ``rows`` rows. A group whose slots are full draws its last rows again, so that a row is
    drawn again if it and those before it have more patches than there are slots.
    """

    def __init__(self, tried: Sequence[np.ndarray], bounds: np.ndarray, rows: int) -> None:
        rng = np.random.default_rng(0)
        phases = rng.integers(0, 1 << 64, (_GROUPS, 1), np.uint64)
        self._dataset = np.minimum(np.searchsorted(bounds, spread(phases, np.arange(rows)), "right"), len(tried) - 1)
        patches = np.zeros(self._dataset.shape, np.int64)
        for number, counts in enumerate(tried):
            of = self._dataset == number
            patches[of] = rng.choice(counts, np.count_nonzero(of)) if len(counts) else 0
        self._until = np.cumsum(patches, axis=1) * (patches > 0)
        """Patches of a row and those before it in its group; 0 if the row has none."""

    def slots(self, least: int) -> int:
        """The fewest slots with which no dataset has more than ``MOST_REDRAWN`` of its windows drawn again; at least
        ``least`` if there are pictures."""
        needed = [
            int(np.quantile(self._until[self._dataset == number], 1 - MOST_REDRAWN, method="higher"))
            for number in np.unique(self._dataset).tolist()
        ]
        return -(-max(least if any(needed) else 0, 1, *needed) // SLOTS) * SLOTS

    def redrawn(self, slots: int) -> dict[int, float]:
        """The expected share of windows that are drawn again, by number of the dataset, where it is not 0."""
        shares = {
            number: float(np.mean(self._until[self._dataset == number] > slots))
            for number in np.unique(self._dataset).tolist()
        }
        return {number: share for number, share in shares.items() if share}


# --- pixels ------------------------------------------------------------------------------------------------------


class PatchCutter:
    """Cuts the patches of rows into the slots of their groups.

    In training a patch takes a random row and column of the position tables from the intervals of its place in the
    image, in evaluation their mean (Gato, appendix C.3).
    """

    def __init__(self, rng: Rng, shards: OpenShards, context: int, group_rows: int, slots: int, training: bool) -> None:
        self._rng, self._shards, self._context = rng, shards, context
        self._group_rows, self._slots, self._training = group_rows, slots, training

    def cut(self, rows: Rows) -> tuple[dict[str, np.ndarray], dict[int, DamagedRecordError]]:
        """The patches that rows show, as the fields of ``Batch``, and the rows of which a picture is damaged."""
        damaged: dict[int, DamagedRecordError] = {}
        groups, slots = len(rows.samples) // self._group_rows, self._slots
        pixels = np.zeros((groups, slots, PATCH, PATCH, 3), np.uint8)
        token = np.full((groups, slots), NO_TOKEN, np.int32)
        low = np.zeros((2, groups, slots), np.int64)
        size = np.ones((2, groups, slots), np.int64)
        used = [0] * groups
        for row in np.flatnonzero(rows.patches).tolist():
            group, in_group = divmod(row, self._group_rows)
            try:
                for column, shown, places in self._shown(rows.spans[row]):
                    begin = used[group]
                    used[group] = end = begin + len(shown)
                    pixels[group, begin:end] = shown
                    token[group, begin:end] = in_group * self._context + column + np.arange(len(shown))
                    low[:, group, begin:end], size[:, group, begin:end] = places
            except DamagedRecordError as error:
                damaged[row] = error
        if self._training and any(used):
            taken = np.nonzero(token >= 0)
            in_groups, columns = np.divmod(token[taken].astype(np.int64), self._context)
            numbers = taken[0] * self._group_rows + in_groups
            for axis in (0, 1):
                lanes = PATCH_LANES + 2 * columns + axis
                u = self._rng.uniform(rows.samples[numbers], rows.attempts[numbers], lanes)
                low[axis][taken] += below(u, size[axis][taken])
        low = low.astype(np.uint8)
        return {"patches": pixels, "patch_token": token, "patch_row": low[0], "patch_column": low[1]}, damaged

    def _shown(self, spans: list[RecordSpan]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The patches of each image that a row shows: the first one's column, their pixels, and ``_intervals``."""
        for span in spans:
            stop = span.skip + min(span.take, self._context - span.column)
            try:
                for image in span.view.images(span.skip, stop):
                    first, end = max(span.skip - image.token, 0), stop - image.token
                    shown = patches(decode(image.data))[first:end]
                    grid = image.height // PATCH, image.width // PATCH
                    if first + len(shown) != min(grid[0] * grid[1], end):
                        raise ValueError(f"an image does not have {image.height} x {image.width} pixels")
                    places = _intervals(grid, self._training)[:, :, first:end]
                    yield span.column + max(image.token - span.skip, 0), shown, places
            except (RejectedError, ValueError) as error:
                raise self._shards.damaged(span.shard, span.record, span.record + 1, error) from None


@lru_cache(maxsize=1024)
def _intervals(grid: tuple[int, int], training: bool) -> np.ndarray:
    """For the patches of an image in raster order, the first row of the position table that each may take and the
    number of such rows: int64 (2, axes, patches)."""

    def along(side: int) -> np.ndarray:
        if not training:
            return np.stack([evaluation_positions(side), np.ones(side, np.int64)])
        low, high = position_intervals(side).T
        return np.stack([low, np.maximum(high - low, 1)])

    height, width = grid
    return np.stack([np.repeat(along(height), width, axis=1), np.tile(along(width), height)], axis=1)
