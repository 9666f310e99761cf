"""What the records of a document hold: texts and whole pictures, as the rules of its dataset want them.

Legend: T tokens of one record.
"""

import numpy as np

from gatokit.inspection.verify.records import Owner
from gatokit.schemas.document import DocumentRules, ImageRule
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import IMAGE_ID, NO_POSITION, EncodedImage, TokenKind, TokenSequence
from gatokit.tokenizers.document_images import prepare, target_size
from gatokit.tokenizers.image_header import probe
from gatokit.tokenizers.text import TextTokenizer


class DocumentChecks:
    """See ``ContentCheck``."""

    what = "document"

    def __init__(self, rules: DocumentRules, text: TextTokenizer, chunk_tokens: int) -> None:
        """``rules`` are those of ``dataset.json``, ``text`` the build's vocabulary."""
        self.rules, self.chunk_tokens = rules, chunk_tokens
        self.pieces, self.end_id = text.pieces, text.end_id

    def begin(self, owner: Owner) -> "_DocumentCheck":
        """See ``ContentCheck``."""
        return _DocumentCheck(self)


class _DocumentCheck:
    """See ``OwnerCheck``. A record that passes decodes: every piece of the vocabulary is text."""

    def __init__(self, of: DocumentChecks) -> None:
        self._of = of

    def check(self, record: Record) -> None:
        """See ``OwnerCheck``."""
        if record.spec or record.first_step or len(record.sequence.step_begin):
            raise ValueError("it has a spec or time steps, and documents have neither")
        _check_kinds(record.sequence)
        _check_ids(record.sequence, self._of.pieces)
        self._check_length(record.sequence)
        self._check_end(record)
        for number, placed in enumerate(record.sequence.images):
            fault = _picture_fault(placed.image, self._of.rules.pictures)
            if fault is not None:
                raise ValueError(f"picture {number} of the record: {fault}")

    def passed(self, record: Record | None) -> None:
        """See ``OwnerCheck``."""

    def whole(self) -> str | None:
        """See ``OwnerCheck``."""
        return None

    def _check_length(self, sequence: TokenSequence) -> None:
        tokens, most = len(sequence.tokens), self._of.chunk_tokens
        is_picture = len(sequence.images) == 1 and (sequence.kinds == TokenKind.IMAGE).all()
        if tokens > most and not is_picture:
            raise ValueError(f"it has {tokens} tokens, more than the {most} of chunk_tokens, and is no single picture")

    def _check_end(self, record: Record) -> None:
        """The end piece closes the last record, where the rules say so, and no other."""
        if self._of.end_id is None:
            return
        sequence = record.sequence
        ends = bool(sequence.tokens[-1] == self._of.end_id and sequence.kinds[-1] == TokenKind.TEXT)
        is_last = record.chunk + 1 == record.chunks
        if ends and not is_last:
            raise ValueError("it ends with the vocabulary's end piece, and the document goes on")
        if is_last and ends != self._of.rules.end_of_document:
            has = "ends" if ends else "does not end"
            raise ValueError(
                f"it {has} with the vocabulary's end piece, and end_of_document is {str(not ends).lower()}"
            )


def _check_kinds(sequence: TokenSequence) -> None:
    """ValueError where kinds and positions are not those of texts and of the record's pictures."""
    wanted = np.full(len(sequence.kinds), TokenKind.TEXT, np.uint8)
    for placed in sequence.images:
        rows, columns = placed.grid
        wanted[placed.token : placed.token + rows * columns] = TokenKind.IMAGE
    wrong = sequence.kinds != wanted
    if wrong.any():
        at = int(wrong.argmax())
        if wanted[at] == TokenKind.IMAGE:
            raise ValueError(f"token {at} lies in a picture and has the kind {sequence.kinds[at]}")
        if sequence.kinds[at] == TokenKind.IMAGE:
            raise ValueError(f"token {at} is a patch of no picture")
        raise ValueError(f"token {at} has the kind {sequence.kinds[at]}, which no document has")
    placed_tokens = sequence.positions != NO_POSITION
    if placed_tokens.any():
        raise ValueError(f"token {int(placed_tokens.argmax())} has a position, which no document has")


def _check_ids(sequence: TokenSequence, pieces: int) -> None:
    text = sequence.kinds == TokenKind.TEXT
    wrong = np.where(text, sequence.tokens >= pieces, sequence.tokens != IMAGE_ID)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"token {at} has the id {sequence.tokens[at]}, which no {'text' if text[at] else 'image'} has")


def _picture_fault(image: EncodedImage, rule: ImageRule | None) -> str | None:
    """What a build by the rule would not have stored."""
    if rule is None:
        return "the dataset holds text alone"
    size = image.height, image.width
    try:
        header = probe(image.data)
        if (header.height, header.width) != size:
            return (
                f"the encoded image is {header.height} x {header.width} pixels, and the record says "
                f"{size[0]} x {size[1]}"
            )
        if target_size(*size, rule) != size:
            want = f"{rule.max_patches} patches at most" if rule.size is None else f"{rule.size[0]} x {rule.size[1]}"
            return f"the image is {size[0]} x {size[1]} pixels, and the rule says {want}"
        if rule.codec not in (None, header.codec):
            return f"the image is {header.codec.upper()}, and the rule says {str(rule.codec).upper()}"
        # What the rule has made is what it would copy.
        if prepare(image.data, rule).data is not image.data:
            return f"the {header.codec.upper()} is not whole, not upright, or not 8-bit gray or RGB"
    except RejectedError as error:
        return error.detail
    return None
