"""Where the tokens of a task's time steps stand: kinds, local positions and the beginning of every field.

A time step is its observation fields in key order, the separator, its action fields in key order (Gato, section
2.1); each of these is a section of the step. Only sections of text vary in width.

Legend: S time steps, T tokens, K tokens of one step, N sections, X text fields.
"""

import functools
from dataclasses import dataclass

import numpy as np

from gatokit.schemas.episode import EpisodeSpec, FieldSpec
from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.tokens import NO_POSITION, PATCH, TokenKind, TokenSequence

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


@dataclass(frozen=True)
class Arrangement:
    """The tokens of S steps.

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

    def index(self, section: int, width: int) -> np.ndarray:
        """The tokens of one section of ``width`` tokens in every step, int64 (S, width)."""
        first = self.step_begin.astype(np.int64) + self.begin[..., section]
        return first[:, None] + np.arange(width)

    def ragged_index(self, section: int) -> np.ndarray:
        """The tokens of one section in all steps, one step after the other, int64 (sum of its widths,)."""
        widths = np.broadcast_to(self.begin[..., section + 1] - self.begin[..., section], self.step_begin.shape)
        first = self.step_begin.astype(np.int64) + self.begin[..., section]
        return np.repeat(first - (np.cumsum(widths) - widths), widths) + np.arange(widths.sum())


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
        action = spec.action if actions else ()
        self.separator = len(spec.observation)
        """Section of the separator."""
        self.fields = dict(enumerate(spec.observation)) | dict(enumerate(action, self.separator + 1))
        """Field of every section but the separator, in token order."""
        self.text = tuple(section for section, field in self.fields.items() if field.kind == "text")
        """Sections of text, whose widths vary."""
        self._widths = [field.tokens or 0 for field in spec.observation] + [1]
        self._widths += [field.tokens or 0 for field in action]
        self._kinds = bytes(
            [_OBSERVATION_KINDS[field.kind] for field in spec.observation]
            + [TokenKind.SEPARATOR]
            + [_ACTION_KINDS[field.kind] for field in action]
        )

    def width(self, section: int) -> int:
        """Tokens of a section that is not text."""
        return self._widths[section]

    def arrange(self, steps: int, text_widths: np.ndarray | None = None) -> Arrangement:
        """Where the tokens of ``steps`` steps stand; ``text_widths`` int (S, X) are the tokens of every text field.

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
        """Where the tokens of an encoded sequence of whole steps stand.

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
    if field.is_action and field.kind not in _ACTION_KINDS:
        raise ConfigError(f"field {field.path} is {field.kind}: an action is discrete or continuous")
    if field.kind == "text" and field.shape:
        raise ConfigError(f"field {field.path} is text of shape {field.shape}: text is one string a step")
    image = field.image
    if (field.kind == "image") != (image is not None):
        raise ConfigError(f"field {field.path} is {field.kind} and has {'no' if image is None else 'an'} image size")
    if image is not None and (min(image.height, image.width) <= 0 or image.height % PATCH or image.width % PATCH):
        raise ConfigError(
            f"field {field.path} has images of {image.height} x {image.width} pixels: both must be multiples of {PATCH}"
        )


def _check_length(observation: int, step: int) -> None:
    if observation > MAX_OBSERVATION:
        raise RejectedError(
            "step_too_long", f"step {step} has {observation} observation tokens, more than {MAX_OBSERVATION}"
        )


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
