"""Cuts the patches that windows show out of the images of their records.

Legend: B rows, L tokens of a window, G groups of rows, P patch slots of a group.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gatokit.loader.batch import NO_TOKEN
from gatokit.loader.records import OpenShards, Span
from gatokit.loader.sampler import PATCH_LANES, Rng, below
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
    """Patches of one image that a window shows: those from ``number`` on, which stand from ``column`` on."""

    column: int
    number: int
    grid: tuple[int, int]
    pixels: np.ndarray


def cut_patches(
    spans: list[list[Span]],
    shards: OpenShards,
    rng: Rng,
    samples: np.ndarray,
    attempts: np.ndarray,
    *,
    group_rows: int,
    slots: int,
    context: int,
    training: bool,
) -> Patches:
    """The patches of B rows, made of ``spans``, whose groups of ``group_rows`` rows need at most ``slots`` each.

    In training a patch takes a random row and column of the position tables from the intervals of its place in the
    image, in evaluation their mean (Gato, appendix C.3); ``samples`` and ``attempts`` (B,) determine them.
    """
    groups = len(samples) // group_rows
    pixels = np.zeros((groups, slots, PATCH, PATCH, 3), np.uint8)
    token = np.full((groups, slots), NO_TOKEN, np.int32)
    low = np.zeros((2, groups, slots), np.int64)
    size = np.ones((2, groups, slots), np.int64)
    used = [0] * groups
    for row, row_spans in enumerate(spans):
        group = row // group_rows
        for column, number, grid, shown in _shown(row_spans, shards, context):
            begin = used[group]
            used[group] = end = begin + len(shown)
            pixels[group, begin:end] = shown
            token[group, begin:end] = row % group_rows * context + column + np.arange(len(shown))
            low[:, group, begin:end], size[:, group, begin:end] = _intervals(grid, training)[
                :, :, number : number + len(shown)
            ]
    if training and any(used):
        taken = np.nonzero(token >= 0)
        rows, columns = np.divmod(token[taken].astype(np.int64), context)
        rows += taken[0] * group_rows
        for axis in (0, 1):
            u = rng.uniform(samples[rows], attempts[rows], PATCH_LANES + 2 * columns + axis)
            low[axis][taken] += below(u, size[axis][taken])
    return Patches(pixels, token, low[0].astype(np.uint8), low[1].astype(np.uint8))


def _shown(spans: list[Span], shards: OpenShards, context: int) -> Iterator[_Shown]:
    """The images of a row, decoded, in order of their columns."""
    for span in spans:
        stop = span.skip + min(span.take, context - span.column)
        try:
            for image in span.view.images(span.skip, stop):
                begin = max(span.skip - image.token, 0)
                cut = patches(decode(image.data))[begin : stop - image.token]
                grid = image.height // PATCH, image.width // PATCH
                if begin + len(cut) != min(grid[0] * grid[1], stop - image.token):
                    raise ValueError(f"an image does not have {image.height} x {image.width} pixels")
                yield _Shown(span.column + max(image.token - span.skip, 0), begin, grid, cut)
        except (RejectedError, ValueError) as error:
            raise shards.damaged_record(span.shard, span.record, error) from None


@functools.lru_cache(maxsize=1024)
def _intervals(grid: tuple[int, int], training: bool) -> np.ndarray:
    """For the patches of an image in raster order, the first row of the position table that each may take and the
    number of such rows: int64 (2, axes, patches)."""
    found = []
    for count in grid:
        if training:
            low, high = position_intervals(count).T
            found.append(np.stack([low, np.maximum(high - low, 1)]))
        else:
            found.append(np.stack([evaluation_positions(count), np.ones(count, np.int64)]))
    rows, columns = found
    return np.stack([np.repeat(rows, grid[1], axis=1), np.tile(columns, grid[0])], axis=1)
