"""Random numbers that are a function of what they are drawn for: a hash of seed, sample, attempt and lane.

Nothing has a state, so any sample can be drawn anywhere, in any order, and gives the same numbers. The hash is
splitmix64: of every sample a stream of its own, and of the stream the element that attempt and lane name.
"""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ATTEMPT = np.uint64(40)

DATASET, TASK, OWNER, START, PROMPTED, PROMPT_END, PROMPT_OWNER, PROMPT_START, HIDE, SLOT, CROP = range(11)
"""Lanes: what a sample draws one number for."""
LANES = 11
PAIRS = 1 << 20
"""The lane of the first of a sequence's pairs; the others follow."""
PATCHES = 1 << 30
"""The lane of the row of the patch at position 0 of a window; its column, and the patches behind it, follow."""
PIVOTS = 1 << 38
"""The lane of the first pivot of a block of samples; the others follow."""


def key(seed: int, population: int) -> np.uint64:
    """The number that stands for a run's ``seed`` in what is drawn from one population (training or held out)."""
    words = np.array([seed, population], np.uint64)
    return np.uint64(_mix(_mix(words[:1]) + _STEP * (words[1:] + np.uint64(1)))[0])


def uniform(key: np.uint64, sample: np.ndarray | int, attempt: np.ndarray | int, lane: np.ndarray | int) -> np.ndarray:
    """Multiples of 2^-53 in [0, 1), float64 in the common shape of ``sample``, ``attempt`` and ``lane``.

    ``attempt`` is below 2^24 and ``lane`` below 2^40.
    """
    words = (_words(attempt) << _ATTEMPT) | _words(lane)
    streams = _mix(key + _STEP * (_words(sample) + np.uint64(1)))
    return (_mix(streams + _STEP * (words + np.uint64(1))) >> np.uint64(11)) * 2.0**-53


def below(uniforms: np.ndarray | float, count: np.ndarray | int) -> np.ndarray:
    """Integers in [0, ``count``), int64; ``count`` is at least 1."""
    counts = np.asarray(count, np.int64)
    return np.minimum(np.floor(uniforms * counts).astype(np.int64), counts - 1)


def _words(values: np.ndarray | int) -> np.ndarray:
    return np.atleast_1d(np.asarray(values)).astype(np.uint64)


def _mix(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))
