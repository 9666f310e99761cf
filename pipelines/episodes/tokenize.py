"""From stored episodes to the records of a shard.

Legend: N recorded steps, the last one included; S steps that have an action.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel

from gatokit.pipelines.dataset import OutOfRange, ShardSettings, TokenizedRow
from gatokit.pipelines.episodes.chunks import records
from gatokit.pipelines.episodes.formats import file_from_json, file_to_json
from gatokit.pipelines.episodes.reader import EpisodeFile, RawEpisode, SourceFeatures, SourceField, Values
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.episode import FIRST, LAST, TERMINAL, Episode, EpisodeSpec, FieldSpec, ImageSpec
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import EncodedImage, TokenIds
from gatokit.tokenizers.episode import EpisodeTokenizer
from gatokit.tokenizers.image_codec import fit
from gatokit.tokenizers.tensors import count_outside
from gatokit.tokenizers.text import TextTokenizer

_RUN_BYTES = 1 << 20
_Stored = tuple[int, RawEpisode, SourceFeatures]
_Item = TypeVar("_Item", bound=tuple[int, *tuple[Any, ...]])


class EpisodeShardHeader(BaseModel):
    """Files, features and specs of a shard. ``features_of`` gives each file's index into ``features``."""

    kind: Literal["episodes"] = "episodes"
    dataset: str
    settings: ShardSettings
    specs: dict[str, EpisodeSpec]
    features: list[SourceFeatures]
    features_of: list[int]
    files: list[dict[str, Any]]

    @staticmethod
    def of(
        dataset: str,
        settings: ShardSettings,
        specs: dict[str, EpisodeSpec],
        files: list[tuple[EpisodeFile, SourceFeatures]],
    ) -> "EpisodeShardHeader":
        """The header of a shard with these files. Equal features are stored once."""
        features: list[SourceFeatures] = []
        features_of = []
        for _, item in files:
            if item not in features:
                features.append(item)
            features_of.append(features.index(item))
        return EpisodeShardHeader(
            dataset=dataset,
            settings=settings,
            specs=specs,
            features=features,
            features_of=features_of,
            files=[file_to_json(file) for file, _ in files],
        )

    def source_files(self) -> list[EpisodeFile]:
        """The files, ready to be read."""
        return [file_from_json(file) for file in self.files]

    def identity(self) -> dict[str, Any]:
        """What the shard depends on besides settings and rows. Files count by name and size."""
        return {
            "specs": sorted(self.specs),
            "features": [self.features[index].model_dump(mode="json") for index in self.features_of],
            "files": [(file["name"], file["size"]) for file in self.files],
        }


class EpisodeShardBuilder:
    """Makes the records of a shard's episodes; see ``dataset.ShardBuilder``."""

    def __init__(self, header: EpisodeShardHeader, text: TextTokenizer) -> None:
        self._header, self._files = header, header.source_files()
        ids = TokenIds(header.settings.discrete_offset)
        self._tokenizers = {id_: EpisodeTokenizer(spec, ids, text) for id_, spec in header.specs.items()}
        self.out_of_range: OutOfRange = {}

    def tokenize(
        self, columns: dict[str, list[Any]], rows: list[int]
    ) -> Iterator[tuple[int, TokenizedRow | RejectedError]]:
        """See ``dataset.ShardBuilder``."""
        lengths = columns["length"]
        yield from _in_runs(self._made(columns, _in_runs(self._stored(columns, rows), lengths)), lengths)

    def _made(
        self, columns: dict[str, list[Any]], stored: Iterator[_Stored]
    ) -> Iterator[tuple[int, TokenizedRow | RejectedError]]:
        chunk_tokens = self._header.settings.chunk_tokens
        for row, raw, features in stored:
            spec_id = columns["spec"][row]
            spec = self._header.specs[spec_id]
            try:
                episode = to_episode(raw, features, spec, columns["episode_id"][row])
                sequence = self._tokenizers[spec_id].encode(episode)
            except RejectedError as error:
                yield row, error
                continue
            _count(self.out_of_range.setdefault(columns["task"][row], {}), episode, spec)
            yield row, TokenizedRow(*records(episode, sequence, spec_id, chunk_tokens))

    def _stored(self, columns: dict[str, list[Any]], rows: list[int]) -> Iterator[_Stored]:
        """The episodes file by file."""
        for ordinal, rows_of_file in groupby(rows, key=lambda row: columns["file"][row]):
            own = list(rows_of_file)
            features = self._header.features[self._header.features_of[ordinal]]
            names = ("source_position", "offset", "length", "crc")
            places = [ByteRange(*(columns[name][row] for name in names)) for row in own]
            for row, raw in zip(own, self._files[ordinal].read_some(features, places), strict=True):
                yield row, raw, features


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


def _count(counts: dict[str, tuple[int, int]], episode: Episode, spec: EpisodeSpec) -> None:
    for field in spec.action:
        if field.range is not None:
            values = episode.values[field.path]
            assert isinstance(values, np.ndarray)
            before, total = counts.get(field.path, (0, 0))
            counts[field.path] = before + count_outside(values, field.range), total + values.size


def to_episode(raw: RawEpisode, features: SourceFeatures, spec: EpisodeSpec, id: str) -> Episode:
    """The S steps of a stored episode that have an action, frames fitted to the spec.

    RejectedError names the field that is absent, of another length, no UTF-8 or no image.
    """
    is_last = _flag(raw, features, "is_last")
    assert is_last is not None
    recorded = len(is_last)
    steps = recorded - int(np.count_nonzero(is_last))
    values = {field.path: _values(raw, features, field, recorded, steps) for field in spec.fields}
    reward = _number(raw, features, "reward", recorded, steps)
    assert reward is not None
    return Episode(
        id=id,
        values=values,
        reward=reward,
        discount=_number(raw, features, "discount", recorded, steps),
        flags=_flags(is_last, _flag(raw, features, "is_terminal"), steps),
    )


def _values(
    raw: RawEpisode, features: SourceFeatures, field: FieldSpec, recorded: int, steps: int
) -> np.ndarray | list[str] | list[EncodedImage]:
    source = features.step(field.path)
    if source is None:
        raise RejectedError("missing_field", f"{field.path} is no field of the source")
    column = _column(raw, source, recorded)[:steps]
    if field.kind == "text":
        assert isinstance(column, list)
        return _texts(column, field.path)
    if field.image is not None:
        return _images(column, field.image, field.path)
    assert isinstance(column, np.ndarray)
    return column


def _column(raw: RawEpisode, source: SourceField, recorded: int) -> Values:
    column = raw.column(source)
    if len(column) != recorded:
        raise RejectedError("malformed_steps", f"{source.path} has {len(column)} values for {recorded} steps")
    return column


def _texts(column: list[bytes], path: str) -> list[str]:
    known: dict[bytes, str] = {}
    for step, data in enumerate(column):
        if data not in known:
            try:
                known[data] = str(data, "utf-8")
            except UnicodeDecodeError:
                raise RejectedError("not_utf8", f"{path} is not valid UTF-8 at step {step}") from None
    return [known[data] for data in column]


def _images(column: Values, spec: ImageSpec, path: str) -> list[EncodedImage]:
    images = []
    for step, frame in enumerate(column):
        try:
            images.append(fit(frame, spec))
        except RejectedError as error:
            raise RejectedError(error.reason, f"{path} at step {step}: {error.detail}") from None
    return images


def _number(raw: RawEpisode, features: SourceFeatures, path: str, recorded: int, steps: int) -> np.ndarray | None:
    source = features.step(path)
    if source is None or source.form != "tensor" or source.shape != ():
        return None
    values = np.asarray(_column(raw, source, recorded)[:steps], np.float64)
    if not np.isfinite(values).all():
        step = int(np.argmin(np.isfinite(values)))
        raise RejectedError("not_finite", f"{path} is {values[step]} at step {step}")
    return values


def _flag(raw: RawEpisode, features: SourceFeatures, path: str) -> np.ndarray | None:
    source = features.step(path)
    if source is None or source.form != "tensor" or source.shape != ():
        return None
    return np.asarray(raw.column(source)).astype(bool)


def _flags(is_last: np.ndarray, is_terminal: np.ndarray | None, steps: int) -> np.ndarray:
    flags = np.zeros(steps, np.uint8)
    if steps:
        flags[0] |= FIRST
        flags[-1] |= LAST if is_last.any() else 0
        if is_terminal is not None:
            flags[-1] |= TERMINAL if is_terminal[-1] else 0
    return flags
