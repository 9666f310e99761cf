"""What tokens cost: the expert in closed loop, with its actions and its observations passed through tokens and back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.environments.adapter import Action, Adapter, Observation
from gatokit.environments.registry import make
from gatokit.evaluation.rollouts import (
    AgentMaker,
    Rollout,
    RolloutJob,
    RolloutLog,
    Scripted,
    environment_options,
    play_missing,
    write_json,
)
from gatokit.evaluation.scores import Anchors, Returns, check_rollouts
from gatokit.schemas.manifest import FieldSpec
from gatokit.schemas.progress import Progress
from gatokit.tokenizers.tensors import TensorTokenizer

CEILING = "ceiling.json"
ACTIONS = "expert, actions as tokens"
BOTH = "expert, all as tokens"


class TokenExpert(Scripted):
    """The scripted expert, whose actions pass through tokens and, with ``observes``, also the continuous and discrete
    observations that it acts on."""

    def __init__(self, adapters: Sequence[Adapter], observes: bool) -> None:
        super().__init__(adapters, "expert")
        self._observes = observes

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        """The expert's actions as a policy that chose the same tokens would give them."""
        actions = {} if self._observes else super().act(observations)
        for row, observation in observations.items() if self._observes else ():
            adapter = self.adapters[row]
            fields = {field.components[-1]: field for field in adapter.spec.observation}
            decoded = {name: through_tokens(fields[name], value) for name, value in observation.items()}
            actions[row] = adapter.expert_action_on(decoded)
        return {row: through_tokens(self.adapters[row].action, action) for row, action in actions.items()}


@cache
def _tokenizer(field: FieldSpec) -> TensorTokenizer:
    return TensorTokenizer(field, 0)


def through_tokens(field: FieldSpec, value: Any) -> Any:
    """A value encoded into tokens and decoded again, in its own dtype; texts and images are not changed by tokens."""
    if field.kind in ("text", "image"):
        return value
    tokenizer = _tokenizer(field)
    values = tokenizer.checked(np.asarray(value)[None], 1)
    ids = np.empty(values.shape, np.uint16)
    tokenizer.encode(values, ids)
    return tokenizer.decode(ids)[0].astype(field.dtype)


@dataclass(frozen=True)
class Loss:
    """What tokens cost an expert: its ``mean_return`` with them, and its ``loss`` in percent of its distance from
    chance. ``standard_error`` is that of the loss over pairs of rollouts with the same seed."""

    mean_return: float
    loss: float
    standard_error: float

    @staticmethod
    def of(without: Sequence[Rollout], tokenized: Sequence[Rollout], gap: float) -> "Loss":
        """Compares an expert's rollouts without tokens and with them; both have the same numbers in the same order."""
        before, after = (np.array([item.episode_return for item in rollouts]) for rollouts in (without, tokenized))
        losses = 100 * (before - after) / gap
        return Loss(float(after.mean()), float(losses.mean()), float(losses.std(ddof=1) / math.sqrt(len(losses))))


@dataclass(frozen=True)
class Ceiling:
    """A task of ``ceiling.json``: the losses with ``actions`` as tokens, and with ``actions_and_observations``.

    Both are None if ``refused`` says why expert and chance give no scale, and the second one also if the expert reads
    the simulator's state and observes nothing.
    """

    task: str
    continuous: bool
    expert_observes: bool
    episodes: int
    random_return: float
    expert_return: float
    expert_standard_error: float
    refused: str | None
    actions: Loss | None
    actions_and_observations: Loss | None


def measure_ceiling(
    names: Sequence[str],
    out: Path,
    *,
    rollouts: int,
    workers: int,
    time_limits: Mapping[str, int],
    progress: Progress,
) -> list[Ceiling]:
    """Measures the ceiling of environments, and writes ``rollouts.jsonl`` and ``ceiling.json`` to ``out``.

    Finished rollouts that are there already are not played again.
    """
    check_rollouts(rollouts)
    jobs, continuous, observes = [], {}, {}
    for name in dict.fromkeys(names):
        options = environment_options(name, time_limits)
        adapter = make(name, **options)
        adapter.close()
        continuous[name], observes[name] = adapter.action.kind == "continuous", adapter.expert_observes
        makers: dict[str, AgentMaker] = {agent: partial(Scripted, agent=agent) for agent in ("random", "expert")}
        makers[ACTIONS] = partial(TokenExpert, observes=False)
        if adapter.expert_observes:
            makers[BOTH] = partial(TokenExpert, observes=True)
        for agent, maker in makers.items():
            jobs += [RolloutJob(name, agent, number, maker, options) for number in range(rollouts)]
    settings = {"played by": "the expert behind tokens", "time limits": dict(sorted(time_limits.items()))}
    ceilings = []
    with RolloutLog(out, settings) as log:
        play_missing(log, jobs, workers, progress)
        for name in continuous:
            random, expert, actions, both = (
                log.of(name, agent, rollouts) for agent in ("random", "expert", ACTIONS, BOTH)
            )
            chance, best = Returns.of(random), Returns.of(expert)
            anchors = Anchors(chance, best)
            has_scale = anchors.refusal is None
            has_both = has_scale and observes[name]
            ceilings.append(
                Ceiling(
                    task=name,
                    continuous=continuous[name],
                    expert_observes=observes[name],
                    episodes=best.episodes,
                    random_return=chance.mean,
                    expert_return=best.mean,
                    expert_standard_error=best.error,
                    refused=anchors.refusal,
                    actions=Loss.of(expert, actions, anchors.gap) if has_scale else None,
                    actions_and_observations=Loss.of(expert, both, anchors.gap) if has_both else None,
                )
            )
        write_json(out / CEILING, {"rollouts": rollouts, "tasks": [asdict(ceiling) for ceiling in ceilings]})
    return ceilings
