"""A whole episode ↔ its token sequence (Gato, section 2.1 and appendix B), without a Python loop over tokens.

Legend: S time steps, T tokens, N components of one field, X text fields.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from gatokit.schemas.episode import Episode, EpisodeSpec, FieldSpec
from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.tokens import IMAGE_ID, EncodedImage, PlacedImage, TokenIds, TokenSequence
from gatokit.tokenizers.layout import Arrangement, StepLayout
from gatokit.tokenizers.tensors import TensorTokenizer
from gatokit.tokenizers.text import TextTokenizer

FieldValues = np.ndarray | list[str] | list[EncodedImage]
"""The S values of a field: an array (S, *shape), or a list of S texts or images."""


class EpisodeTokenizer:
    """Turns the episodes of one task into tokens and back.

    A step is the observation fields in the spec's order, one separator, the action fields; local positions count
    the step's observation tokens, image patches included.
    """

    def __init__(self, spec: EpisodeSpec, ids: TokenIds, text: TextTokenizer | None = None) -> None:
        """Raises ConfigError, naming the field, for a spec that cannot be tokenized: no action, fields out of
        order, ranges that do not fit, an image size that is no multiple of 16, text without a ``text`` tokenizer."""
        self.spec = spec
        self._layout = StepLayout(spec)
        fields = self._layout.fields
        if text is None and self._layout.text:
            raise ConfigError(f"field {fields[self._layout.text[0]].path} is text: a vocabulary is needed")
        self._text = text
        self._tensors = {
            block: TensorTokenizer(field, ids.discrete_offset)
            for block, field in fields.items()
            if field.kind in ("discrete", "continuous")
        }
        self._images = [block for block, field in fields.items() if field.kind == "image"]
        self._constants = {self._layout.separator: ids.separator} | dict.fromkeys(self._images, IMAGE_ID)

    def encode(self, episode: Episode) -> TokenSequence:
        """The tokens of an episode; an empty sequence for one without steps.

        ``kinds``, ``positions`` and ``step_begin`` may be read-only views that other episodes share. Raises
        RejectedError, naming field, value and step: ``missing_field``, ``wrong_shape``, ``not_finite``,
        ``out_of_range``, ``not_utf8``, ``step_too_long``.
        """
        steps, fields = episode.steps, self._layout.fields
        values = {block: _values_of(field, episode) for block, field in fields.items()}
        tensors = {block: tensor.checked(values[block], steps) for block, tensor in self._tensors.items()}
        images = {block: _checked_images(fields[block], values[block], steps) for block in self._images}
        texts = {block: self._encode_texts(fields[block], values[block], steps) for block in self._layout.text}

        widths = np.stack([text.widths() for text in texts.values()], axis=1) if texts else None
        arrangement = self._layout.arrange(steps, widths)
        tokens = np.empty(len(arrangement.kinds), np.uint16)

        def write(block: int, fill: Callable[[np.ndarray], None]) -> None:
            if arrangement.alike:
                fill(arrangement.columns(tokens, block))
            else:
                part = np.empty((steps, self._layout.width(block)), np.uint16)
                fill(part)
                tokens[arrangement.index(block, part.shape[1])] = part

        for block, array in tensors.items():
            write(block, partial(self._tensors[block].encode, array))
        for block, constant in self._constants.items():
            write(block, partial(np.copyto, src=np.uint16(constant)))
        for block, text in texts.items() if steps else ():
            if arrangement.alike:
                np.copyto(arrangement.columns(tokens, block), text.matrix())
            else:
                tokens[arrangement.ragged_index(block)] = text.flat()
        return TokenSequence(
            tokens=tokens,
            kinds=arrangement.kinds,
            positions=arrangement.positions,
            step_begin=arrangement.step_begin,
            images=_place(arrangement, images),
            text_tokens=widths.astype(np.uint32) if widths is not None and len(texts) > 1 else None,
        )

    def decode(self, sequence: TokenSequence) -> dict[str, FieldValues]:
        """The values of every field of a whole episode, or of a chunk of whole steps, by path.

        Continuous fields are float64 (S, *shape) at the centres of their bins (actions in their own units),
        discrete ones int64, or bool where the spec says so, text a list of S strings, images a list of S
        encoded images. Fields follow from kinds and the spec, never from id ranges. Raises ValueError for tokens
        that are not of this spec.
        """
        arrangement = self._layout.arrangement_of(sequence)
        tokens = sequence.tokens
        for block, constant in self._constants.items():
            if (tokens[arrangement.index(block, self._layout.width(block))] != constant).any():
                raise ValueError(f"a separator or image patch has another id than {constant}")
        images = self._placed(arrangement, sequence.images)
        values: dict[str, FieldValues] = {}
        for block, field in self._layout.fields.items():
            if block in self._tensors:
                tensor = self._tensors[block]
                values[field.path] = tensor.decode(tokens[arrangement.index(block, tensor.components)])
            elif field.kind == "image":
                values[field.path] = images[block]
            else:
                values[field.path] = self._decode_texts(arrangement, block, tokens)
        return values

    def _encode_texts(self, field: FieldSpec, texts: Any, steps: int) -> "_Texts":
        assert self._text is not None
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        if not all(isinstance(text, str) for text in numbers):
            raise RejectedError("wrong_shape", f"field {field.path} is text and holds something else")
        _check_count(field, texts, steps)
        try:
            distinct = self._text.encode_batch(list(numbers))
        except UnicodeEncodeError as error:
            step = next(step for step, text in enumerate(texts) if text == error.object)
            raise RejectedError("not_utf8", f"field {field.path} holds lone surrogates at step {step}") from error
        if len(numbers) == 1:
            return _Texts(distinct, np.zeros(steps, np.int64))
        return _Texts(distinct, np.fromiter(map(numbers.__getitem__, texts), np.int64, steps))

    def _decode_texts(self, arrangement: Arrangement, block: int, tokens: np.ndarray) -> list[str]:
        assert self._text is not None
        begin = arrangement.step_begin + arrangement.begin[..., block]
        end = arrangement.step_begin + arrangement.begin[..., block + 1]
        known: dict[bytes, str] = {}
        texts = []
        for first, last in zip(begin.tolist(), end.tolist(), strict=True):
            ids = tokens[first:last]
            key = ids.tobytes()
            if key not in known:
                known[key] = self._text.decode(ids)
            texts.append(known[key])
        return texts

    def _placed(self, arrangement: Arrangement, placed: list[PlacedImage]) -> dict[int, list[EncodedImage]]:
        """The images of every image field; ValueError where they stand elsewhere or have another size."""
        count, steps = len(self._images), len(arrangement.step_begin)
        if [image.token for image in placed] != _image_tokens(arrangement, self._images):
            raise ValueError(f"the sequence's images are not at the tokens of its {steps} steps' image fields")
        images = {block: [image.image for image in placed[place::count]] for place, block in enumerate(self._images)}
        for block, found in images.items():
            _check_sizes(self._layout.fields[block], found, ValueError)
        return images


@dataclass(frozen=True)
class _Texts:
    """The text of one field: the ids of every different text, and which of them each step has, int64 (S,)."""

    distinct: list[np.ndarray]
    which: np.ndarray

    def widths(self) -> np.ndarray:
        """Tokens of each step, int64 (S,)."""
        return np.array([len(ids) for ids in self.distinct], np.int64)[self.which]

    def matrix(self) -> np.ndarray:
        """The ids of steps that are all of one width, uint16 (S, width)."""
        return np.stack(self.distinct)[self.which]

    def flat(self) -> np.ndarray:
        """The ids of all steps, one after the other, uint16."""
        return np.concatenate([self.distinct[which] for which in self.which.tolist()])


def _values_of(field: FieldSpec, episode: Episode) -> Any:
    if field.path not in episode.values:
        raise RejectedError("missing_field", f"field {field.path} is absent")
    return episode.values[field.path]


def _check_count(field: FieldSpec, values: Any, steps: int) -> None:
    if len(values) != steps:
        raise RejectedError("wrong_shape", f"field {field.path} has {len(values)} values for {steps} steps")


def _checked_images(field: FieldSpec, images: Any, steps: int) -> list[EncodedImage]:
    if not isinstance(images, list):
        raise RejectedError("wrong_shape", f"field {field.path} is a {type(images).__name__}, not a list of images")
    _check_count(field, images, steps)
    _check_sizes(field, images, partial(RejectedError, "wrong_shape"))
    found: list[EncodedImage] = images
    return found


def _check_sizes(field: FieldSpec, images: list[EncodedImage], error: Callable[[str], Exception]) -> None:
    assert field.image is not None
    height, width = field.image.height, field.image.width
    for step, (_, found_height, found_width) in enumerate(images):
        if found_height != height or found_width != width:
            raise error(
                f"field {field.path} has an image of {found_height} x {found_width} pixels at step {step}, "
                f"not {height} x {width}"
            )


def _place(arrangement: Arrangement, images: dict[int, list[EncodedImage]]) -> list[PlacedImage]:
    if not images:
        return []
    tokens = _image_tokens(arrangement, list(images))
    in_order = chain.from_iterable(zip(*images.values(), strict=True))
    return list(map(PlacedImage, tokens, in_order))


def _image_tokens(arrangement: Arrangement, blocks: list[int]) -> list[int]:
    """The first token of every image, in token order."""
    tokens: list[int] = (
        (arrangement.step_begin[:, None].astype(np.int64) + arrangement.begin[..., blocks]).ravel().tolist()
    )
    return tokens
