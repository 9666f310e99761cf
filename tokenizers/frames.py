"""A recorded frame → the image that is stored, the same for a build and for a policy's observation.

A frame is a file (PNG or JPEG) or an array (H, W), (H, W, C) or, channels first, (C, H, W). Its values are 8-bit
pixels, or depths and floats that the field's ``levels`` scale to 8 bits: with levels [low, high], a value v becomes
the pixel round(255 · (v - low) / (high - low)), at least 0 and at most 255; NaN, which depth cameras give where they
see nothing, becomes 0. A fourth channel (alpha) is dropped.
"""

import numpy as np

from gatokit.schemas.errors import RejectedError
from gatokit.schemas.manifest import FieldSpec
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_codec import decode_unchanged, fit


def store_frame(frame: bytes | np.ndarray, field: FieldSpec) -> tuple[EncodedImage, int, int]:
    """The stored image of a frame; how many of its values lie outside of ``levels``, and how many values it has.

    Raises RejectedError as ``fit`` does.
    """
    assert field.image is not None
    has_alpha = len(field.shape) == 3 and field.shape[0 if field.channels_first else 2] == 4
    if field.levels is None and not has_alpha and not field.channels_first:
        return fit(frame, field.image), 0, 0
    values = decode_unchanged(frame) if isinstance(frame, bytes) else np.asarray(frame)
    if isinstance(frame, bytes) and field.dtype == "float32" and values.dtype == np.uint8 and values.shape[2:] == (4,):
        values = values.view(np.float32)  # TFDS stores float32 as the four bytes of a pixel
    if field.channels_first:
        if values.ndim != 3:
            raise RejectedError("wrong_shape", f"the frame is {values.dtype} {values.shape}, not (C, H, W)")
        values = np.moveaxis(values, 0, 2)
    if has_alpha:
        values = values[..., :3]
    if field.levels is None:
        return fit(np.ascontiguousarray(values), field.image), 0, 0
    pixels, outside = _scaled(values, field.levels)
    return fit(pixels, field.image), outside, values.size


def _scaled(values: np.ndarray, levels: tuple[float, float]) -> tuple[np.ndarray, int]:
    """The uint8 pixels of values, and how many lie outside of ``levels``."""
    low, high = levels
    exact = values.astype(np.float64)
    is_nan = np.isnan(exact)
    if is_nan.any():
        exact[is_nan] = -np.inf
    outside = int(np.count_nonzero((exact < low) | (exact > high)))
    scaled = np.clip(255.0 * (exact - low) / (high - low), 0.0, 255.0)
    return np.rint(scaled).astype(np.uint8), outside
