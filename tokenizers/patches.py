"""Images ↔ patches, patches as model inputs, and the position of a patch in its image.

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
    rows, columns = patch_grid(height, width)
    blocks = image.reshape(rows, PATCH, columns, PATCH, 3).swapaxes(1, 2)
    return blocks.reshape(rows * columns, PATCH, PATCH, 3)


def image(patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The image (H, W, 3) of patches in raster order; ``grid`` is its number of patch rows and columns."""
    rows, columns = grid
    if patches.shape != (rows * columns, PATCH, PATCH, 3):
        raise ValueError(
            f"{rows} x {columns} patches have shape {(rows * columns, PATCH, PATCH, 3)}, not {patches.shape}"
        )
    return patches.reshape(rows, columns, PATCH, PATCH, 3).swapaxes(1, 2).reshape(rows * PATCH, columns * PATCH, 3)


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """Patch rows and columns of an image; ValueError if a side is no positive multiple of 16."""
    if height <= 0 or width <= 0 or height % PATCH or width % PATCH:
        raise ValueError(f"an image of {height} x {width} pixels does not divide into {PATCH} x {PATCH} patches")
    return height // PATCH, width // PATCH


def scale(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels as float32 model inputs: scaled to [-1, 1], then divided by √16 = 4 (Gato, section 2.1)."""
    return (pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)) / np.float32(4.0)


def unscale(inputs: np.ndarray) -> np.ndarray:
    """The uint8 pixels whose ``scale`` is given (float32, any shape); exact for every pixel value."""
    pixels = np.rint((np.asarray(inputs, np.float32) * np.float32(4.0) + np.float32(1.0)) * np.float32(127.5))
    return np.clip(pixels, 0, 255).astype(np.uint8)


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
