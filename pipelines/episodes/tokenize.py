"""From stored episodes to the records of a shard.

Legend: N recorded steps, the last one included; S steps that have an action; T tokens.
"""

import dataclasses
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar, cast

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from gatokit.pipelines.episodes.fields import ConstantComponents, Constants
from gatokit.pipelines.episodes.filter import EpisodeFilterResult
from gatokit.pipelines.episodes.plan import EpisodesPlan
from gatokit.pipelines.episodes.reader import EpisodeFile, RawEpisode, SourceFeatures, SourceField, Values
from gatokit.pipelines.episodes.scan import AnyEpisodeFile
from gatokit.pipelines.episodes.videos import episode_frames, frames_of_steps
from gatokit.pipelines.losses import LeftOut
from gatokit.pipelines.stages import OutOfRange, ShardSettings, Tokenized, TokenizedRow, count_unknown, rows_by_file
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, TokenizerSettings
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import FIRST, LAST, TERMINAL, EncodedImage, TokenSequence
from gatokit.tokenizers.episode import EpisodeTokenizer
from gatokit.tokenizers.frames import store_frame
from gatokit.tokenizers.tensors import count_outside, count_saturated
from gatokit.tokenizers.text import TextTokenizer, text_of_codes

_RUN_BYTES = 1 << 20
_StoredRow = tuple[int, RawEpisode, SourceFeatures]
_Item = TypeVar("_Item", bound=tuple[int, *tuple[Any, ...]])


@dataclass(frozen=True)
class Episode:
    """The S steps of an episode that have an action; a final observation without one is dropped.

    ``values`` maps the path of every field of the task's spec to its S values: an array (S, *shape), a list
    of ``str`` for text, a list of ``EncodedImage`` for images. ``reward`` and ``discount`` are float64 (S,), None
    if the source has none; ``flags`` is uint8 (S,), made of FIRST, LAST and TERMINAL. ``outside`` has, of each image
    whose values are scaled to pixels, how many values lie outside of its levels, and how many there are.
    """

    id: str
    values: dict[str, np.ndarray | list[str] | list[EncodedImage]]
    reward: np.ndarray | None
    discount: np.ndarray | None
    flags: np.ndarray
    outside: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


class EpisodeShardHeader(BaseModel):
    """What the episodes of a shard are read and tokenized with; ``features_of`` gives each file's index into
    ``features``, and ``specs`` are by id."""

    kind: Literal["episodes"] = "episodes"
    dataset: str
    generations: dict[str, int] = {}
    """See ``SplitEntry``; no part of what the shard depends on."""
    settings: ShardSettings
    specs: dict[str, EpisodeSpec]
    features: list[SourceFeatures]
    features_of: list[int]
    files: list[AnyEpisodeFile]
    last_step: Literal["padding", "real"] = "padding"
    """``real``: the step that ``is_last`` marks is a step like any other."""

    @staticmethod
    def of(
        dataset: str,
        settings: ShardSettings,
        specs: dict[str, EpisodeSpec],
        files: list[tuple[EpisodeFile, SourceFeatures]],
        last_step: Literal["padding", "real"] = "padding",
    ) -> "EpisodeShardHeader":
        """The header over ``files`` with their features; equal features are stored once."""
        features = list(dict.fromkeys(features for _, features in files))
        return EpisodeShardHeader(
            dataset=dataset,
            settings=settings,
            specs=specs,
            features=features,
            features_of=[features.index(item) for _, item in files],
            files=[file for file, _ in files],
            last_step=last_step,
        )

    def source_files(self) -> list[EpisodeFile]:
        """The files, ready to be read."""
        return self.files

    def identity(self) -> dict[str, Any]:
        """What the shard depends on besides settings and rows; files by name and size."""
        return {
            "specs": sorted(self.specs),
            "features": [self.features[index].model_dump(mode="json") for index in self.features_of],
            "files": [(file.name, file.size) for file in self.files],
            **({"last_step": self.last_step} if self.last_step != "padding" else {}),
        }

    def kept_identity(self, files: list[int], specs: list[str]) -> dict[str, Any]:
        """What the records of episodes with these ``specs`` in these of the ``files`` depend on besides settings and
        rows."""
        return {
            "specs": specs,
            "features": [self.features[self.features_of[file]].model_dump(mode="json") for file in files],
            "files": [self.files[file].name for file in files],
            "last_step": self.last_step,
        }

    @property
    def has_pictures(self) -> bool:
        """Whether records may hold pictures."""
        return any(field.image is not None for spec in self.specs.values() for field in spec.fields)

    def builder(self, text: TextTokenizer | None) -> "EpisodeShardBuilder":
        """Makes the records of the shard's rows with this vocabulary, which episodes without text do not need."""
        return EpisodeShardBuilder(self, text)


def shard_header(
    plan: EpisodesPlan, result: EpisodeFilterResult, files: list[int], rows: pa.Table, settings: ShardSettings
) -> EpisodeShardHeader:
    """The header of a shard task with these rows, which lie in these of the plan's files."""
    tasks = rows["task"].unique().to_pylist()
    specs = {result.specs[task].id: result.specs[task] for task in tasks if task is not None}
    sources = [(plan.files[number], plan.features[number]) for number in files]
    reading = result.last_step.reading
    return EpisodeShardHeader.of(plan.config.name, settings, dict(sorted(specs.items())), sources, reading)


class EpisodeShardBuilder:
    """Makes the records of a shard's episodes."""

    def __init__(self, header: EpisodeShardHeader, text: TextTokenizer | None) -> None:
        self._header = header
        settings = TokenizerSettings.of(header.settings.discrete_offset)
        self._tokenizers = {id_: EpisodeTokenizer(spec, settings, text) for id_, spec in header.specs.items()}
        self._unknown_id = None if text is None else text.unknown_id
        self.out_of_range: OutOfRange = {}
        self.left_out = LeftOut()
        self._constant = ConstantComponents()

    @property
    def constants(self) -> Constants:
        """The components that have one value in all episodes so far."""
        return self._constant.constants()

    def tokenize(self, columns: dict[str, list[Any]], rows: list[int]) -> Iterator[Tokenized]:
        """Yields each of ``rows``, in order, with its records or the error that says why it has none.

        ``columns`` are those of the shard task. Raises DataError if the source changed since the scan.
        """
        lengths = columns["length"]
        yield from _in_runs(self._tokenized(columns, _in_runs(self._read(columns, rows), lengths)), lengths)

    def _read(self, columns: dict[str, list[Any]], rows: list[int]) -> Iterator[_StoredRow]:
        """The episodes file by file."""
        header = self._header
        for file, rows_of_file, byte_ranges in rows_by_file(columns, rows):
            features = header.features[header.features_of[file]]
            for row, raw in zip(rows_of_file, header.files[file].read_some(byte_ranges), strict=True):
                yield row, raw, features

    def _tokenized(self, columns: dict[str, list[Any]], stored: Iterator[_StoredRow]) -> Iterator[Tokenized]:
        for row, raw, features in stored:
            spec_id = columns["spec"][row]
            spec = self._header.specs[spec_id]
            try:
                episode = to_episode(raw, features, spec, columns["episode_id"][row], self._header.last_step)
                sequence = self._tokenizers[spec_id].encode(episode.values, len(episode.flags))
            except RejectedError as error:
                yield row, error
                continue
            if self._unknown_id is not None:
                count_unknown(self.left_out, sequence, self._unknown_id, columns["episode_id"][row])
            counts = self.out_of_range.setdefault(columns["task"][row], {})
            for field in spec.fields:
                if field.kind == "continuous":
                    values = episode.values[field.path]
                    assert isinstance(values, np.ndarray)
                    outside = count_outside(values, field.range) if field.is_action else count_saturated(values)
                    episode.outside[field.path] = outside, values.size
            for path, (outside, total) in episode.outside.items():
                before = counts.get(path, (0, 0))
                counts[path] = before[0] + outside, before[1] + total
            self._constant.add(spec, spec_id, episode.values)
            yield row, TokenizedRow(*records(episode, sequence, spec_id, self._header.settings.chunk_tokens))


def _in_runs(items: Iterator[_Item], lengths: list[int]) -> Iterator[_Item]:
    """The same items, made several in a row; ``lengths`` are the stored bytes of the rows that they begin with.

    A stage that works on a run of small episodes finds its code and tables in the processor's cache.
    """
    run, size = [], 0
    for item in items:
        run.append(item)
        size += lengths[item[0]]
        if size >= _RUN_BYTES:
            yield from run
            run, size = [], 0
    yield from run


def to_episode(
    raw: RawEpisode, features: SourceFeatures, spec: EpisodeSpec, id: str, last_step: Literal["padding", "real"]
) -> Episode:
    """The S steps of a stored episode that have an action, with frames that fit the spec.

    The step that ``is_last`` marks has one if ``last_step`` is real.
    Raises RejectedError, which names the field, if one is absent, has another length, or holds no UTF-8 or no image.
    """
    is_last = _flag(raw, features, "is_last")
    assert is_last is not None
    recorded = len(is_last)
    steps = recorded - (int(np.count_nonzero(is_last)) if last_step == "padding" else 0)
    values: dict[str, np.ndarray | list[str] | list[EncodedImage]] = {}
    outside: dict[str, tuple[int, int]] = {}
    for item in spec.fields:
        column = read_field(raw, features, item, recorded, steps)
        if item.image is None:
            values[item.path] = cast(np.ndarray | list[str], column)
        else:
            values[item.path], counted = _stored_frames(cast(Iterable[bytes | np.ndarray], column), item)
            if counted[1]:
                outside[item.path] = counted
    reward = _numbers(raw, features, "reward", recorded, steps)
    discount = _numbers(raw, features, "discount", recorded, steps)
    flags = np.zeros(steps, np.uint8)
    is_terminal = _flag(raw, features, "is_terminal")
    if steps:
        flags[0] |= FIRST
        flags[-1] |= LAST if is_last.any() else 0
        flags[-1] |= TERMINAL if is_terminal is not None and is_terminal[-1] else 0
    return Episode(id=id, values=values, reward=reward, discount=discount, flags=flags, outside=outside)


def _column(raw: RawEpisode, source: SourceField, recorded: int) -> Values:
    column = raw.column(source)
    if len(column) != recorded:
        raise RejectedError("malformed_steps", f"{source.path} has {len(column)} values for {recorded} steps")
    return column


def read_field(
    raw: RawEpisode, features: SourceFeatures, field: FieldSpec, recorded: int, steps: int
) -> Values | list[str] | Iterator[bytes | np.ndarray]:
    """The values of a spec's field in the first ``steps`` of the ``recorded`` ones: texts are decoded, frames are as
    the source has them, and those of a video are decoded one at a time.

    A value of the episode stands in every step. Raises RejectedError, which names the field.
    """
    found, absent = [], None
    for path in field.source or (field.path,):
        source = features.step(path)
        try:
            if source is not None:
                found.append((path, source, _column(raw, source, recorded)[:steps]))
            elif (source := features.metadata_field(path)) is not None:
                value = raw.episode_value(source)
                frames = None if field.image is None else episode_frames(source, value)
                if frames is not None:
                    return frames_of_steps(path, frames, recorded, steps)
                found.append((path, source, _repeated(value, steps)))
        except RejectedError as error:
            if error.reason != "missing_field":
                raise
            absent = error
    if not found:
        raise absent or RejectedError("missing_field", f"{field.path} is no field of the source")
    if field.kind == "text":
        columns = [_texts(path, column) for path, _, column in found]
        texts = (
            columns[0] if len(columns) == 1 else [next(filter(None, step), "") for step in zip(*columns, strict=True)]
        )
        return texts if field.every == "step" else _once(field.path, texts)
    _, source, column = found[0]
    return _filled(column, source, field) if source.form == "ragged" else column


def texts_of(raw: RawEpisode, features: SourceFeatures, spec: EpisodeSpec) -> dict[str, None]:
    """The distinct texts of an episode's steps; of a field that a build rejects there are none."""
    texts: dict[str, None] = {}
    for field in spec.fields:
        if field.kind == "text":
            with suppress(RejectedError):
                is_last = _flag(raw, features, "is_last")
                assert is_last is not None
                texts |= dict.fromkeys(cast(list[str], read_field(raw, features, field, len(is_last), len(is_last))))
    return texts


def _repeated(values: Values, steps: int) -> Values:
    if isinstance(values, np.ndarray):
        return np.repeat(values, steps, axis=0)
    return cast(Values, list(values) * steps)


def _texts(path: str, column: Values) -> list[str]:
    """Strings, or codes of characters (bytes of UTF-8, or else code points) with zeros behind them, as texts."""
    decoded: dict[bytes, str] = {}
    texts = []
    for step, value in enumerate(column):
        data = value if isinstance(value, bytes) else value.astype("<i8").tobytes()
        if data not in decoded:
            try:
                decoded[data] = str(data, "utf-8") if isinstance(value, bytes) else text_of_codes(value)
            except ValueError:
                raise RejectedError("not_utf8", f"{path} is not valid UTF-8 at step {step}") from None
        texts.append(decoded[data])
    return texts


def _once(path: str, texts: list[str]) -> list[str]:
    """The text of the first step, and "" in the others."""
    for step, text in enumerate(texts):
        if text not in ("", texts[0]):
            raise RejectedError("malformed_steps", f"{path} has another text at step {step}, not one an episode")
    return [text if step == 0 else "" for step, text in enumerate(texts)]


def _filled(column: Values, source: SourceField, field: FieldSpec) -> np.ndarray:
    """Ragged values filled up with zeros to ``max_length``."""
    filled = np.zeros((len(column), *field.shape), source.dtype)
    for step, values in enumerate(column):
        if len(values) > field.shape[0]:
            count = f"{len(values)} values at step {step}, more than max_length {field.shape[0]}"
            raise RejectedError("wrong_shape", f"{source.path} has {count}")
        filled[step, : len(values)] = values
    return filled


def _stored_frames(
    column: Iterable[bytes | np.ndarray], field: FieldSpec
) -> tuple[list[EncodedImage], tuple[int, int]]:
    """The images of frames; how many of their values lie outside of the field's levels, and of how many."""
    images: list[EncodedImage] = []
    outside = total = 0
    before = None
    for step, frame in enumerate(column):
        if frame is before:  # an image of the episode
            images.append(images[-1])
            continue
        before = frame
        try:
            image, beyond, size = store_frame(frame, field)
        except RejectedError as error:
            raise RejectedError(error.reason, f"{field.path} at step {step}: {error.detail}") from None
        images.append(image)
        outside, total = outside + beyond, total + size
    return images, (outside, total)


def _numbers(raw: RawEpisode, features: SourceFeatures, path: str, recorded: int, steps: int) -> np.ndarray | None:
    """A scalar field of the S steps in float64; None if the source has none."""
    source = features.step_scalar(path)
    if source is None:
        return None
    values = np.asarray(_column(raw, source, recorded)[:steps], np.float64).reshape(steps)
    finite = np.isfinite(values)
    if not finite.all():
        step = int(np.argmin(finite))
        raise RejectedError("not_finite", f"{path} is {values[step]} at step {step}")
    return values


def _flag(raw: RawEpisode, features: SourceFeatures, path: str) -> np.ndarray | None:
    source = features.step_scalar(path)
    return None if source is None else np.asarray(raw.column(source)).astype(bool).ravel()


def records(episode: Episode, sequence: TokenSequence, spec: str, chunk_tokens: int) -> tuple[list[bytes], list[int]]:
    """The serialized records of a tokenized episode in order, and how many tokens each has; S > 0."""
    starts = chunk_starts(sequence.step_begin, len(sequence.tokens), chunk_tokens)
    record = Record(
        owner=episode.id,
        chunk=0,
        chunks=1,
        first_step=0,
        spec=spec,
        sequence=sequence,
        reward=episode.reward,
        discount=episode.discount,
        flags=episode.flags,
    )
    begins = [*sequence.step_begin[starts].tolist(), len(sequence.tokens)]
    return record.divided(starts), [end - begin for begin, end in pairwise(begins)]


def chunk_starts(step_begin: np.ndarray, tokens: int, chunk_tokens: int) -> list[int]:
    """The steps at which chunks begin: each has as many whole steps as fit into ``chunk_tokens``, at least one.

    ``step_begin`` is (S,), ``tokens`` is T.
    """
    begins = step_begin.data  # a memoryview: its items are plain numbers
    starts, step, steps = [], 0, len(begins)
    while step < steps:
        starts.append(step)
        limit = begins[step] + chunk_tokens
        fits = steps if tokens <= limit else bisect_right(begins, limit, step + 1) - 1
        step = max(step + 1, fits)
    return starts
