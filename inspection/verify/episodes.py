"""What the records of an episode hold: whole steps of its spec, and together its steps and its return.

Legend: T tokens, S time steps, of one record.
"""

import numpy as np

from gatokit.inspection.verify.records import Owner
from gatokit.schemas.episode import FIRST, LAST, TERMINAL, EpisodeSpec, FieldSpec
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import (
    BINS,
    CONTINUOUS_OFFSET,
    DISCRETE_VALUES,
    IMAGE_ID,
    TokenIds,
    TokenKind,
    TokenSequence,
)
from gatokit.tokenizers.image_header import probe
from gatokit.tokenizers.layout import Arrangement, StepLayout


class EpisodeChecks:
    """See ``ContentCheck``."""

    what = "episode"

    def __init__(self, specs: dict[str, EpisodeSpec], ids: TokenIds, pieces: int) -> None:
        """``specs`` are those of ``dataset.json`` by id, ``pieces`` the size of the vocabulary."""
        self._specs = {id_: _SpecChecker(spec, ids, pieces) for id_, spec in specs.items()}

    def begin(self, owner: Owner) -> "_EpisodeCheck":
        """See ``ContentCheck``."""
        return _EpisodeCheck(owner, self._specs)


class _EpisodeCheck:
    """See ``OwnerCheck``."""

    def __init__(self, owner: Owner, specs: "dict[str, _SpecChecker]") -> None:
        self._owner, self._specs = owner, specs
        self._step: int | None = 0
        self._rewards: list[np.ndarray] = []
        self._flags: list[np.ndarray] = []

    def check(self, record: Record) -> None:
        """See ``OwnerCheck``."""
        if self._step not in (None, record.first_step):
            raise ValueError(f"it begins with step {record.first_step}, and step {self._step} comes next")
        if record.spec != self._owner.spec or record.spec not in self._specs:
            raise ValueError(f"it has the spec {record.spec}, and the index says {self._owner.spec}")
        self._specs[record.spec].check(record)
        self._rewards.append(record.reward)
        self._flags.append(record.flags)

    def passed(self, record: Record | None) -> None:
        """See ``OwnerCheck``."""
        # Behind a record that does not parse nobody knows which step comes next.
        self._step = None if record is None else record.first_step + len(record.flags)

    def whole(self) -> str | None:
        """See ``OwnerCheck``."""
        return _whole(self._owner, np.concatenate(self._rewards), np.concatenate(self._flags))


class _SpecChecker:
    """Checks sequences of one spec: layout, ids of every kind, images."""

    def __init__(self, spec: EpisodeSpec, ids: TokenIds, pieces: int) -> None:
        self._layout = StepLayout(spec)
        self._images = {block: field for block, field in self._layout.fields.items() if field.kind == "image"}
        discrete = (ids.discrete_offset, ids.discrete_offset + DISCRETE_VALUES - 1)
        continuous = (CONTINUOUS_OFFSET, CONTINUOUS_OFFSET + BINS - 1)
        self._low, self._high = np.zeros((2, 256), np.uint16)
        for kind, (low, high) in {
            TokenKind.TEXT: (0, pieces - 1),
            TokenKind.IMAGE: (IMAGE_ID, IMAGE_ID),
            TokenKind.DISCRETE: discrete,
            TokenKind.CONTINUOUS: continuous,
            TokenKind.SEPARATOR: (ids.separator, ids.separator),
            TokenKind.DISCRETE_ACTION: discrete,
            TokenKind.CONTINUOUS_ACTION: continuous,
        }.items():
            self._low[kind], self._high[kind] = low, high

    def check(self, record: Record) -> None:
        """ValueError where the record's tokens are not those of whole steps of the spec."""
        sequence = record.sequence
        arrangement = self._layout.arrangement_of(sequence)
        tokens, kinds = sequence.tokens, sequence.kinds
        wrong = (tokens < self._low[kinds]) | (tokens > self._high[kinds])
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(f"token {at} has the id {tokens[at]}, which no {_name(kinds[at])} has")
        if self._images or sequence.images:
            self._check_images(sequence, arrangement)

    def _check_images(self, sequence: TokenSequence, arrangement: Arrangement) -> None:
        begin = arrangement.step_begin[:, None] + arrangement.begin[..., list(self._images)]
        if [placed.token for placed in sequence.images] != begin.ravel().tolist():
            raise ValueError("its images are not at the tokens of its steps' image fields")
        fields = list(self._images.values())
        for number, placed in enumerate(sequence.images):
            step, place = divmod(number, len(fields))
            fault = _image_fault(placed.image.data, placed.image.height, placed.image.width, fields[place])
            if fault:
                raise ValueError(f"{fields[place].path} at step {step} of the record: {fault}")


def _image_fault(data: bytes, height: int, width: int, field: FieldSpec) -> str | None:
    assert field.image is not None
    want = field.image
    if (height, width) != (want.height, want.width):
        return f"the image is {height} x {width} pixels, and the spec says {want.height} x {want.width}"
    try:
        header = probe(data)
    except RejectedError as error:
        return error.detail
    if (header.height, header.width) != (height, width):
        return f"the encoded image is {header.height} x {header.width} pixels, and the record says {height} x {width}"
    if want.codec is not None and header.codec != want.codec:
        return f"the image is {header.codec.upper()}, and the spec says {want.codec.upper()}"
    return None


def _whole(owner: Owner, rewards: np.ndarray, flags: np.ndarray) -> str | None:
    """What is wrong with an episode whose records are each sound."""
    if len(flags) != owner.steps:
        return f"its records hold {len(flags)} steps, and the index says {owner.steps}"
    if (flags[1:] & FIRST).any() or (flags[:-1] & (LAST | TERMINAL)).any():
        return "a step within it is marked as the first, last or terminal one"
    total = float(np.add.accumulate(rewards)[-1])
    if owner.episode_return is not None and total != owner.episode_return:
        return f"its rewards sum to {total!r}, and the index says {owner.episode_return!r}"
    return None


def _name(kind: int) -> str:
    return TokenKind(kind).name.lower().replace("_", " ")
