"""One batch of windows, as the input makes it and the model takes it.

Legend: B rows (windows), L tokens of a window, G groups of consecutive rows that share patch slots, P slots of a group.
"""

from typing import NamedTuple

import numpy as np

PADDING = 0
"""Kind of a position without a token."""
NO_TOKEN = -1
"""Of ``patch_token``: an unused slot."""


class Batch(NamedTuple):
    """Windows with their targets; a tuple of arrays, so that it crosses to devices as one tree.

    A position's target is the token behind it: the target of the last one is the token behind the window, where
    there is one.
    """

    tokens: np.ndarray
    """uint16 (B, L): ids of the table; 0 for patches, padding and hidden actions."""
    kinds: np.ndarray
    """uint8 (B, L): ``TokenKind``; 0 for padding, which stands at the end of a row."""
    positions: np.ndarray
    """uint16 (B, L): index within the step's observation; 65535 for none."""
    hidden: np.ndarray
    """bool (B, L): the learned vector of a hidden action stands here, the last action token of a step."""
    private: np.ndarray
    """uint16 (B, L): n > 0 for a token that only tokens of the same n see, 0 for one that all later ones see."""
    targets: np.ndarray
    """uint16 (B, L): id of the token behind the position; 0 where it is no target."""
    target_kinds: np.ndarray
    """uint8 (B, L): kind of that token; 0 where it is no target."""
    first_action: np.ndarray
    """bool (B, L): the target belongs to the first action of its row, before which no other was seen."""
    dataset: np.ndarray
    """int32 (B,): ordinal of the row's dataset in the mixture."""
    redrawn: np.ndarray
    """int32 (B,): ordinal of the dataset whose window was given up, because the group's patch slots were full, before
    this one was drawn; -1 where none was."""
    patches: np.ndarray
    """uint8 (G, P, 16, 16, 3): pixels of patches; zeros in unused slots."""
    patch_token: np.ndarray
    """int32 (G, P): row in the group times L plus position, ascending; -1 in unused slots, which come last."""
    patch_row: np.ndarray
    """uint8 (G, P): row of the table of patch rows (Gato, appendix C.3)."""
    patch_column: np.ndarray
    """uint8 (G, P): row of the table of patch columns."""
