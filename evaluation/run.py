"""Plays a policy, the expert and chance in the same environments, and scores the policy between the two."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gatokit.environments.rendering import choose_backend
from gatokit.evaluation.rollout_log import RolloutLog, play_missing, write_json
from gatokit.evaluation.rollouts import AgentMaker, RolloutJob, Scripted, play
from gatokit.evaluation.score_chart import draw_scores
from gatokit.evaluation.scores import Anchors, Results, Returns, Score, TaskScores, best_variant, check_rollouts
from gatokit.evaluation.tasks import EvalTask, find_tasks
from gatokit.evaluation.videos import Videos, has_video
from gatokit.policy.decode import Rule
from gatokit.policy.policy import Decoding, Player, Policy
from gatokit.schemas.manifest import EpisodeSpec
from gatokit.schemas.progress import Progress
from gatokit.trainer.checkpoint import flat

SCORES = "scores.json"
VIDEOS = "videos"

Memory = Literal["memory", "window"]
MODES: tuple[Memory, ...] = ("memory", "window")


@dataclass(frozen=True)
class Scoring:
    """How a policy is scored."""

    rollouts: int = 50
    """Rollouts of each agent in each task."""
    rule: Rule = "median"
    modes: tuple[Memory, ...] = MODES
    """All of them are scored, and the one with the highest mean counts."""
    sampling: bool = True
    """If ``rule`` is another one, the paper's sampling is scored too and shown beside it."""
    temperature: float = 1.0
    mask: bool = True
    prompt_tokens: int | None = None
    rows: int = 16
    """Episodes that the policy plays side by side."""
    workers: int = 2
    """Processes that play expert and chance."""
    videos: int = 0
    """Rollouts of each task that are filmed."""
    expert_from_data: bool = False
    """The expert's return is that of the data and is not measured."""
    time_limits: Mapping[str, int] = field(default_factory=dict)
    """Most steps of an episode, by environment or family; without one, the family's own limit."""

    def __post_init__(self) -> None:
        check_rollouts(self.rollouts)

    def decoding(self, variant: str) -> Decoding:
        """How the policy acts in a variant, ``rule/memory``."""
        rule, _, memory = variant.partition("/")
        return Decoding(
            rule=rule,  # type: ignore[arg-type]
            temperature=self.temperature,
            mask=self.mask,
            memory=memory,  # type: ignore[arg-type]
            prompt_tokens=self.prompt_tokens,
        )


def score_policy(
    policy: Policy,
    names: Sequence[str] | None,
    out: Path,
    scoring: Scoring,
    progress: Progress,
    notice: Callable[[str], None],
) -> Results:
    """Scores a policy on environments (``family/task`` or ``dataset/task``; None: on all that it knows).

    Writes ``rollouts.jsonl``, ``scores.json``, ``scores.png`` and videos to ``out``; finished rollouts that are there
    already are not played again. Raises ConfigError or DataError for every mistake of the user before anything is
    played, also if the policy does not fit an environment.
    """
    if scoring.videos:
        choose_backend()
    tasks = find_tasks(policy, names, scoring.time_limits, notice)
    settings = {
        "played by": "a policy",
        "checkpoint": params_digest(policy.params),
        "temperature": scoring.temperature,
        "prompt tokens": scoring.prompt_tokens,
        "mask": scoring.mask,
        "time limits": dict(sorted(scoring.time_limits.items())),
    }
    _check(policy, tasks, scoring)
    with RolloutLog(out, settings) as log:
        evaluation = _Evaluation(log, policy, scoring, progress, notice)
        evaluation.play_anchors(tasks)
        anchors = {task.name: evaluation.anchors(task) for task in tasks}
        refused = {name: scale for name, scale in anchors.items() if scale.refusal is not None}
        tasks = [task for task in tasks if task.name not in refused]
        variants = tuple(f"{scoring.rule}/{mode}" for mode in scoring.modes)
        evaluation.play_policy(tasks, variants)
        scored = evaluation.scores(tasks, variants)
        best = best_variant(scored, variants) if scored else variants[0]
        if scoring.sampling and scoring.rule != "sample":
            sampling = f"sample/{best.partition('/')[2]}"
            evaluation.play_policy(tasks, (sampling,))
            variants = (*variants, sampling)
            scored = evaluation.scores(tasks, variants)
        results = Results(scoring.rule, best, variants, scored, refused)
        write_json(out / SCORES, results.to_json())
        if scored:
            draw_scores(results, out)
        evaluation.film(tasks, best, out / VIDEOS)
    return results


def params_digest(params: Any) -> str:
    """Sixteen hexadecimal digits that identify parameters by their values."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, leaf in sorted(flat(params).items()):
        array = np.ascontiguousarray(leaf)
        hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hasher.update(array.data)
    return hasher.hexdigest()


def _check(policy: Policy, tasks: Sequence[EvalTask], scoring: Scoring) -> None:
    """Raises ConfigError or DataError if the policy cannot play a task, or if one cannot be filmed and should be."""
    for task in tasks:
        with task.adapters(1) as (adapter,):
            policy.player(task.task, adapter.spec, 1, scoring.decoding(f"{scoring.rule}/memory"))
            if scoring.videos:
                adapter.reset(0)
                adapter.render()


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation; a variant of the policy is called ``rule/memory``."""

    log: RolloutLog
    policy: Policy
    scoring: Scoring
    progress: Progress
    notice: Callable[[str], None]

    def play_anchors(self, tasks: Sequence[EvalTask]) -> None:
        """Plays the missing rollouts of chance and, if it is to be measured, of the expert."""
        makers: dict[str, AgentMaker] = {"random": partial(Scripted, agent="random")}
        if not self.scoring.expert_from_data:
            makers["expert"] = partial(Scripted, agent="expert")
        jobs = [
            RolloutJob(task.name, agent, number, maker, task.options)
            for task in tasks
            for agent, maker in makers.items()
            for number in range(self.scoring.rollouts)
        ]
        play_missing(self.log, jobs, self.scoring.workers, self.progress)

    def anchors(self, task: EvalTask) -> Anchors:
        """The scale of a task."""
        random = self._returns(task, "random")
        if self.scoring.expert_from_data:
            return Anchors(random, Returns(0, task.task.expert_return, 0.0), "data")
        return Anchors(random, self._returns(task, "expert"))

    def scores(self, tasks: Sequence[EvalTask], variants: Sequence[str]) -> list[TaskScores]:
        """The scores of all tasks, whose rollouts are finished."""
        scored = []
        for task in tasks:
            anchors = self.anchors(task)
            returns = {variant: self._returns(task, task.agent(variant)) for variant in variants}
            scores = {variant: Score.of(found, anchors) for variant, found in returns.items()}
            scored.append(TaskScores(task.name, anchors, scores))
        return scored

    def play_policy(self, tasks: Sequence[EvalTask], variants: Sequence[str]) -> None:
        """Plays the missing rollouts of the policy in these variants."""
        total = self.scoring.rollouts * len(tasks)
        done = dict.fromkeys(variants, 0)
        invalid = 0
        for task in tasks:
            missing = {
                variant: self.log.missing(task.name, task.agent(variant), self.scoring.rollouts) for variant in variants
            }
            for variant, numbers in missing.items():
                done[variant] += self.scoring.rollouts - len(numbers)
                self.progress(variant, done[variant], total)
            with task.adapters(min(self.scoring.rows, max(map(len, missing.values())))) as adapters:
                for variant, numbers in missing.items():
                    if not numbers:
                        continue
                    player = self._player(task, adapters[0].spec, variant)
                    for rollout in play(adapters[: len(numbers)], player, numbers):
                        self.log.add(task.name, task.agent(variant), rollout)
                        done[variant] += 1
                        self.progress(variant, done[variant], total)
                    invalid += player.invalid
        if invalid:
            self.notice(f"{invalid} tokens were chosen that are not valid actions; the nearest valid ones were taken")

    def film(self, tasks: Sequence[EvalTask], variant: str, folder: Path) -> None:
        """Plays the first rollouts of each task once more, for the videos that are missing; scores do not change."""
        count = min(self.scoring.videos, self.scoring.rollouts)
        total, done = count * len(tasks), 0
        for task in tasks if count else ():
            numbers = [number for number in range(count) if not has_video(folder, task.name, number)]
            done += count - len(numbers)
            self.progress("videos", done, total)
            if not numbers:
                continue
            scored = self.log.of(task.name, task.agent(variant), count)
            videos = Videos(folder, task.name)
            with task.adapters(min(self.scoring.rows, len(numbers))) as adapters:
                for rollout in play(adapters, self._player(task, adapters[0].spec, variant), numbers, videos):
                    videos.finish(rollout.number)
                    done += 1
                    self.progress("videos", done, total)
                    before = scored[rollout.number].episode_return
                    if rollout.episode_return != before:
                        self.notice(
                            f"the video of {task.name} {rollout.number} shows a return of {rollout.episode_return:g}; "
                            f"the scored rollout had {before:g}: other rollouts beside it change the rounding"
                        )

    def _returns(self, task: EvalTask, agent: str) -> Returns:
        return Returns.of(self.log.of(task.name, agent, self.scoring.rollouts))

    def _player(self, task: EvalTask, spec: EpisodeSpec, variant: str) -> Player:
        # The number of rows is the same in every call, so that results do not depend on where an evaluation was killed.
        rows = min(self.scoring.rows, self.scoring.rollouts)
        return self.policy.player(task.task, spec, rows, self.scoring.decoding(variant))
