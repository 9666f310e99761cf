"""What the records of a document hold: texts and whole images, as the rules of its dataset say.

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


class DocumentCheck:
    """See ``ContentCheck``. A record that passes decodes, because every piece of the vocabulary is text."""

    noun = "document"

    def __init__(self, rules: DocumentRules, text: TextTokenizer, chunk_tokens: int) -> None:
        """``rules`` are those of ``dataset.json``, ``text`` is the build's vocabulary."""
        self._rules, self._text, self._chunk_tokens = rules, text, chunk_tokens

    def check(self, record: Record, owner: Owner, next_step: int | None) -> None:
        """See ``ContentCheck``."""
        sequence = record.sequence
        if record.spec or record.first_step or len(sequence.step_begin):
            raise ValueError("it has a spec or time steps, and documents have neither")
        _check_kinds(sequence)
        is_text = sequence.kinds == TokenKind.TEXT
        wrong = np.where(is_text, sequence.tokens >= self._text.pieces, sequence.tokens != IMAGE_ID)
        if wrong.any():
            at = int(wrong.argmax())
            kind = "text" if is_text[at] else "image"
            raise ValueError(f"token {at} has the id {sequence.tokens[at]}, which no {kind} has")
        tokens = len(sequence.tokens)
        is_one_image = len(sequence.images) == 1 and not is_text.any()
        if tokens > self._chunk_tokens and not is_one_image:
            raise ValueError(
                f"it has {tokens} tokens, more than the {self._chunk_tokens} of chunk_tokens, and is no single image"
            )
        self._check_end(record)
        for number, placed in enumerate(sequence.images):
            fault = _image_fault(placed.image, self._rules.pictures)
            if fault is not None:
                raise ValueError(f"image {number} of the record: {fault}")

    def fault(self, owner: Owner, rewards: np.ndarray, flags: np.ndarray) -> str | None:
        """See ``ContentCheck``."""
        return None

    def _check_end(self, record: Record) -> None:
        """The end piece closes the last record, if the rules say so, and no other."""
        if self._text.end_id is None:
            return
        sequence = record.sequence
        ends = bool(sequence.tokens[-1] == self._text.end_id and sequence.kinds[-1] == TokenKind.TEXT)
        is_last = record.chunk + 1 == record.chunks
        if ends and not is_last:
            raise ValueError("it ends with the vocabulary's end piece, and the document goes on")
        if is_last and ends != self._rules.end_of_document:
            verb = "ends" if ends else "does not end"
            raise ValueError(
                f"it {verb} with the vocabulary's end piece, and end_of_document is {str(not ends).lower()}"
            )


def _check_kinds(sequence: TokenSequence) -> None:
    """Raises ValueError if kinds and positions are not those of texts and of the record's images."""
    expected = np.full(len(sequence.kinds), TokenKind.TEXT, np.uint8)
    for placed in sequence.images:
        rows, columns = placed.grid
        expected[placed.token : placed.token + rows * columns] = TokenKind.IMAGE
    wrong = sequence.kinds != expected
    if wrong.any():
        at = int(wrong.argmax())
        if expected[at] == TokenKind.IMAGE:
            raise ValueError(f"token {at} lies in an image and has the kind {sequence.kinds[at]}")
        if sequence.kinds[at] == TokenKind.IMAGE:
            raise ValueError(f"token {at} is a patch of no image")
        raise ValueError(f"token {at} has the kind {sequence.kinds[at]}, which no document has")
    has_position = sequence.positions != NO_POSITION
    if has_position.any():
        raise ValueError(f"token {int(has_position.argmax())} has a position, which no document has")


def _image_fault(image: EncodedImage, rule: ImageRule | None) -> str | None:
    """Why a build by the rule would not have stored the image."""
    if rule is None:
        return "the dataset holds text alone"
    height, width = image.height, image.width
    try:
        header = probe(image.data)
        if (header.height, header.width) != (height, width):
            return (
                f"the encoded image is {header.height} x {header.width} pixels, and the record says {height} x {width}"
            )
        if target_size(height, width, rule) != (height, width):
            size = f"{rule.max_patches} patches at most" if rule.size is None else f"{rule.size[0]} x {rule.size[1]}"
            return f"the image is {height} x {width} pixels, and the rule says {size}"
        if rule.codec not in (None, header.codec):
            return f"the image is {header.codec.upper()}, and the rule says {str(rule.codec).upper()}"
        # A build copies an image that it has made by the same rule.
        if prepare(image.data, rule).data is not image.data:
            return f"the {header.codec.upper()} is not complete, not upright, or not 8-bit gray or RGB"
    except RejectedError as error:
        return error.detail
    return None
