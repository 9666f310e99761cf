"""The patches of an image, and the position of a patch in its image.

Legend: H, W pixels (multiples of 16), P = H/16 · W/16 patches, R rows or columns of patches.
"""

import numpy as np

from gatokit.schemas.tokens import PATCH

POSITION_INTERVALS = 128
"""Rows of the embedding tables of patch rows and patch columns (Gato, appendix C.3)."""


def patches(image: np.ndarray) -> np.ndarray:
    """The 16×16 patches of an image (H, W, 3) in raster order, (P, 16, 16, 3) of the same dtype.

    See Gato, section 2.1. Raises ValueError for another shape, or if a side is no multiple of 16.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image has shape (H, W, 3), not {image.shape}")
    height, width = image.shape[:2]
    if not image.size or height % PATCH or width % PATCH:
        raise ValueError(f"an image of {height} x {width} pixels does not divide into {PATCH} x {PATCH} patches")
    blocks = image.reshape(height // PATCH, PATCH, width // PATCH, PATCH, 3).swapaxes(1, 2)
    return blocks.reshape(-1, PATCH, PATCH, 3)


def position_intervals(count: int) -> np.ndarray:
    """The interval of table rows that each of ``count`` patch rows (or columns) covers, int64 (R, 2).

    It is the patch's interval in the image, as a share of the image's side, times 128, with both ends rounded (Gato,
    appendix C.3): five columns have bounds 0, 26, 51, 77, 102, 128. The upper end is exclusive and may be 128.
    """
    bounds = np.rint(np.arange(count + 1) * POSITION_INTERVALS / count).astype(np.int64)
    return np.stack([bounds[:-1], bounds[1:]], axis=1)


def evaluation_positions(count: int) -> np.ndarray:
    """The table row of each of ``count`` patch rows (or columns) in evaluation, int64 (R,): the rounded mean of its
    interval, at most 127 (Gato, appendix C.3)."""
    return np.minimum(POSITION_INTERVALS - 1, np.rint(position_intervals(count).mean(axis=1)).astype(np.int64))
