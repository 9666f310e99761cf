"""Batches of random windows for tests of the model and the step."""

import numpy as np

from gatokit.loader.batch import NO_TOKEN, Batch
from gatokit.schemas.tokens import IMAGE_ID, NO_POSITION, TokenKind

VOCABULARY = 300
"""Ids of the random batches, the last being the separator."""


def random_batch(
    rows: int, tokens: int, *, group: int = 2, slots: int = 8, datasets: int = 3, hide: bool = False, seed: int = 0
) -> Batch:
    """Windows of time steps: two patches or two text tokens, a discrete and a continuous value, separator, two actions.

    A window begins at any token and may end in padding; targets are texts and actions. With ``hide`` every second row
    hides its past actions.
    """
    draw = np.random.default_rng(seed)
    batch = Batch(
        tokens=np.zeros((rows, tokens), np.uint16),
        kinds=np.zeros((rows, tokens), np.uint8),
        positions=np.full((rows, tokens), NO_POSITION, np.uint16),
        hidden=np.zeros((rows, tokens), bool),
        private=np.zeros((rows, tokens), np.uint16),
        targets=np.zeros((rows, tokens), np.uint16),
        target_kinds=np.zeros((rows, tokens), np.uint8),
        first_action=np.zeros((rows, tokens), bool),
        dataset=draw.integers(0, datasets, rows, np.int32),
        redrawn=draw.integers(-1, datasets, rows, np.int32),
        unusable=np.zeros(rows, np.int32),
        patches=np.zeros((rows // group, slots, 16, 16, 3), np.uint8),
        patch_token=np.full((rows // group, slots), NO_TOKEN, np.int32),
        patch_row=np.zeros((rows // group, slots), np.uint8),
        patch_column=np.zeros((rows // group, slots), np.uint8),
    )
    used = np.zeros(rows // group, int)
    for row in range(rows):
        of_group = row // group
        room = slots - used[of_group]
        with_images = bool(room >= 2 and draw.random() < 0.5)
        first = TokenKind.IMAGE if with_images else TokenKind.TEXT
        kinds = np.tile(
            [
                first,
                first,
                TokenKind.DISCRETE,
                TokenKind.CONTINUOUS,
                TokenKind.SEPARATOR,
                *[TokenKind.CONTINUOUS_ACTION] * 2,
            ],
            tokens,
        )
        places = np.tile([0, 1, 2, 3, NO_POSITION, NO_POSITION, NO_POSITION], tokens)
        steps = np.repeat(np.arange(tokens), 7)
        begin = int(draw.integers(0, 7))
        kinds, places, steps = (array[begin : begin + tokens + 1] for array in (kinds, places, steps))
        ids = draw.integers(0, VOCABULARY - 1, tokens + 1)
        ids[kinds == TokenKind.SEPARATOR] = VOCABULARY - 1
        images = np.flatnonzero(kinds == TokenKind.IMAGE)
        length = tokens if draw.random() < 0.7 else tokens - int(draw.integers(1, tokens // 2))
        if len(images) > room:
            length = min(length, int(images[room]))
        batch.kinds[row, :length] = kinds[:length]
        batch.tokens[row, :length] = np.where(kinds == TokenKind.IMAGE, 0, ids)[:length]
        batch.positions[row, :length] = places[:length]
        ends = length if length == tokens else length - 1
        is_target = np.isin(kinds[1 : ends + 1], (TokenKind.TEXT, TokenKind.CONTINUOUS_ACTION))
        batch.targets[row, :ends] = np.where(is_target, ids[1 : ends + 1], 0)
        batch.target_kinds[row, :ends] = np.where(is_target, kinds[1 : ends + 1], 0)
        actions = np.flatnonzero(batch.target_kinds[row] == TokenKind.CONTINUOUS_ACTION)
        batch.first_action[row, actions[:2]] = True
        for place in images[images < length]:
            slot = used[of_group]
            batch.patches[of_group, slot] = draw.integers(0, 256, (16, 16, 3))
            batch.patch_token[of_group, slot] = row % group * tokens + place
            batch.patch_row[of_group, slot], batch.patch_column[of_group, slot] = draw.integers(0, 128, 2)
            used[of_group] += 1
        if hide and row % 2:
            action = batch.kinds[row] == TokenKind.CONTINUOUS_ACTION
            last = action & ~np.append(action[1:], False)
            batch.hidden[row] = last
            batch.private[row] = np.where(action & ~last, 1 + steps[:tokens], 0)
            batch.tokens[row, last] = 0
    assert not np.any(batch.tokens == IMAGE_ID)
    return batch
