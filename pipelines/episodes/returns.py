"""The windowed expert return (Gato, section 3.2 and its formula W = min(1000, 0.1 N))."""

import numpy as np

LONGEST_WINDOW = 1000


def window(episodes: int) -> int:
    """W for N collected episodes: min(1000, N // 10), at least 1."""
    return max(1, min(LONGEST_WINDOW, episodes // 10))


def expert_return(returns: np.ndarray) -> float:
    """The largest mean of W consecutive returns, float64 (N,) in collection order, N > 0.

    Sums of windows are built by doubling, so that their error does not grow with N.
    """
    width = window(len(returns))
    size, block, done = 1, returns.astype(np.float64), 0
    total = np.zeros(len(returns) - width + 1)
    while size <= width:
        if width & size:
            total = total + block[done : done + len(total)]
            done += size
        if 2 * size <= width:
            block = block[:-size] + block[size:]
        size *= 2
    return float(total.max() / width)
