"""A stored episode as pages show it: the values of a step, tokens by name, and numbers over all steps.

Legend: S time steps.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gatokit.inspection.read.stored import StoredEpisode
from gatokit.inspection.read.values import EpisodeTokens, short_name
from gatokit.schemas.manifest import FieldSpec
from gatokit.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Line:
    """A number over the S steps, all of them or evenly spaced ones: int64 and float64, (points,)."""

    name: str
    steps: np.ndarray
    values: np.ndarray


class Playback:
    """A stored episode, decoded. ``returns_so_far`` is float64 (S,) and includes the reward of the step."""

    def __init__(self, episode: StoredEpisode, text: TextTokenizer | None) -> None:
        """``text`` names pieces of text. Raises DataError if the episode does not decode."""
        self.episode = episode
        self.returns_so_far = np.cumsum(episode.reward)
        self._values = episode.decode()
        self.tokens = EpisodeTokens(episode, self._values, text)

    def values(self, step: int) -> list[tuple[FieldSpec, Any]]:
        """The fields of a step with their values, in token order."""
        return [(field, self._values[field.path][step]) for field in self.episode.spec.fields]

    def rewards(self, most_points: int) -> list[Line]:
        """The reward and the return so far."""
        steps = evenly_spaced(self.episode.steps, most_points)
        rewards = Line("reward", steps, self.episode.reward[steps])
        return [rewards, Line("return so far", steps, self.returns_so_far[steps])]

    def actions(self, most_points: int) -> list[Line]:
        """Every component of the action."""
        steps, lines = evenly_spaced(self.episode.steps, most_points), []
        for field in self.episode.spec.action:
            components = np.asarray(self._values[field.path], np.float64).reshape(self.episode.steps, -1).T
            for number, component in enumerate(components):
                name = short_name(field) + (f" {number}" if len(components) > 1 else "")
                lines.append(Line(name, steps, component[steps]))
        return lines


def evenly_spaced(steps: int, most: int) -> np.ndarray:
    """At most ``most`` of S steps, the first and the last among them."""
    count = min(most, steps)
    return np.arange(count) * (steps - 1) // max(count - 1, 1)
