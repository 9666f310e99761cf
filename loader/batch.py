"""One batch of windows, as the loader makes it and the model takes it, and which of its tokens are targets.

Legend: B rows (windows), L tokens of a window, G groups of consecutive rows that share patch slots, P slots of a group.
"""

from typing import NamedTuple

import numpy as np

from gatokit.schemas.tokens import NO_POSITION, PATCH, PREDICTED, TokenKind

PADDING = 0
"""Kind of a position without a token."""
NO_TOKEN = -1
"""``patch_token`` of an unused slot."""


class Batch(NamedTuple):
    """Windows with their targets; a tuple of arrays, so that it crosses to devices as one tree.

    The target of a position is the token behind it. The target of the last position is the token behind the window, if
    there is one.
    """

    tokens: np.ndarray
    """uint16 (B, L): ids of the embedding table; 0 for patches, padding and hidden actions."""
    kinds: np.ndarray
    """uint8 (B, L): ``TokenKind``; 0 for padding, which stands at the end of a row."""
    positions: np.ndarray
    """uint16 (B, L): index within the step's observation; 65535 for none."""
    hidden: np.ndarray
    """bool (B, L): the learned vector of a hidden action stands here, for the last action token of a step."""
    private: np.ndarray
    """uint16 (B, L): n > 0 if only tokens of the same n see this token, 0 if all later ones see it. Packed documents of
    a row are numbered from 1, and so are its actions if they are hidden."""
    targets: np.ndarray
    """uint16 (B, L): id of the token behind the position; 0 if that is no target."""
    target_kinds: np.ndarray
    """uint8 (B, L): kind of that token; 0 if it is no target."""
    first_action: np.ndarray
    """bool (B, L): the target belongs to the first action of its row."""
    dataset: np.ndarray
    """int32 (B,): ordinal of the row's dataset in the mixture."""
    redrawn: np.ndarray
    """int32 (B,): ordinal of the dataset whose window was given up before this one was drawn, because the group's patch
    slots were full; -1 if none was."""
    unusable: np.ndarray
    """int32 (B,): windows that were given up before this one, because a record of theirs is damaged or an observation
    is longer than the table of positions."""
    patches: np.ndarray
    """uint8 (G, P, 16, 16, 3): pixels of patches; zeros in unused slots."""
    patch_token: np.ndarray
    """int32 (G, P): row in the group times L plus position, ascending; -1 in unused slots, which come last."""
    patch_row: np.ndarray
    """uint8 (G, P): row of the table of patch rows (Gato, appendix C.3)."""
    patch_column: np.ndarray
    """uint8 (G, P): row of the table of patch columns."""


def empty_batch(rows: int, context: int, groups: int, slots: int) -> Batch:
    """A batch without tokens: B ``rows`` of L ``context`` positions, and G ``groups`` of P ``slots``."""
    return Batch(
        tokens=np.zeros((rows, context), np.uint16),
        kinds=np.full((rows, context), PADDING, np.uint8),
        positions=np.full((rows, context), NO_POSITION, np.uint16),
        hidden=np.zeros((rows, context), bool),
        private=np.zeros((rows, context), np.uint16),
        targets=np.zeros((rows, context), np.uint16),
        target_kinds=np.zeros((rows, context), np.uint8),
        first_action=np.zeros((rows, context), bool),
        dataset=np.zeros(rows, np.int32),
        redrawn=np.full(rows, -1, np.int32),
        unusable=np.zeros(rows, np.int32),
        patches=np.zeros((groups, slots, PATCH, PATCH, 3), np.uint8),
        patch_token=np.full((groups, slots), NO_TOKEN, np.int32),
        patch_row=np.zeros((groups, slots), np.uint8),
        patch_column=np.zeros((groups, slots), np.uint8),
    )


class Targets(NamedTuple):
    """The fields of a batch that say what is predicted and what is hidden."""

    targets: np.ndarray
    target_kinds: np.ndarray
    first_action: np.ndarray
    hidden: np.ndarray
    private: np.ndarray


def is_kind(kinds: np.ndarray, *wanted: TokenKind) -> np.ndarray:
    """Which of ``kinds``, uint8, are among ``wanted``: bool of the same shape."""
    found = np.zeros(kinds.shape, bool)
    for kind in wanted:
        found |= kinds == int(kind)  # an enum would make NumPy compare int64
    return found


def is_action(kinds: np.ndarray) -> np.ndarray:
    """Which of ``kinds``, uint8, are actions: bool of the same shape."""
    return is_kind(kinds, TokenKind.DISCRETE_ACTION, TokenKind.CONTINUOUS_ACTION)


def find_targets(
    ids: np.ndarray,
    kinds: np.ndarray,
    prompt_tokens: np.ndarray,
    cut_action: np.ndarray,
    hide: np.ndarray,
    documents: np.ndarray | None = None,
) -> Targets:
    """The targets of windows, and what is hidden in them.

    Gato, section 2.3: text and logged actions are predicted, by kind and never by id. ``ids`` uint16 and ``kinds``
    uint8 (B, L + 1) hold one token more than the windows. Of each row, ``prompt_tokens`` (B,) counts the tokens of its
    prompt, ``cut_action`` (B,) says whether the prompt ends inside an action, ``hide`` (B,) whether past actions are
    hidden. ``documents``, uint16 (B, L + 1), numbers the packed documents of each row; it is 0 elsewhere.
    """
    context = ids.shape[1] - 1
    is_target = is_kind(kinds[:, 1:], *PREDICTED)
    prompted = np.flatnonzero(prompt_tokens)
    # The token behind a prompt belongs to another episode.
    is_target[prompted, prompt_tokens[prompted] - 1] = False
    private = np.zeros((len(ids), context), np.uint16)
    if documents is not None:
        is_target &= documents[:, 1:] == documents[:, :-1]
        private += documents[:, :-1]
    acts = is_action(kinds)
    begins = acts.copy()
    begins[:, 1:] &= ~acts[:, :-1]
    begins[prompted, prompt_tokens[prompted]] |= acts[prompted, prompt_tokens[prompted]]
    # Of an action token the ordinal of its action in the row, from 1; 0 for other tokens.
    ordinal = np.cumsum(begins, axis=1, dtype=np.uint16)
    ordinal *= acts
    hidden = np.zeros((len(ids), context), bool)
    hiding = np.flatnonzero(hide)
    if len(hiding):
        actions = acts[hiding]
        last = actions[:, :-1] & (~actions[:, 1:] | begins[hiding, 1:])
        cut = np.flatnonzero(cut_action[hiding])
        last[cut, prompt_tokens[hiding[cut]] - 1] = False
        hidden[hiding] = last
        private[hiding] += ordinal[hiding, :-1] * ~last
    return Targets(
        targets=ids[:, 1:] * is_target,
        target_kinds=kinds[:, 1:] * is_target,
        first_action=is_target & (ordinal[:, 1:] == 1),
        hidden=hidden,
        private=private,
    )
