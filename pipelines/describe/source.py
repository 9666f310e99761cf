"""Looks at a source of episodes: its splits, every field of a step and of an episode, and what their values are like.

It reads the first episodes of files that are spread evenly over the source, or all episodes, and needs neither a config
nor a vocabulary. Legend: N recorded steps of an episode, the last one included; C components of a field.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gatokit.pipelines.describe.statistics import MOST_DISTINCT, Column, DescribedField
from gatokit.pipelines.episodes.reader import (
    EpisodeFile,
    RawEpisode,
    SourceDirectory,
    SourceFeatures,
    SourceField,
    StoredEpisode,
)
from gatokit.pipelines.episodes.scan import FORMATS, look
from gatokit.pipelines.inputs import find_directories, fixed_part, local_pattern
from gatokit.schemas.config_episodes import Splits
from gatokit.schemas.errors import ConfigError, GatokitError
from gatokit.schemas.progress import Progress, no_progress
from gatokit.storage.files import is_remote, matching, prefetch

EPISODES = 256
"""Episodes that are looked at, if no other number is asked for."""
TERMINATES = re.compile(r"terminat|(^|_)done$|is_last")
"""Names of flags in an action that end the episode."""
_MOST_FILES = 64
_MOST_BYTES = 512 << 20
_MOST_EPISODE_BYTES = 1 << 30


_Level = Literal["step", "episode"]


@dataclass(frozen=True)
class SourceSplit:
    """A split of the source over all directories: its episodes, and whether it is looked at."""

    name: str
    episodes: int
    is_read: bool


@dataclass(frozen=True)
class EpisodeEnds:
    """Where rewards are, and what last steps are like.

    ``last_action`` and ``last_reward`` count episodes whose last one is all ``zero``, a ``copy`` of the first or the
    previous one, or ``other``.
    """

    rewards: int | None
    """Distinct rewards, counted up to ``MOST_DISTINCT``; None if there are none."""
    in_last: float | None
    """Share of episodes with a reward other than zero in the last step."""
    before: float | None
    """Share of episodes with a reward other than zero in a step before."""
    last_action: dict[str, int]
    last_reward: dict[str, int]
    lasts: tuple[float, ...] = field(default=(), repr=False)
    """The last reward of each episode, NaN if it has none."""
    returns: tuple[float, ...] = field(default=(), repr=False)
    """The sum of the other rewards of each episode, NaN if it has none."""


@dataclass(frozen=True)
class Description:
    """A source: how much of it was looked at, and what was found."""

    source: str
    format: str
    directories: tuple[str, ...]
    splits: tuple[SourceSplit, ...]
    missing: int
    """Files that are not there."""
    episodes: int | None
    """Episodes of the splits that are looked at; None if the source does not say."""
    seen: int
    """Sound episodes that were looked at."""
    bad: int
    """Episodes that cannot be read, among those that were looked at."""
    is_all: bool
    """Whether all episodes were looked at."""
    bytes: int
    lengths: tuple[int, float, int] | None
    """Recorded steps of the shortest, the median and the longest episode."""
    ends: EpisodeEnds
    fields: tuple[DescribedField, ...]
    problems: tuple[str, ...]
    features: tuple[SourceFeatures, ...] = field(default=(), repr=False)
    """Each once."""
    places: tuple[int, ...] = field(default=(), repr=False)
    """The index into ``directories`` of each episode that was looked at."""


def describe(
    source: str,
    *,
    splits: tuple[str, ...] | None = None,
    episodes: int | None = EPISODES,
    base: Path | None = None,
    progress: Progress = no_progress,
) -> Description:
    """Looks at ``episodes`` of a source (None: at all); its path or pattern starts at ``base``, by default here.

    ``splits`` None means ``train``, or all splits if there is no such split. Raises ConfigError or DataError if there
    is no source of episodes, or if none of its directories can be read.
    """
    directories, problems = _read_directories(source, splits, base or Path.cwd())
    looked = _Looked()
    files = [(place, file) for place, directory in enumerate(directories) for file in directory.files]
    chosen = files if episodes is None else _spread(directories, files)
    progress("episodes", 0, len(chosen))
    for number, (place, stored, is_cut) in enumerate(_read_episodes(chosen, episodes), 1):
        looked.add_file(place, stored, directories[place].features)
        looked.is_cut |= is_cut
        progress("episodes", number, len(chosen))
    stated = [file.episodes for _, file in files]
    return Description(
        source=source,
        format=", ".join(sorted({file.format for _, file in files})),
        directories=tuple(directory.name for directory in directories),
        splits=_splits(directories),
        missing=sum(directory.missing for directory in directories),
        episodes=None if None in stated else sum(filter(None, stated)),
        seen=len(looked.lengths),
        bad=sum(looked.rejected.values()),
        is_all=len(chosen) == len(files) and not looked.is_cut,
        bytes=sum(file.size for _, file in files),
        lengths=looked.lengths_range(),
        ends=looked.ends(),
        fields=looked.fields(directories),
        problems=(*problems, *looked.problems()),
        features=tuple(dict.fromkeys(directory.features for directory in directories)),
        places=tuple(looked.places),
    )


def _read_directories(
    source: str, splits: tuple[str, ...] | None, base: Path
) -> tuple[list[SourceDirectory], list[str]]:
    """The directories of the source that can be read, and why others cannot."""
    pattern = local_pattern(source, base, "SOURCE")
    if not matching(pattern):
        raise ConfigError(f"{source}: there is no such directory; give one of RLDS or EnvLogger data, or a pattern")
    directories: list[SourceDirectory] = []
    errors: list[GatokitError] = []
    for found in find_directories(pattern, tuple(FORMATS), "SOURCE"):
        try:
            read = FORMATS[found.marker].read_directory
            chosen = None if splits is None else Splits(train=splits)
            directories.append(read(found.path, found.name, fixed_part(pattern), chosen, True))
        except GatokitError as error:
            errors.append(error)
    if not directories:
        raise errors[0]
    return directories, [str(error) for error in errors]


def _spread(directories: Sequence[SourceDirectory], files: Sequence[tuple[int, EpisodeFile]]) -> list[Any]:
    """Files spread evenly over the source, at least one of each set of directories that have the same fields."""
    alike: dict[Any, list[tuple[int, EpisodeFile]]] = {}
    for place, file in files:
        alike.setdefault(directories[place].features, []).append((place, file))
    chosen = []
    for group in alike.values():
        count = min(len(group), max(1, round(_MOST_FILES * len(group) / len(files))))
        chosen += [group[index * len(group) // count] for index in range(count)]
    return chosen


def _splits(directories: Sequence[SourceDirectory]) -> tuple[SourceSplit, ...]:
    """The splits that are read, and those that are not."""
    counts = {True: Counter[str](), False: Counter[str]()}
    for directory in directories:
        counts[True].update(directory.splits)
        counts[False].update(directory.left_out)
    return tuple(SourceSplit(name, count, key) for key, found in counts.items() for name, count in found.items())


# --- episodes ------------------------------------------------------------------------------------------------


def _read_episodes(
    files: Sequence[tuple[int, EpisodeFile]], episodes: int | None
) -> Iterator[tuple[int, Iterable[StoredEpisode], bool]]:
    """For each file its directory, the first of its episodes (with None all), and whether there are more of them.

    Of all files together about as many as ``episodes`` are read, and at most 512 MiB or one of each file.
    """
    if episodes is None:
        yield from ((place, file.read_all(_MOST_EPISODE_BYTES), False) for place, file in files)
        return
    most, most_bytes = math.ceil(episodes / max(1, len(files))), _MOST_BYTES // max(1, len(files))
    found = prefetch(
        files,
        lambda item: (item[0], *_first_episodes(item[1], most, most_bytes)),
        lambda item: sum(stored.byte_range.length for stored in item[1]),
        several=any(is_remote(file.path) for _, file in files),
    )
    yield from found


def _first_episodes(file: EpisodeFile, most: int, most_bytes: int) -> tuple[list[StoredEpisode], bool]:
    """The first episodes of a file: at most ``most``, and of ``most_bytes`` or only one; and whether there are more."""
    episodes: list[StoredEpisode] = []
    size = 0
    stored_episodes = file.read_all(_MOST_EPISODE_BYTES)
    for stored in stored_episodes:
        episodes.append(stored)
        size += stored.byte_range.length
        if len(episodes) >= most or size + stored.byte_range.length > most_bytes:
            break
    if file.episodes is None:
        return episodes, next(stored_episodes, None) is not None
    return episodes, sum(stored.lost for stored in episodes) < file.episodes


class _Looked:
    """What was found in the episodes so far."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.places: list[int] = []
        self.is_cut = False
        """Whether episodes of a file were not looked at."""
        self.rejected: Counter[str] = Counter()
        self._columns: dict[tuple[_Level, SourceField], Column] = {}
        self._rewards: set[float] = set()
        self._ends: list[tuple[float, float, bool]] = []
        self._last_actions: Counter[str] = Counter()
        self._last_rewards: Counter[str] = Counter()

    def add_file(self, place: int, episodes: Iterable[StoredEpisode], features: SourceFeatures) -> None:
        """Looks at the episodes of a file of the directory ``place``."""
        for stored in episodes:
            if stored.value is None:
                self.rejected[f"{stored.reason}: {stored.detail}"] += stored.lost
            else:
                self._add(stored.value, features)
                self.places.append(place)

    def _add(self, episode: RawEpisode, features: SourceFeatures) -> None:
        number, steps = len(self.lengths), 0
        actions: list[np.ndarray] = []
        end = (math.nan, math.nan, False)
        for source in features.steps:
            values = self._column("step", source).add_steps(number, episode)
            if values is None or not len(values):
                continue
            if source.form != "string" or not source.shape:
                steps = max(steps, len(values))
            if not isinstance(values, np.ndarray):
                continue
            if source.path == "reward" and values.size == len(values):
                rewards = values.reshape(-1).astype(np.float64)
                if len(self._rewards) < MOST_DISTINCT:
                    self._rewards.update(rewards.tolist())
                self._last_rewards[look([rewards])] += 1
                end = (float(rewards[-1]), float(rewards[:-1].sum()), bool(np.any(rewards[:-1])))
            elif source.path.split("/")[0] == "action" and not TERMINATES.search(source.path.split("/")[-1]):
                actions.append(values)
        for source in features.stored_values:
            self._column("episode", source).add_metadata(number, episode, steps)
        if actions:
            self._last_actions[look(actions)] += 1
        self.lengths.append(steps)
        self._ends.append(end)

    def _column(self, belongs_to: _Level, source: SourceField) -> "Column":
        return self._columns.setdefault((belongs_to, source), Column(source, belongs_to))

    def lengths_range(self) -> tuple[int, float, int] | None:
        """The shortest, median and longest number of steps; None without episodes."""
        lengths = self.lengths
        return (min(lengths), float(np.median(lengths)), max(lengths)) if lengths else None

    def ends(self) -> EpisodeEnds:
        """Rewards and last steps of all episodes."""
        lasts, returns, before = zip(*self._ends, strict=True) if self._ends else ((), (), ())
        have = [ordinal for ordinal, last in enumerate(lasts) if not math.isnan(last)]
        return EpisodeEnds(
            rewards=min(MOST_DISTINCT, len(self._rewards)) if have else None,
            in_last=sum(lasts[ordinal] != 0 for ordinal in have) / len(have) if have else None,
            before=sum(before[ordinal] for ordinal in have) / len(have) if have else None,
            last_action=dict(sorted(self._last_actions.items())),
            last_reward=dict(sorted(self._last_rewards.items())),
            lasts=lasts,
            returns=returns,
        )

    def fields(self, directories: Sequence[SourceDirectory]) -> tuple[DescribedField, ...]:
        """The fields of all directories, steps first, sorted by path."""
        counts: Counter[tuple[_Level, SourceField]] = Counter()
        for directory in directories:
            counts.update(("step", source) for source in directory.features.steps)
            counts.update(("episode", source) for source in directory.features.stored_values)
        order = sorted(counts, key=lambda key: (key[0] == "episode", key[1].path, key[1].dtype, str(key[1].shape)))
        return tuple(self._column(*key).described(counts[key], len(self.lengths)) for key in order)

    def problems(self) -> list[str]:
        """Episodes that cannot be read, by reason."""
        return [f"{count} episodes: {reason}" for reason, count in self.rejected.most_common(5)]
