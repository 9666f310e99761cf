"""An opened episode step by step: what a page shows of a step, and numbers over all steps.

Legend: S time steps.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gatokit.inspection.read.stored import StoredEpisode
from gatokit.inspection.read.values import EpisodeTokens, flag_names, number_text, short_name
from gatokit.schemas.manifest import FieldSpec
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.text import TextTokenizer

MOST_NUMBERS = 400
"""Of a field in a step."""
MOST_POINTS = 2_000
"""Of a line."""


@dataclass(frozen=True)
class Value:
    """A field of a step as text."""

    field: str
    kind: str
    text: str


@dataclass(frozen=True)
class StepView:
    """One of S steps; ``return_so_far`` includes this step's reward."""

    step: int
    images: tuple[tuple[str, EncodedImage], ...]
    observation: tuple[Value, ...]
    action: tuple[Value, ...]
    reward: float
    return_so_far: float
    discount: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A number over the steps, all or evenly spaced ones."""

    name: str
    steps: np.ndarray
    values: np.ndarray


class PlayedEpisode:
    """A stored episode, decoded. Raises DataError if it does not decode."""

    def __init__(self, episode: StoredEpisode, text: TextTokenizer | None) -> None:
        """``text`` names pieces of text."""
        self.episode = episode
        self._values = episode.decode()
        self._returns_so_far = np.cumsum(episode.reward)
        self.tokens = EpisodeTokens(episode, self._values, text)

    def view(self, step: int) -> StepView:
        """One step."""
        episode = self.episode
        images = []
        for field in episode.spec.observation:
            if field.image is not None:
                image = self._values[field.path][step]
                assert isinstance(image, EncodedImage)
                images.append((short_name(field), image))
        return StepView(
            step=step,
            images=tuple(images),
            observation=self._texts((field for field in episode.spec.observation if field.image is None), step),
            action=self._texts(episode.spec.action, step),
            reward=float(episode.reward[step]),
            return_so_far=float(self._returns_so_far[step]),
            discount=None if episode.discount is None else float(episode.discount[step]),
            flags=tuple(flag_names(int(episode.flags[step]))),
        )

    def rewards(self) -> list[Line]:
        """The reward and the return so far."""
        steps = self._drawn_steps()
        return [
            Line("reward", steps, self.episode.reward[steps]),
            Line("return so far", steps, self._returns_so_far[steps]),
        ]

    def actions(self, most: int) -> tuple[list[Line], int]:
        """The first components of the action, and how many there are."""
        steps, lines = self._drawn_steps(), []
        for field in self.episode.spec.action:
            columns = np.asarray(self._values[field.path], np.float64).reshape(self.episode.steps, -1)
            for number, column in enumerate(columns.T):
                name = short_name(field) + (f" {number}" if len(columns.T) > 1 else "")
                lines.append(Line(name, steps, column[steps]))
        return lines[:most], len(lines)

    def _drawn_steps(self) -> np.ndarray:
        count = min(MOST_POINTS, self.episode.steps)
        return np.arange(count) * (self.episode.steps - 1) // max(count - 1, 1)

    def _texts(self, fields: Iterable[FieldSpec], step: int) -> tuple[Value, ...]:
        return tuple(Value(short_name(field), field.kind, _text(self._values[field.path][step])) for field in fields)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    numbers = np.asarray(value).ravel()
    more = f" … ({len(numbers):,})" if len(numbers) > MOST_NUMBERS else ""
    return "  ".join(map(number_text, numbers[:MOST_NUMBERS])) + more
