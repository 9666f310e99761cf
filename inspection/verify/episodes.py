"""What the records of an episode hold: whole steps of its spec, and together its steps and its return.

Legend: T tokens, S time steps, of one record.
"""

import numpy as np

from gatokit.inspection.read.tokens import kind_name
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


class EpisodeCheck:
    """See ``ContentCheck``."""

    noun = "episode"

    def __init__(self, specs: dict[str, EpisodeSpec], ids: TokenIds, pieces: int) -> None:
        """``specs`` are those of ``dataset.json`` by id, ``pieces`` is the size of the vocabulary."""
        self._layouts = {id_: StepLayout(spec) for id_, spec in specs.items()}
        self._images = {
            id_: {number: field for number, field in layout.fields.items() if field.kind == "image"}
            for id_, layout in self._layouts.items()
        }
        discrete = (ids.discrete_offset, ids.discrete_offset + DISCRETE_VALUES - 1)
        continuous = (CONTINUOUS_OFFSET, CONTINUOUS_OFFSET + BINS - 1)
        # The lowest and the highest id of each kind, uint16 (256,).
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

    def check(self, record: Record, owner: Owner, next_step: int | None) -> None:
        """See ``ContentCheck``."""
        if next_step not in (None, record.first_step):
            raise ValueError(f"it begins with step {record.first_step}, and step {next_step} comes next")
        if record.spec != owner.spec or record.spec not in self._layouts:
            raise ValueError(f"it has the spec {record.spec}, and the index says {owner.spec}")
        sequence = record.sequence
        arrangement = self._layouts[record.spec].arrangement_of(sequence)
        tokens, kinds = sequence.tokens, sequence.kinds
        wrong = (tokens < self._low[kinds]) | (tokens > self._high[kinds])
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(f"token {at} has the id {tokens[at]}, which no {kind_name(kinds[at])} has")
        _check_images(sequence, arrangement, self._images[record.spec])

    def fault(self, owner: Owner, rewards: np.ndarray, flags: np.ndarray) -> str | None:
        """See ``ContentCheck``."""
        if len(flags) != owner.steps:
            return f"its records hold {len(flags)} steps, and the index says {owner.steps}"
        if (flags[1:] & FIRST).any() or (flags[:-1] & (LAST | TERMINAL)).any():
            return "a step within it is marked as the first, last or terminal one"
        total = float(np.add.accumulate(rewards)[-1])
        if owner.episode_return is not None and total != owner.episode_return:
            return f"its rewards sum to {total!r}, and the index says {owner.episode_return!r}"
        return None


def _check_images(sequence: TokenSequence, arrangement: Arrangement, image_fields: dict[int, FieldSpec]) -> None:
    """Raises ValueError if the images are not those of ``image_fields``, which are keyed by their number in a step."""
    if not image_fields and not sequence.images:
        return
    begins = arrangement.step_begin[:, None] + arrangement.begin[..., list(image_fields)]
    if [placed.token for placed in sequence.images] != begins.ravel().tolist():
        raise ValueError("its images are not at the tokens of its steps' image fields")
    fields = list(image_fields.values())
    for number, placed in enumerate(sequence.images):
        step, field = number // len(fields), fields[number % len(fields)]
        fault = _image_fault(placed.image.data, placed.image.height, placed.image.width, field)
        if fault:
            raise ValueError(f"{field.path} at step {step} of the record: {fault}")


def _image_fault(data: bytes, height: int, width: int, field: FieldSpec) -> str | None:
    assert field.image is not None
    spec = field.image
    if (height, width) != (spec.height, spec.width):
        return f"the image is {height} x {width} pixels, and the spec says {spec.height} x {spec.width}"
    try:
        header = probe(data)
    except RejectedError as error:
        return error.detail
    if (header.height, header.width) != (height, width):
        return f"the encoded image is {header.height} x {header.width} pixels, and the record says {height} x {width}"
    if spec.codec is not None and header.codec != spec.codec:
        return f"the image is {header.codec.upper()}, and the spec says {spec.codec.upper()}"
    return None
