"""Which tokens of a window are predicted, and which are hidden from later steps.

Gato, section 2.3: text and logged actions are predicted, by kind and never by id. Legend: B rows, L tokens of a window.
"""

from typing import NamedTuple

import numpy as np

from gatokit.schemas.tokens import PREDICTED, TokenKind


def _table(*kinds: TokenKind) -> np.ndarray:
    table = np.zeros(256, bool)
    table[list(kinds)] = True
    return table


_PREDICTED = _table(*PREDICTED)
_ACTION = _table(TokenKind.DISCRETE_ACTION, TokenKind.CONTINUOUS_ACTION)


class Targets(NamedTuple):
    """Arrays (B, L) of a batch, named as there."""

    targets: np.ndarray
    target_kinds: np.ndarray
    first_action: np.ndarray
    hidden: np.ndarray
    private: np.ndarray


def find_targets(
    ids: np.ndarray,
    kinds: np.ndarray,
    prompt: np.ndarray,
    cut_action: np.ndarray,
    hide: np.ndarray,
) -> Targets:
    """The targets of windows, and what is hidden in them.

    ``ids`` uint16 and ``kinds`` uint8 (B, L + 1) hold one token more than the windows; ``prompt`` (B,) counts each
    row's tokens of a prompt, ``cut_action`` (B,) says whether it ends inside an action, ``hide`` (B,) whether past
    actions are hidden.
    """
    context = ids.shape[1] - 1
    predicted = _PREDICTED[kinds[:, 1:]]
    prompted = np.flatnonzero(prompt)
    # What follows a prompt is another episode's.
    predicted[prompted, prompt[prompted] - 1] = False
    action = _ACTION[kinds]
    begins = action.copy()
    begins[:, 1:] &= ~action[:, :-1]
    begins[prompted, prompt[prompted]] |= action[prompted, prompt[prompted]]
    ordinal = np.cumsum(begins, axis=1, dtype=np.uint16)
    ordinal *= action
    hidden, private = np.zeros((len(ids), context), bool), np.zeros((len(ids), context), np.uint16)
    hiding = np.flatnonzero(hide)
    if len(hiding):
        acts = action[hiding]
        last = acts[:, :-1] & (~acts[:, 1:] | begins[hiding, 1:])
        cut = np.flatnonzero(cut_action[hiding])
        last[cut, prompt[hiding[cut]] - 1] = False
        hidden[hiding] = last
        private[hiding] = ordinal[hiding, :-1] * ~last
    return Targets(
        targets=ids[:, 1:] * predicted,
        target_kinds=kinds[:, 1:] * predicted,
        first_action=predicted & (ordinal[:, 1:] == 1),
        hidden=hidden,
        private=private,
    )
