"""A whole episode ↔ its token sequence (Gato, section 2.1 and appendix B), without a Python loop over tokens.

Legend: S time steps, T tokens, N components of one field, X text fields.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from gatokit.schemas.episode import EpisodeSpec, FieldSpec
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

    def __init__(
        self, spec: EpisodeSpec, ids: TokenIds, text: TextTokenizer | None = None, *, actions: bool = True
    ) -> None:
        """Without ``actions`` a step ends with its separator.

        Raises ConfigError, naming the field, for a spec that cannot be tokenized: no action, fields out of order,
        ranges that do not fit, an image size that is no multiple of 16, text without a ``text`` tokenizer.
        """
        self.spec = spec
        self._layout = StepLayout(spec, actions)
        fields = self._layout.fields
        if text is None and self._layout.text:
            raise ConfigError(f"field {fields[self._layout.text[0]].path} is text: a vocabulary is needed")
        self._text = text
        self._tensors = {
            section: TensorTokenizer(field, ids.discrete_offset)
            for section, field in fields.items()
            if field.kind in ("discrete", "continuous")
        }
        self._images = [section for section, field in fields.items() if field.kind == "image"]
        self._constants = {self._layout.separator: ids.separator} | dict.fromkeys(self._images, IMAGE_ID)

    def encode(self, values: Mapping[str, FieldValues], steps: int) -> TokenSequence:
        """The tokens of an episode's S ``steps``, given the ``values`` of each field by path.

        ``kinds``, ``positions`` and ``step_begin`` may be read-only views that other episodes share. Raises
        RejectedError, naming field, value and step: ``missing_field``, ``wrong_shape``, ``not_finite``,
        ``out_of_range``, ``not_utf8``, ``step_too_long``.
        """
        fields = self._layout.fields
        for field in fields.values():
            if field.path not in values:
                raise RejectedError("missing_field", f"field {field.path} is absent")
        tensors = {
            section: item.checked(values[fields[section].path], steps) for section, item in self._tensors.items()
        }
        images = [_checked_images(fields[section], values[fields[section].path], steps) for section in self._images]
        texts = {
            section: self._encode_texts(fields[section], values[fields[section].path], steps)
            for section in self._layout.text
        }

        widths = np.stack([text.widths() for text in texts.values()], axis=1) if texts else None
        arrangement = self._layout.arrange(steps, widths)
        tokens = np.empty(len(arrangement.kinds), np.uint16)

        def write(section: int, fill: Callable[[np.ndarray], None]) -> None:
            if arrangement.alike:
                fill(arrangement.columns(tokens, section))
            else:
                ids = np.empty((steps, self._layout.width(section)), np.uint16)
                fill(ids)
                tokens[arrangement.index(section, ids.shape[1])] = ids

        for section, array in tensors.items():
            write(section, partial(self._tensors[section].encode, array))
        for section, constant in self._constants.items():
            write(section, partial(np.copyto, src=np.uint16(constant)))
        for section, text in texts.items() if steps else ():
            if arrangement.alike:
                np.copyto(arrangement.columns(tokens, section), text.matrix())
            else:
                tokens[arrangement.ragged_index(section)] = text.flat()
        first_tokens = _first_tokens(arrangement, self._images)
        return TokenSequence(
            tokens=tokens,
            kinds=arrangement.kinds,
            positions=arrangement.positions,
            step_begin=arrangement.step_begin,
            images=list(map(PlacedImage, first_tokens, chain.from_iterable(zip(*images, strict=True)))),
            text_tokens=widths.astype(np.uint32) if widths is not None and len(texts) > 1 else None,
        )

    def decode(self, sequence: TokenSequence) -> dict[str, FieldValues]:
        """The values of every field of a whole episode, or of a chunk of whole steps, by path.

        Continuous fields are float64 (S, *shape) at the centres of their bins (actions in their own units),
        discrete ones int64, or bool if the spec says so, text a list of S strings, images a list of S encoded images.
        Fields follow from kinds and the spec, never from id ranges. Raises ValueError for tokens that are not of this
        spec.
        """
        arrangement = self._layout.arrangement_of(sequence)
        tokens, steps, count = sequence.tokens, len(sequence.step_begin), len(self._images)
        for section, constant in self._constants.items():
            if (tokens[arrangement.index(section, self._layout.width(section))] != constant).any():
                raise ValueError(f"a separator or image patch has another id than {constant}")
        if [image.token for image in sequence.images] != _first_tokens(arrangement, self._images):
            raise ValueError(f"the sequence's images are not at the tokens of its {steps} steps' image fields")
        values: dict[str, FieldValues] = {}
        for section, field in self._layout.fields.items():
            if section in self._tensors:
                tensor = self._tensors[section]
                values[field.path] = tensor.decode(tokens[arrangement.index(section, tensor.components)])
            elif field.kind == "image":
                images = [placed.image for placed in sequence.images[self._images.index(section) :: count]]
                _check_sizes(field, images, ValueError)
                values[field.path] = images
            else:
                values[field.path] = self._decode_texts(arrangement, section, tokens)
        return values

    def _encode_texts(self, field: FieldSpec, texts: Any, steps: int) -> "_Texts":
        assert self._text is not None
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        if not all(isinstance(text, str) for text in numbers):
            raise RejectedError("wrong_shape", f"field {field.path} is text and holds something else")
        _check_count(field, texts, steps)
        try:
            ids = self._text.encode_batch(list(numbers))
        except UnicodeEncodeError as error:
            step = next(step for step, text in enumerate(texts) if text == error.object)
            raise RejectedError("not_utf8", f"field {field.path} holds lone surrogates at step {step}") from error
        if len(numbers) == 1:
            return _Texts(ids, np.zeros(steps, np.int64))
        return _Texts(ids, np.fromiter(map(numbers.__getitem__, texts), np.int64, steps))

    def _decode_texts(self, arrangement: Arrangement, section: int, tokens: np.ndarray) -> list[str]:
        assert self._text is not None
        begin = arrangement.step_begin + arrangement.begin[..., section]
        end = arrangement.step_begin + arrangement.begin[..., section + 1]
        known: dict[bytes, str] = {}
        texts = []
        for first, last in zip(begin.tolist(), end.tolist(), strict=True):
            ids = tokens[first:last]
            key = ids.tobytes()
            if key not in known:
                known[key] = self._text.decode(ids)
            texts.append(known[key])
        return texts


@dataclass(frozen=True)
class _Texts:
    """The texts of one field: the ids of every different text, and the number of the text at each step, int64 (S,)."""

    ids: list[np.ndarray]
    number: np.ndarray

    def widths(self) -> np.ndarray:
        """Tokens of each step, int64 (S,)."""
        return np.array([len(ids) for ids in self.ids], np.int64)[self.number]

    def matrix(self) -> np.ndarray:
        """The ids of steps that are all of one width, uint16 (S, width)."""
        return np.stack(self.ids)[self.number]

    def flat(self) -> np.ndarray:
        """The ids of all steps, one after the other, uint16."""
        return np.concatenate([self.ids[number] for number in self.number.tolist()])


def _check_count(field: FieldSpec, values: Sequence[Any], steps: int) -> None:
    if len(values) != steps:
        raise RejectedError("wrong_shape", f"field {field.path} has {len(values)} values for {steps} steps")


def _checked_images(field: FieldSpec, images: Any, steps: int) -> list[EncodedImage]:
    if not isinstance(images, list):
        raise RejectedError("wrong_shape", f"field {field.path} is a {type(images).__name__}, not a list of images")
    _check_count(field, images, steps)
    _check_sizes(field, images, partial(RejectedError, "wrong_shape"))
    return images


def _check_sizes(field: FieldSpec, images: list[EncodedImage], error: Callable[[str], Exception]) -> None:
    assert field.image is not None
    height, width = field.image.height, field.image.width
    for step, (_, found_height, found_width) in enumerate(images):
        if found_height != height or found_width != width:
            raise error(
                f"field {field.path} has an image of {found_height} x {found_width} pixels at step {step}, "
                f"not {height} x {width}"
            )


def _first_tokens(arrangement: Arrangement, sections: list[int]) -> list[int]:
    """The first token of every image, in token order."""
    tokens: list[int] = (
        (arrangement.step_begin[:, None].astype(np.int64) + arrangement.begin[..., sections]).ravel().tolist()
    )
    return tokens
