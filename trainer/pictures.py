"""Cuts the patches that windows show out of the pictures of their records.

Legend: P patch slots of a group, N patches of a picture.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import PATCH
from gatokit.tokenizers.codec import decode
from gatokit.tokenizers.image import evaluation_positions, patches, position_intervals
from gatokit.trainer import draws
from gatokit.trainer.batch import NO_TOKEN
from gatokit.trainer.canvas import Canvas
from gatokit.trainer.readers import Readers


class Patches(NamedTuple):
    """The fields of a batch of these names."""

    patches: np.ndarray
    patch_token: np.ndarray
    patch_row: np.ndarray
    patch_column: np.ndarray


class Shown(NamedTuple):
    """The patches of one picture that a window shows: of which row and columns, and which of the picture's."""

    row: int
    columns: np.ndarray
    numbers: np.ndarray
    grid: tuple[int, int]
    pixels: np.ndarray


def cut_patches(
    canvas: Canvas,
    readers: Readers,
    samples: np.ndarray,
    attempts: np.ndarray,
    key: np.uint64,
    *,
    group_rows: int,
    slots: int,
    context: int,
    training: bool,
) -> Patches:
    """The patches of a canvas whose groups of ``group_rows`` rows need at most ``slots`` each.

    A patch's place in its picture is drawn anew from the intervals of its row and column in training, and their mean
    in evaluation (Gato, appendix C.3).
    """
    rows = len(samples)
    groups = rows // group_rows
    found = Patches(
        np.zeros((groups, slots, PATCH, PATCH, 3), np.uint8),
        np.full((groups, slots), NO_TOKEN, np.int32),
        np.zeros((groups, slots), np.uint8),
        np.zeros((groups, slots), np.uint8),
    )
    used = [0] * groups
    for row in np.flatnonzero(canvas.images).tolist():
        group = row // group_rows
        for shown in _shown(canvas, readers, row, context):
            begin, end = used[group], used[group] + len(shown.columns)
            used[group] = end
            found.patches[group, begin:end] = shown.pixels
            found.patch_token[group, begin:end] = row % group_rows * context + shown.columns
            for axis, (into, numbers) in enumerate(
                (
                    (found.patch_row, shown.numbers // shown.grid[1]),
                    (found.patch_column, shown.numbers % shown.grid[1]),
                )
            ):
                if training:
                    lane = draws.PATCHES + 2 * shown.columns + axis
                    u = draws.uniform(key, int(samples[row]), int(attempts[row]), lane)
                    low, size = _intervals(shown.grid[axis])
                    into[group, begin:end] = low[numbers] + draws.below(u, size[numbers])
                else:
                    into[group, begin:end] = evaluation_positions(shown.grid[axis])[numbers]
    return found


def _shown(canvas: Canvas, readers: Readers, row: int, context: int) -> Sequence[Shown]:
    """The pictures of a row, decoded, in order of their columns."""
    found = []
    for part in canvas.parts[row]:
        take = min(part.take, context - part.column)
        try:
            for picture in part.chunk.pictures(part.skip, part.skip + take):
                grid = picture.height // PATCH, picture.width // PATCH
                begin = max(part.skip, picture.token)
                end = min(part.skip + take, picture.token + grid[0] * grid[1])
                pixels = decode(picture.data)
                if pixels.shape[:2] != (picture.height, picture.width):
                    raise ValueError(f"a picture of {picture.height} x {picture.width} has pixels {pixels.shape[:2]}")
                numbers = np.arange(begin, end) - picture.token
                columns = np.arange(begin, end) - part.skip + part.column
                found.append(Shown(row, columns, numbers, grid, patches(pixels)[numbers]))
        except (RejectedError, ValueError) as error:
            raise readers.damage(part.shard, part.record, part.record + 1, str(error)) from None
    return found


@functools.lru_cache(maxsize=4096)
def _intervals(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first table row of each of ``count`` patch rows, and how many rows it covers, one at least."""
    low, high = position_intervals(count).T
    return low, np.maximum(high - low, 1)
