"""What tokens cost: the expert in closed loop, with what it does and what it sees passed through tokens and back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.environments.adapter import Action, Adapter, Observation
from gatokit.environments.agents import Actor
from gatokit.environments.registry import make
from gatokit.evaluation.rollout_jobs import Match, Progress, options_of, play_missing
from gatokit.evaluation.rollout_log import RolloutLog, write_json
from gatokit.evaluation.rollouts import AgentMaker, Rollout, Scripted
from gatokit.evaluation.scores import Anchors, Returns, check_rollouts
from gatokit.schemas.episode import FieldSpec
from gatokit.tokenizers.tensors import TensorTokenizer

CEILING = "ceiling.json"
ACTIONS = "expert, actions as tokens"
BOTH = "expert, all as tokens"


class TokenExpert:
    """The scripted expert behind tokens: its actions pass through them and, with ``observes``, the continuous and
    discrete observations that it acts on."""

    def __init__(self, adapters: Sequence[Adapter], observes: bool) -> None:
        self._adapters = adapters
        self._observes = observes
        self._actors: dict[int, Actor] = {}

    def begin(self, row: int, seed: int) -> None:
        """A new actor."""
        self._actors[row] = Actor(self._adapters[row], "expert", seed)

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        """The expert's actions as a policy would give them, if it chose the same tokens."""
        return {row: self._act(row, observation) for row, observation in observations.items()}

    def _act(self, row: int, observation: Observation) -> Action:
        adapter = self._adapters[row]
        if not self._observes:
            return through_tokens(adapter.action, self._actors[row].act())
        fields = {field.components[-1]: field for field in adapter.spec.observation}
        seen = {name: through_tokens(fields[name], value) for name, value in observation.items()}
        return through_tokens(adapter.action, adapter.expert_action_on(seen))


@cache
def _tokenizer(field: FieldSpec) -> TensorTokenizer:
    return TensorTokenizer(field, 0)


def through_tokens(field: FieldSpec, value: Any) -> Any:
    """The value that a field's tokens stand for, in its own dtype; text and images are theirs exactly."""
    if field.kind in ("text", "image"):
        return value
    tokenizer = _tokenizer(field)
    values = tokenizer.checked(np.asarray(value)[None], 1)
    ids = np.empty(values.shape, np.uint16)
    tokenizer.encode(values, ids)
    return tokenizer.decode(ids)[0].astype(field.dtype)


@dataclass(frozen=True)
class Loss:
    """What tokens cost an expert: its mean return with them, and what it loses in percent of its distance from chance,
    with the standard error over pairs of rollouts of one seed."""

    mean: float
    percent: float
    error: float

    @staticmethod
    def of(without: Sequence[Rollout], behind: Sequence[Rollout], gap: float) -> "Loss":
        """Of an expert's rollouts without tokens and behind them, of the same numbers in the same order."""
        before, after = (np.array([item.episode_return for item in rollouts]) for rollouts in (without, behind))
        lost = 100 * (before - after) / gap
        return Loss(float(after.mean()), float(lost.mean()), float(lost.std(ddof=1) / math.sqrt(len(lost))))


@dataclass(frozen=True)
class Ceiling:
    """A task's ceiling. ``actions`` and ``both`` are None where expert and chance are not apart; ``both``, with
    observations too, also where the expert ``observes`` nothing and reads the simulator's state."""

    task: str
    continuous: bool
    observes: bool
    anchors: Anchors
    actions: Loss | None
    both: Loss | None

    def to_json(self) -> dict[str, Any]:
        """What ``ceiling.json`` and ``--json`` hold; losses in percent."""
        anchors = self.anchors
        return {
            "task": self.task,
            "continuous": self.continuous,
            "expert_observes": self.observes,
            "episodes": anchors.expert.episodes,
            "random_return": anchors.random.mean,
            "expert_return": anchors.expert.mean,
            "expert_standard_error": anchors.expert.error,
            "refused": anchors.refusal,
            "actions": _loss(self.actions),
            "actions_and_observations": _loss(self.both),
        }


def _loss(loss: Loss | None) -> dict[str, Any] | None:
    return None if loss is None else {"mean_return": loss.mean, "loss": loss.percent, "standard_error": loss.error}


def measure_ceiling(
    names: Sequence[str],
    out: Path,
    *,
    rollouts: int,
    workers: int,
    time_limits: Mapping[str, int],
    progress: Progress,
) -> list[Ceiling]:
    """Measures the ceiling of environments, and writes ``rollouts.jsonl`` and ``ceiling.json`` to ``out``; finished
    rollouts that are there are not played again."""
    check_rollouts(rollouts)
    matches, kinds = [], {}
    for name in dict.fromkeys(names):
        options = options_of(name, time_limits)
        adapter = make(name, **options)
        adapter.close()
        makers: dict[str, AgentMaker] = {agent: partial(Scripted, agent=agent) for agent in ("random", "expert")}
        makers[ACTIONS] = partial(TokenExpert, observes=False)
        if adapter.expert_observes:
            makers[BOTH] = partial(TokenExpert, observes=True)
        matches.append(Match(name, options, makers))
        kinds[name] = (adapter.action.kind == "continuous", adapter.expert_observes)
    settings = {"played by": "the expert behind tokens", "time limits": dict(sorted(time_limits.items()))}
    with RolloutLog(out, settings) as log:
        play_missing(log, matches, rollouts, workers, progress)
        found = [_ceiling(log, match.task, rollouts, *kinds[match.task]) for match in matches]
        write_json(out / CEILING, {"rollouts": rollouts, "tasks": [ceiling.to_json() for ceiling in found]})
    return found


def _ceiling(log: RolloutLog, task: str, rollouts: int, continuous: bool, observes: bool) -> Ceiling:
    random, expert, actions, both = (log.of(task, agent, rollouts) for agent in ("random", "expert", ACTIONS, BOTH))
    anchors = Anchors(Returns.of(random), Returns.of(expert))
    apart = anchors.refusal is None
    return Ceiling(
        task,
        continuous,
        observes,
        anchors,
        Loss.of(expert, actions, anchors.gap) if apart else None,
        Loss.of(expert, both, anchors.gap) if apart and observes else None,
    )
