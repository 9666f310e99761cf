"""An opened episode step by step: what a page shows of a step, and numbers over all of them.

Legend: S time steps.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gatokit.inspection.read.episode import StoredEpisode
from gatokit.inspection.read.tokens import EpisodeTokens, number_text, short_name
from gatokit.inspection.read.values import flag_names
from gatokit.schemas.episode import FieldSpec
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.text import TextTokenizer

MOST_NUMBERS = 400
"""Of a field in a step."""
MOST_POINTS = 2_000
"""Of a line."""


@dataclass(frozen=True)
class Value:
    """A field of a step in words: a text, or numbers."""

    field: str
    kind: str
    text: str


@dataclass(frozen=True)
class StepView:
    """One of S steps; ``so_far`` is the return with this step's reward."""

    step: int
    pictures: tuple[tuple[str, EncodedImage], ...]
    observation: tuple[Value, ...]
    action: tuple[Value, ...]
    reward: float
    so_far: float
    discount: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A number over the steps, all or evenly spaced ones."""

    name: str
    steps: np.ndarray
    values: np.ndarray


class PlayedEpisode:
    """A stored episode, decoded. DataError where it does not decode."""

    def __init__(self, episode: StoredEpisode, text: TextTokenizer | None) -> None:
        """``text`` names pieces of text."""
        self.episode = episode
        self._values = episode.decode()
        self._so_far = np.cumsum(episode.reward)
        self.tokens = EpisodeTokens(episode, self._values, text)

    def view(self, step: int) -> StepView:
        """One step."""
        episode = self.episode
        observation = [field for field in episode.spec.observation if field.image is None]
        images = [field for field in episode.spec.observation if field.image is not None]
        return StepView(
            step=step,
            pictures=tuple((short_name(field), self._picture(field, step)) for field in images),
            observation=self._words(observation, step),
            action=self._words(episode.spec.action, step),
            reward=float(episode.reward[step]),
            so_far=float(self._so_far[step]),
            discount=None if episode.discount is None else float(episode.discount[step]),
            flags=tuple(flag_names(int(episode.flags[step]))),
        )

    def rewards(self) -> list[Line]:
        """The reward and the return so far."""
        steps = self._places()
        return [
            Line("reward", steps, self.episode.reward[steps]),
            Line("return so far", steps, self._so_far[steps]),
        ]

    def actions(self, most: int) -> tuple[list[Line], int]:
        """The first components of the action, and how many there are."""
        steps, lines = self._places(), []
        for field in self.episode.spec.action:
            columns = np.asarray(self._values[field.path], np.float64).reshape(self.episode.steps, -1)
            names = [short_name(field) + (f" {at}" if columns.shape[1] > 1 else "") for at in range(columns.shape[1])]
            lines += [Line(name, steps, columns[steps, at]) for at, name in enumerate(names)]
        return lines[:most], len(lines)

    def _places(self) -> np.ndarray:
        count = min(MOST_POINTS, self.episode.steps)
        return np.arange(count) * (self.episode.steps - 1) // max(count - 1, 1)

    def _picture(self, field: FieldSpec, step: int) -> EncodedImage:
        image = self._values[field.path][step]
        assert isinstance(image, EncodedImage)
        return image

    def _words(self, fields: Iterable[FieldSpec], step: int) -> tuple[Value, ...]:
        return tuple(Value(short_name(field), field.kind, _text(self._values[field.path][step])) for field in fields)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    numbers = np.asarray(value).ravel()
    more = f" … ({len(numbers):,})" if len(numbers) > MOST_NUMBERS else ""
    return "  ".join(map(number_text, numbers[:MOST_NUMBERS])) + more
