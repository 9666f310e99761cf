"""A whole episode ↔ its token sequence (Gato, section 2.1 and appendix B), without a Python loop over tokens.

A time step is its observation fields in key order, the separator, its action fields in key order; each of these is a
section of the step. Only sections of text vary in width.

Legend: S time steps, T tokens, K tokens of one step, N sections, X text fields.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, TokenizerSettings
from gatokit.schemas.tokens import IMAGE_ID, NO_POSITION, PATCH, EncodedImage, PlacedImage, TokenKind, TokenSequence
from gatokit.tokenizers.tensors import TensorTokenizer
from gatokit.tokenizers.text import TextTokenizer

FieldValues = np.ndarray | list[str] | list[EncodedImage]
"""The S values of a field: an array (S, *shape), or a list of S texts or images."""

MAX_OBSERVATION = NO_POSITION - 1
"""Most observation tokens of a step: a position is a uint16, and 65535 means none."""

_CACHED_TOKENS = 65_536
"""Most tokens whose arrays are kept for other episodes."""
_OBSERVATION_KINDS = {
    "text": TokenKind.TEXT,
    "image": TokenKind.IMAGE,
    "discrete": TokenKind.DISCRETE,
    "continuous": TokenKind.CONTINUOUS,
}
_ACTION_KINDS = {"discrete": TokenKind.DISCRETE_ACTION, "continuous": TokenKind.CONTINUOUS_ACTION}


class EpisodeTokenizer:
    """Turns the episodes of one task into tokens and back.

    Local positions count the step's observation tokens, image patches included.
    """

    def __init__(
        self, spec: EpisodeSpec, settings: TokenizerSettings, text: TextTokenizer | None = None, *, actions: bool = True
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
            section: TensorTokenizer(field, settings.discrete_offset)
            for section, field in fields.items()
            if field.kind in ("discrete", "continuous")
        }
        self._images = [section for section, field in fields.items() if field.kind == "image"]
        self._constants = {self._layout.separator: settings.separator} | dict.fromkeys(self._images, IMAGE_ID)

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
            section: tensor.checked(values[fields[section].path], steps) for section, tensor in self._tensors.items()
        }
        images = [_checked_images(fields[section], values[fields[section].path], steps) for section in self._images]
        texts = {
            section: self._encode_texts(fields[section], values[fields[section].path], steps)
            for section in self._layout.text
        }
        widths = None
        if texts:
            widths = np.stack([np.array([len(text) for text in ids])[at] for ids, at in texts.values()], axis=1)
        arrangement = self._layout.arrange(steps, widths)
        tokens = np.empty(len(arrangement.kinds), np.uint16)

        for section, array in tensors.items():
            tensor = self._tensors[section]
            if arrangement.alike:
                tensor.encode(array, arrangement.columns(tokens, section))
            else:
                ids = np.empty((steps, tensor.components), np.uint16)
                tensor.encode(array, ids)
                tokens[arrangement.index(section)] = ids.ravel()
        for section, constant in self._constants.items():
            if arrangement.alike:
                arrangement.columns(tokens, section)[...] = constant
            else:
                tokens[arrangement.index(section)] = constant
        for section, (ids_of_texts, at) in texts.items() if steps else ():
            if arrangement.alike:
                arrangement.columns(tokens, section)[...] = np.stack(ids_of_texts)[at]
            else:
                tokens[arrangement.index(section)] = np.concatenate([ids_of_texts[number] for number in at.tolist()])
        return TokenSequence(
            tokens=tokens,
            kinds=arrangement.kinds,
            positions=arrangement.positions,
            step_begin=arrangement.step_begin,
            images=list(
                map(PlacedImage, arrangement.first_tokens(self._images), chain.from_iterable(zip(*images, strict=True)))
            ),
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
            if (tokens[arrangement.index(section)] != constant).any():
                raise ValueError(f"a separator or image patch has another id than {constant}")
        if [image.token for image in sequence.images] != arrangement.first_tokens(self._images):
            raise ValueError(f"the sequence's images are not at the tokens of its {steps} steps' image fields")
        values: dict[str, FieldValues] = {}
        for section, field in self._layout.fields.items():
            if section in self._tensors:
                tensor = self._tensors[section]
                values[field.path] = tensor.decode(tokens[arrangement.index(section)].reshape(steps, tensor.components))
            elif field.kind == "image":
                images = [placed.image for placed in sequence.images[self._images.index(section) :: count]]
                if wrong := _wrong_size(field, images):
                    raise ValueError(wrong)
                values[field.path] = images
            else:
                values[field.path] = self._decode_texts(arrangement, section, tokens)
        return values

    def _encode_texts(self, field: FieldSpec, texts: Any, steps: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The ids of every different text, and the number of the text at each step, int64 (S,)."""
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
        except RejectedError as error:
            raise RejectedError(error.reason, f"field {field.path}: {error.detail}") from error
        if len(numbers) == 1:
            return ids, np.zeros(steps, np.int64)
        return ids, np.fromiter(map(numbers.__getitem__, texts), np.int64, steps)

    def _decode_texts(self, arrangement: "Arrangement", section: int, tokens: np.ndarray) -> list[str]:
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


def _check_count(field: FieldSpec, values: Any, steps: int) -> None:
    if len(values) != steps:
        raise RejectedError("wrong_shape", f"field {field.path} has {len(values)} values for {steps} steps")


def _checked_images(field: FieldSpec, images: Any, steps: int) -> list[EncodedImage]:
    if not isinstance(images, list):
        raise RejectedError("wrong_shape", f"field {field.path} is a {type(images).__name__}, not a list of images")
    _check_count(field, images, steps)
    if wrong := _wrong_size(field, images):
        raise RejectedError("wrong_shape", wrong)
    return images


def _wrong_size(field: FieldSpec, images: list[EncodedImage]) -> str | None:
    """What is wrong with the first image that does not have the field's size."""
    assert field.image is not None
    height, width = field.image.height, field.image.width
    for step, (_, found_height, found_width) in enumerate(images):
        if found_height != height or found_width != width:
            found = f"{found_height} x {found_width} pixels at step {step}"
            return f"field {field.path} has an image of {found}, not {height} x {width}"
    return None


@dataclass(frozen=True)
class Arrangement:
    """Where the tokens of S steps are.

    ``kinds`` is uint8 (T,), ``positions`` uint16 (T,), ``step_begin`` uint32 (S,); these may be read-only views of
    arrays that other episodes share. ``begin`` says where in a step each section begins and the last one ends: int64
    (N + 1,) if all steps are alike, else (S, N + 1).
    """

    kinds: np.ndarray
    positions: np.ndarray
    step_begin: np.ndarray
    begin: np.ndarray

    @property
    def alike(self) -> bool:
        """Whether every step has the same tokens in the same places, so that tokens form a matrix (S, K)."""
        return self.begin.ndim == 1

    def columns(self, tokens: np.ndarray, section: int) -> np.ndarray:
        """A view of one section in every step, (S, width); only if all steps are alike."""
        first, end, width = int(self.begin[section]), int(self.begin[section + 1]), int(self.begin[-1])
        return tokens.reshape(len(self.step_begin), width)[:, first:end]

    def index(self, section: int) -> np.ndarray:
        """The tokens of one section in all steps, one step after the other, int64 (sum of its widths,)."""
        widths = np.broadcast_to(self.begin[..., section + 1] - self.begin[..., section], self.step_begin.shape)
        first = self.step_begin.astype(np.int64) + self.begin[..., section]
        return np.repeat(first - (np.cumsum(widths) - widths), widths) + np.arange(widths.sum())

    def first_tokens(self, sections: list[int]) -> list[int]:
        """The first token of each of ``sections`` in every step, in token order."""
        first = self.step_begin[:, None].astype(np.int64) + self.begin[..., sections]
        tokens: list[int] = first.ravel().tolist()
        return tokens


class StepLayout:
    """The sections of a spec's time steps."""

    def __init__(self, spec: EpisodeSpec, actions: bool = True) -> None:
        """Without ``actions`` a step ends with its separator. Raises ConfigError, naming the field, for a spec whose
        fields cannot be given a token order."""
        if spec.fields != EpisodeSpec.ordered(list(spec.fields)).fields:
            raise ConfigError("the spec's fields are not in key order: make it with EpisodeSpec.ordered")
        if not spec.action:
            raise ConfigError("the spec has no action field")
        for field in spec.fields:
            _check_field(field)
        observation, action = spec.observation, spec.action if actions else ()
        self.separator = len(observation)
        """Section of the separator."""
        self.fields = dict(enumerate(observation)) | dict(enumerate(action, self.separator + 1))
        """Field of every section but the separator, in token order."""
        self.text = tuple(section for section, field in self.fields.items() if field.kind == "text")
        """Sections of text, whose widths vary."""
        self._widths = [*(field.tokens or 0 for field in observation), 1, *(field.tokens or 0 for field in action)]
        kinds = [_OBSERVATION_KINDS[field.kind] for field in observation]
        self._kinds = bytes([*kinds, TokenKind.SEPARATOR, *(_ACTION_KINDS[field.kind] for field in action)])

    def arrange(self, steps: int, text_widths: np.ndarray | None = None) -> Arrangement:
        """Where the tokens of ``steps`` steps are; ``text_widths`` int (S, X) are the tokens of every text field.

        Raises RejectedError ``step_too_long``.
        """
        widths = list(self._widths)
        if self.text and steps:
            assert text_widths is not None
            if (text_widths != text_widths[0]).any():
                return self._ragged(text_widths)
            for section, width in zip(self.text, text_widths[0].tolist(), strict=True):
                widths[section] = width
        _check_length(sum(widths[: self.separator]), 0)
        arrange = _shared_steps if steps <= max(1, _CACHED_TOKENS // sum(widths)) else _equal_steps
        return arrange(self._kinds, tuple(widths), self.separator, steps)

    def arrangement_of(self, sequence: TokenSequence) -> Arrangement:
        """Where the tokens of an encoded sequence of whole steps are.

        Raises ValueError if kinds, positions or step beginnings are not those of this spec.
        """
        total, steps = len(sequence.tokens), len(sequence.step_begin)
        if not len(sequence.kinds) == len(sequence.positions) == total:
            raise ValueError(f"{total} tokens have {len(sequence.kinds)} kinds and {len(sequence.positions)} positions")
        begin = sequence.step_begin.astype(np.int64)
        ends = np.append(begin, total)
        if ends[0] != 0 or (np.diff(ends) <= 0).any():
            raise ValueError("the time steps do not begin in increasing order at the first token")
        try:
            arrangement = self.arrange(steps, self._text_widths(sequence, begin) if self.text else None)
        except RejectedError as error:
            raise ValueError(error.detail) from error
        for name in ("step_begin", "kinds", "positions"):
            if not np.array_equal(getattr(sequence, name), getattr(arrangement, name)):
                raise ValueError(f"the {name} of the sequence are not those of its spec")
        return arrangement

    def _text_widths(self, sequence: TokenSequence, begin: np.ndarray) -> np.ndarray:
        """Tokens of every text field in every step, int64 (S, X)."""
        shape = len(begin), len(self.text)
        if len(self.text) > 1:
            if sequence.text_tokens is None or sequence.text_tokens.shape != shape:
                raise ValueError(f"the tokens of the {shape[1]} text fields of {shape[0]} steps are not counted")
            return sequence.text_tokens.astype(np.int64)
        tokens = np.flatnonzero(sequence.kinds == TokenKind.TEXT)
        return np.bincount(np.searchsorted(begin, tokens, side="right") - 1, minlength=len(begin)).reshape(shape)

    def _ragged(self, text_widths: np.ndarray) -> Arrangement:
        """The arrangement of steps that differ in the widths of their texts."""
        steps = len(text_widths)
        widths = np.tile(np.array(self._widths, np.int64), (steps, 1))
        widths[:, self.text] = text_widths
        begin = np.zeros((steps, len(self._widths) + 1), np.int64)
        np.cumsum(widths, axis=1, out=begin[:, 1:])
        observation, step_tokens = begin[:, self.separator], begin[:, -1]
        longest = int(observation.argmax())
        _check_length(int(observation[longest]), longest)
        step_begin = np.cumsum(step_tokens) - step_tokens
        within = np.arange(step_tokens.sum()) - np.repeat(step_begin, step_tokens)
        return Arrangement(
            kinds=np.repeat(np.tile(np.frombuffer(self._kinds, np.uint8), steps), widths.ravel()),
            positions=np.where(within < np.repeat(observation, step_tokens), within, NO_POSITION).astype(np.uint16),
            step_begin=step_begin.astype(np.uint32),
            begin=begin,
        )


def _check_field(field: FieldSpec) -> None:
    path, image = field.path, field.image
    if field.is_action and field.kind not in _ACTION_KINDS:
        raise ConfigError(f"field {path} is {field.kind}: an action is discrete or continuous")
    if field.kind == "text" and field.shape:
        raise ConfigError(f"field {path} is text of shape {field.shape}: text is one string a step")
    if (field.kind == "image") != (image is not None):
        raise ConfigError(f"field {path} is {field.kind} and has {'no' if image is None else 'an'} image size")
    if image is not None and (min(image.height, image.width) <= 0 or image.height % PATCH or image.width % PATCH):
        size = f"{image.height} x {image.width} pixels"
        raise ConfigError(f"field {path} has images of {size}: both must be multiples of {PATCH}")


def _check_length(observation: int, step: int) -> None:
    if observation > MAX_OBSERVATION:
        counted = f"step {step} has {observation} observation tokens, more than {MAX_OBSERVATION}"
        raise RejectedError("step_too_long", counted)


def _equal_steps(kinds: bytes, widths: tuple[int, ...], separator: int, steps: int) -> Arrangement:
    """The arrangement of ``steps`` steps whose sections have these kinds and widths."""
    begin = np.concatenate([[0], np.cumsum(widths)])
    width, observation = int(begin[-1]), int(begin[separator])
    positions = np.full(width, NO_POSITION, np.uint16)
    positions[:observation] = np.arange(observation)
    return Arrangement(
        kinds=np.tile(np.repeat(np.frombuffer(kinds, np.uint8), widths), steps),
        positions=np.tile(positions, steps),
        step_begin=(np.arange(steps) * width).astype(np.uint32),
        begin=begin,
    )


@functools.lru_cache(maxsize=32)
def _longest_shared(kinds: bytes, widths: tuple[int, ...], separator: int) -> Arrangement:
    """Read-only arrays of as many steps as are worth keeping; all shorter episodes get views of them."""
    longest = _equal_steps(kinds, widths, separator, max(1, _CACHED_TOKENS // sum(widths)))
    for array in (longest.kinds, longest.positions, longest.step_begin, longest.begin):
        array.setflags(write=False)
    return longest


@functools.lru_cache(maxsize=256)
def _shared_steps(kinds: bytes, widths: tuple[int, ...], separator: int, steps: int) -> Arrangement:
    """``_equal_steps`` as views of shared arrays; all episodes of one length get the same views."""
    longest = _longest_shared(kinds, widths, separator)
    end = steps * sum(widths)
    return Arrangement(longest.kinds[:end], longest.positions[:end], longest.step_begin[:steps], longest.begin)
