"""What the values of a field are like: extremes, quantiles, distinct values, texts and frames.

Legend: N recorded steps of an episode, the last one included; C components of a field.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import cv2
import numpy as np

from gatokit.pipelines.episodes.reader import RawEpisode, SourceField, Values
from gatokit.pipelines.episodes.videos import episode_frames, has_frames
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.words import counted
from gatokit.tokenizers.image_codec import decode_unchanged, probe

MOST_DISTINCT = 1000
"""Distinct values are counted up to this number."""
_MOST_VALUES = 1 << 19
"""About as many values of a field are kept for its quantiles: all steps, or every second, every fourth, …"""
_MOST_COMPONENTS = 64
_MOST_DECODED = 1000
"""When as many frames of a field's video files are decoded, others are not looked at."""
_BLACK = 10
"""A frame of JPEG whose brightest pixel is at most this is black; in others all pixels are 0."""
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class FieldStatistics:
    """What the values of a field are like in the episodes that were looked at; None for what it does not have.

    ``low``, ``high``, ``q01`` and ``q99`` of ``components`` are (C,) each, for at most 64 components.
    """

    episodes: int
    """Episodes that have it."""
    missing: str | None = None
    """Why some episodes do not have it, or it cannot be read there."""
    min: float | None = None
    max: float | None = None
    q01: float | None = None
    q99: float | None = None
    components: dict[str, tuple[float, ...]] | None = None
    whole: bool | None = None
    """Whether all numbers are whole numbers."""
    distinct: int | None = None
    """Counted up to ``MOST_DISTINCT``."""
    constant: float | None = None
    """Share of components that are the same in all steps of all episodes."""
    lengths: tuple[int, int] | None = None
    """The fewest and the most values of a step, if the number varies."""
    steady: bool | None = None
    """Whether it is the same in all steps of each episode."""
    not_finite: float | None = None
    """Share of numbers that are NaN or infinite."""
    black: float | None = None
    """Share of frames that are black, of three an episode."""
    frame: tuple[int, ...] | None = None
    """Height, width and channels of the first frame."""
    frame_a_step: bool | None = None
    """Of a video of the episode: whether it has as many frames as the episode has steps."""
    empty: float | None = None
    """Share of texts that are empty."""
    longest: int | None = None
    """Characters of the longest text."""
    words: float | None = None
    """Mean number of words of a text."""
    is_text: bool | None = None
    """Of strings: whether all are UTF-8. Of integers: whether all are codes of printable characters, and then zeros."""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class DescribedField:
    """A field of the source and its values. Fields that differ between directories in more than values are several.

    ``firsts`` holds the first value of each episode, and ``anys`` whether it is true in any step of it, if the field is
    one number or text.
    """

    source: SourceField
    belongs_to: Literal["step", "episode"]
    directories: int
    statistics: FieldStatistics
    firsts: tuple[str | float | None, ...] = field(default=(), repr=False)
    anys: tuple[bool | None, ...] = field(default=(), repr=False)

    @property
    def path(self) -> str:
        """The key path below the step or the episode."""
        return self.source.path

    @property
    def is_text(self) -> bool:
        """Whether a step or an episode has one text, or the codes of one."""
        values, source = self.statistics, self.source
        return bool(values.is_text) and values.frame is None and (source.form == "tensor" or not source.shape)

    @property
    def in_steps(self) -> bool:
        """Whether each step has a value of it: it belongs to the step, or is a video with one frame a step."""
        return self.belongs_to == "step" or bool(self.statistics.frame_a_step)

    @property
    def estimated_tokens(self) -> int:
        """Tokens a step; those of text are guessed by its words."""
        values = self.statistics
        return math.ceil(1.4 * (values.words or 0)) if values.is_text else math.prod(self.source.sides)

    @property
    def cardinality(self) -> str:
        """How many values it has in how many episodes."""
        distinct = self.statistics.distinct or 0
        more = "+" * (distinct == MOST_DISTINCT)
        return f"{distinct:,}{more} distinct in {counted(self.statistics.episodes, 'episode')}"

    @property
    def example(self) -> str:
        """One of its values."""
        examples = self.statistics.examples
        return f"'{examples[0]}'" if examples else number_text(self.statistics.min or 0)

    @property
    def span(self) -> str:
        """Its lowest and highest number."""
        low, high = self.statistics.min, self.statistics.max
        if low is None or high is None:
            return "no number"
        return number_text(low) if low == high else f"{number_text(low)} to {number_text(high)}"


class Column:
    """Values of one field."""

    def __init__(self, source: SourceField, belongs_to: Literal["step", "episode"]) -> None:
        self._source, self._belongs_to = source, belongs_to
        self._numbers, self._texts, self._frames = _Numbers(), _Texts(), _Frames()
        self._episodes = 0
        self._missing: str | None = None
        self._steady = True
        self._firsts: dict[int, str | float | None] = {}
        self._anys: dict[int, bool] = {}
        self._lengths: set[int] = set()
        self._frame_a_step: bool | None = None
        self._decoded = 0

    def add_steps(self, number: int, episode: RawEpisode) -> Values | None:
        """The values of all steps of an episode, after they were looked at; None if it has none."""
        source = self._source
        if source.form == "unreadable":
            return None
        try:
            values = episode.column(source)
        except RejectedError as error:
            self._missing = self._missing or error.problem
            return None
        self._episodes += 1
        if not len(values):
            return values
        if source.form == "ragged":
            arrays = [np.asarray(value) for value in values]
            self._lengths = {*self._lengths, *map(len, arrays)}
            flat = np.concatenate([array.reshape(-1, 1) for array in arrays])
            if len(flat):
                self._numbers.add(flat)
            return values
        if isinstance(values, list):
            strings = [value for value in values if isinstance(value, bytes)]
            self._steady &= len(set(strings)) == 1
            if source.form == "image" or self._frames.are_images(strings[0]):
                self._frames.add(strings, self._numbers, source.dtype)
            else:
                self._firsts[number] = self._texts.add(strings)
            return values
        self._steady &= bool((values == values[:1]).all())
        self._numbers.add(values.reshape(len(values), -1))
        if values.dtype == np.uint8 and values.ndim == 4:
            self._frames.add_pixels(values)
        if values.size == len(values):
            flat = values.reshape(-1)
            self._firsts[number], self._anys[number] = float(flat[0]), bool(np.any(flat))
        return values

    def add_metadata(self, number: int, episode: RawEpisode, steps: int) -> None:
        """Looks at the value of an episode of N ``steps``."""
        source = self._source
        if source.form == "unreadable":
            return
        try:
            if (has_frames(source) or (source.form == "string" and not source.shape)) and self._add_video(
                episode, steps
            ):
                return
            if source.shape and source.form != "tensor":
                return
            if source.shape:
                self._numbers.add(np.asarray(episode.episode_value(source)).reshape(1, -1))
                self._episodes += 1
                return
            value = episode.metadata(source)
        except RejectedError as error:
            self._missing = self._missing or error.problem
            return
        if value is None:
            return
        self._episodes += 1
        if isinstance(value, str):
            self._firsts[number] = self._texts.add([value.encode()])
        else:
            self._numbers.add(np.array([[value]]))
            self._firsts[number], self._anys[number] = float(value), bool(value)

    def _add_video(self, episode: RawEpisode, steps: int) -> bool:
        """Looks at the first, the middle and the last frame of a video; False if the value is no video."""
        is_file = self._source.form == "string"
        try:
            frames = episode_frames(self._source, episode.episode_value(self._source))
        except RejectedError:
            if not is_file:
                raise
            return False
        if frames is None:
            return False
        if is_file and self._decoded > _MOST_DECODED:
            return True
        count = 0
        chosen: list[Any] = []
        for count, frame in enumerate(islice(frames, steps + 1), 1):
            if count in (1, 1 + steps // 2, steps):
                chosen.append(frame)
        self._episodes += 1
        self._decoded += count * is_file
        self._frame_a_step = count == steps and self._frame_a_step is not False
        if isinstance(frames, list):
            self._frames.add(chosen, self._numbers, self._source.dtype)
        elif chosen:
            self._frames.add_pixels(np.stack(chosen), _BLACK * is_file)
        return True

    def described(self, directories: int, episodes: int) -> DescribedField:
        """The field with its statistics."""
        statistics: dict[str, Any] = {"episodes": self._episodes, "missing": self._missing}
        if self._episodes:
            statistics["steady"] = self._steady if self._belongs_to == "step" else None
            statistics["frame_a_step"] = self._frame_a_step
            if self._lengths:
                statistics["lengths"] = (min(self._lengths), max(self._lengths))
            for part in (self._numbers, self._texts, self._frames):
                statistics |= part.statistics(self._source)
        firsts = tuple(self._firsts.get(number) for number in range(episodes)) if self._firsts else ()
        anys = tuple(self._anys.get(number) for number in range(episodes)) if self._anys else ()
        return DescribedField(self._source, self._belongs_to, directories, FieldStatistics(**statistics), firsts, anys)


class _Numbers:
    """Numbers of a field: extremes of all of them, and for quantiles all steps or every second, every fourth, …"""

    def __init__(self) -> None:
        self._low: Any = math.inf
        self._high: Any = -math.inf
        self._count = self._bad = self._steps = self._kept = 0
        self._stride = 1
        self._rows: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """Adds values (N, C)."""
        if values.dtype.kind == "b":
            values = values.view(np.uint8)
        if values.dtype.kind == "f":
            is_finite = np.isfinite(values)
            self._bad += values.size - int(np.count_nonzero(is_finite))
            if not is_finite.all():
                values = np.where(is_finite, values, np.nan)
        self._count += values.size
        self._low = np.fmin(self._low, np.fmin.reduce(values))
        self._high = np.fmax(self._high, np.fmax.reduce(values))
        # A copy, because values are often views that keep all bytes of their episode.
        rows = values[-self._steps % self._stride :: self._stride].copy()
        self._steps += len(values)
        self._rows.append(rows)
        self._kept += rows.size
        while self._kept > _MOST_VALUES and self._kept > values.shape[1]:
            self._rows, self._stride = [np.concatenate(self._rows)[::2]], 2 * self._stride
            self._kept = self._rows[0].size

    def statistics(self, source: SourceField) -> dict[str, Any]:
        """The part of ``FieldStatistics`` that numbers have."""
        if not self._count:
            return {}
        sample = np.concatenate(self._rows)
        low, high = (np.asarray(ends, np.float64).reshape(-1) for ends in (self._low, self._high))
        finite = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample.reshape(-1)
        if not finite.size:
            return {"not_finite": 1.0}
        q01, q99 = np.quantile(finite, (0.01, 0.99))
        found: dict[str, Any] = {
            "min": float(np.nanmin(low)),
            "max": float(np.nanmax(high)),
            "q01": float(q01),
            "q99": float(q99),
            "whole": bool((finite == np.rint(finite)).all()),
            "not_finite": self._bad / self._count,
        }
        if source.form != "image":
            found |= {"distinct": _count_distinct(finite), "constant": float(np.mean(low == high))}
        if 0 < len(low) <= _MOST_COMPONENTS and not np.isnan(low).any():
            each = np.nanquantile(sample, (0.01, 0.99), axis=0)
            ends = {"low": low, "high": high, "q01": each[0], "q99": each[1]}
            found["components"] = {name: tuple(map(float, values)) for name, values in ends.items()}
        if source.form == "tensor" and sample.dtype.kind in "iu" and len(source.shape) == 1 and source.sides[0] > 1:
            texts = [code_text(row) for row in sample]
            found["is_text"] = None not in texts and any(texts)
            if found["is_text"]:
                found["words"] = float(np.mean([len((text or "").split()) for text in texts]))
                found["longest"] = max(len(text or "") for text in texts)
                found["empty"] = texts.count("") / len(texts)
                found["examples"] = tuple(filter(None, dict.fromkeys(texts)))[:_EXAMPLES]
                found["distinct"] = min(MOST_DISTINCT, len(set(texts)))
        return found


def code_text(codes: np.ndarray) -> str | None:
    """The text whose characters the integers (C,) are, up to the zeros at its end; None if they are no such codes."""
    length = len(codes) if codes.all() else int(np.argmin(codes != 0))
    text = codes[:length]
    if codes[length:].any() or (length and (text.min() < 9 or text.max() > 0x10FFFF)):
        return None
    decoded = "".join(map(chr, text.tolist()))
    return decoded if all(character.isprintable() or character.isspace() for character in decoded) else None


class _Texts:
    """Texts of a field."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()
        self._examples: list[bytes] = []
        self._count = self._empty = self._longest = self._words = 0
        self._is_text = True

    def add(self, values: list[bytes]) -> str | None:
        """Adds the texts of some steps; the first one, None if it is no UTF-8."""
        first = None
        for ordinal, (value, count) in enumerate(Counter(values).items()):
            try:
                text = str(value, "utf-8")
            except UnicodeDecodeError:
                self._is_text, text = False, repr(value)
            first = text if ordinal == 0 and self._is_text else first
            self._count += count
            self._empty += count * (not value)
            self._longest = max(self._longest, len(text))
            self._words += count * len(text.split())
            if len(self._hashes) < MOST_DISTINCT and hash(value) not in self._hashes:
                self._hashes.add(hash(value))
                if value and len(self._examples) < _EXAMPLES:
                    self._examples.append(value[: 4 * _EXAMPLE_CHARACTERS])  # a character has at most four bytes
        return first

    def statistics(self, source: SourceField) -> dict[str, Any]:
        """The part of ``FieldStatistics`` that texts have."""
        if not self._count:
            return {}
        examples = [str(value, "utf-8", "backslashreplace") for value in self._examples]
        return {
            "distinct": len(self._hashes),
            "constant": float(len(self._hashes) == 1),
            "empty": self._empty / self._count,
            "longest": self._longest,
            "words": self._words / self._count,
            "is_text": self._is_text,
            "examples": tuple(text[:_EXAMPLE_CHARACTERS] for text in examples),
        }


class _Frames:
    """Frames of a field: the first, the middle and the last one of each episode."""

    def __init__(self) -> None:
        self._frame: tuple[int, ...] | None = None
        self._count = self._black = 0

    @staticmethod
    def are_images(value: bytes) -> bool:
        """Whether a string of the source is a PNG or JPEG."""
        try:
            return bool(probe(value))
        except RejectedError:
            return False

    def add(self, values: list[bytes], numbers: _Numbers, dtype: str) -> None:
        """Adds encoded frames; pixels of more than 8 bits also become ``numbers``."""
        for data in {0: values[0], len(values) // 2: values[len(values) // 2], -1: values[-1]}.values():
            try:
                header = probe(data)
            except RejectedError:
                continue
            self._frame = self._frame or (header.height, header.width, header.channels)
            is_plain = dtype in ("uint8", "str") and header.bit_depth == 8
            try:
                pixels = _small(data) if header.codec == "jpeg" else decode_unchanged(data)
            except RejectedError:
                continue
            if pixels is None:
                continue
            if dtype == "float32":  # TFDS stores float32 as the four bytes of a pixel
                pixels = np.ascontiguousarray(pixels).view(np.float32)
            self._count += 1
            self._black += bool(pixels.max() <= (_BLACK if header.codec == "jpeg" else 0))
            if not is_plain:
                numbers.add(pixels.reshape(1, -1))

    def add_pixels(self, values: np.ndarray, black: int = 0) -> None:
        """Adds pixels (N, H, W, channels); a frame is black if none is brighter than ``black``."""
        self._frame = values.shape[1:]
        frames = values[sorted({0, len(values) // 2, len(values) - 1})]
        self._count += len(frames)
        self._black += int((frames.reshape(len(frames), -1).max(1) <= black).sum())

    def statistics(self, source: SourceField) -> dict[str, Any]:
        """The part of ``FieldStatistics`` that frames have."""
        return {"black": self._black / self._count, "frame": self._frame} if self._count else {}


def _small(data: bytes) -> np.ndarray | None:
    """A JPEG in gray at an eighth of its size, which is quick to decode; None if it is damaged."""
    pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    return pixels


def number_text(value: float) -> str:
    """A number for people."""
    return f"{value:.4g}" if not float(value).is_integer() or abs(value) >= 1e6 else f"{int(value)}"


def plain(value: float) -> float | int:
    """A number for a config: whole ones without a point."""
    return int(value) if float(value).is_integer() else float(value)


def _count_distinct(values: np.ndarray) -> int:
    return min(MOST_DISTINCT, len(np.unique(values)))
