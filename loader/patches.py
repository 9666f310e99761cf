"""Cuts the patches that windows show out of the pictures of their records.

Legend: B rows, L tokens of a window, G groups of rows, P patch slots of a group.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gatokit.loader import rng as draws
from gatokit.loader.batch import NO_TOKEN
from gatokit.loader.canvas import Canvas
from gatokit.loader.records import Readers
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import PATCH
from gatokit.tokenizers.image_codec import decode
from gatokit.tokenizers.patches import evaluation_positions, patches, position_intervals


class Patches(NamedTuple):
    """The fields of a batch of these names."""

    patches: np.ndarray
    patch_token: np.ndarray
    patch_row: np.ndarray
    patch_column: np.ndarray


class _Shown(NamedTuple):
    """Patches of one picture that a window shows: its n from ``number`` on stand at ``column`` and behind it."""

    column: int
    number: int
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
    in evaluation (Gato, appendix C.3). ``samples`` and ``attempts`` (B,) say what for.
    """
    groups = len(samples) // group_rows
    pixels = np.zeros((groups, slots, PATCH, PATCH, 3), np.uint8)
    token = np.full((groups, slots), NO_TOKEN, np.int32)
    low = np.zeros((2, groups, slots), np.int64)
    size = np.ones((2, groups, slots), np.int64)
    used = [0] * groups
    for row in np.flatnonzero(canvas.images).tolist():
        group = row // group_rows
        for column, number, grid, shown in _shown(canvas, readers, row, context):
            begin = used[group]
            used[group] = end = begin + len(shown)
            pixels[group, begin:end] = shown
            token[group, begin:end] = row % group_rows * context + column + np.arange(len(shown))
            low[:, group, begin:end], size[:, group, begin:end] = _places(grid, training)[
                :, :, number : number + len(shown)
            ]
    if training and any(used):
        taken = np.nonzero(token >= 0)
        rows, columns = np.divmod(token[taken].astype(np.int64), context)
        rows += taken[0] * group_rows
        for axis in (0, 1):
            u = draws.uniform(key, samples[rows], attempts[rows], draws.PATCHES + 2 * columns + axis)
            low[axis][taken] += draws.below(u, size[axis][taken])
    return Patches(pixels, token, low[0].astype(np.uint8), low[1].astype(np.uint8))


def _shown(canvas: Canvas, readers: Readers, row: int, context: int) -> Iterator[_Shown]:
    """The pictures of a row, decoded, in order of their columns."""
    for part in canvas.parts[row]:
        stop = part.skip + min(part.take, context - part.column)
        try:
            for picture in part.chunk.pictures(part.skip, stop):
                begin = max(part.skip - picture.token, 0)
                cut = patches(decode(picture.data))[begin : stop - picture.token]
                grid = picture.height // PATCH, picture.width // PATCH
                if begin + len(cut) != min(grid[0] * grid[1], stop - picture.token):
                    raise ValueError(f"a picture has no {picture.height} x {picture.width} pixels")
                yield _Shown(part.column + max(picture.token - part.skip, 0), begin, grid, cut)
        except (RejectedError, ValueError) as error:
            raise readers.damage(part.shard, part.record, part.record + 1, str(error)) from None


@functools.lru_cache(maxsize=1024)
def _places(grid: tuple[int, int], training: bool) -> np.ndarray:
    """Of the patches of a picture in raster order, the first table row that each may take and the number of them:
    int64 (2, axes, patches)."""
    found = []
    for count in grid:
        if training:
            low, high = position_intervals(count).T
            found.append(np.stack([low, np.maximum(high - low, 1)]))
        else:
            found.append(np.stack([evaluation_positions(count), np.ones(count, np.int64)]))
    rows, columns = found
    return np.stack([np.repeat(rows, grid[1], axis=1), np.tile(columns, grid[0])], axis=1)
