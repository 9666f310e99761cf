"""Mu-law companding, its inverse, and the 1,024 uniform bins over [-1, 1] (Gato, appendix B)."""

import numpy as np

from gatokit.schemas.tokens import BINS

MU = 100.0
M = 256.0
"""The magnitude that F takes to 1; larger ones saturate."""


def compand(values: np.ndarray) -> np.ndarray:
    """F(x) = sgn(x) · log(|x|·100 + 1) / log(256·100 + 1), float64; not clipped: |F| > 1 where |x| > 256."""
    exact = np.asarray(values, np.float64)
    return np.copysign(np.log(np.abs(exact) * MU + 1.0) / np.log(M * MU + 1.0), exact)


def expand(companded: np.ndarray) -> np.ndarray:
    """The inverse of F, float64."""
    exact = np.asarray(companded, np.float64)
    return np.copysign(((M * MU + 1.0) ** np.abs(exact) - 1.0) / MU, exact)


def bins(values: np.ndarray) -> np.ndarray:
    """The bin of finite float64 values, clipped to [-1, 1], as float64 integers in [0, 1024).

    floor((x + 1) · 512), except that x = 1 belongs to the last bin.
    """
    scaled = values + 1.0
    scaled *= BINS / 2
    np.maximum(scaled, 0.0, out=scaled)
    np.minimum(scaled, BINS - 1.0, out=scaled)
    return np.floor(scaled, out=scaled)


def centres(numbers: np.ndarray) -> np.ndarray:
    """The centre in [-1, 1] of bins, float64: at most 1/1024 from every value of the bin."""
    return (2.0 * numbers + 1.0) / BINS - 1.0
