"""Plays a policy, the expert and chance in the same environments, and scores the policy between the two."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gatokit.environments.rendering import choose_backend
from gatokit.evaluation.rollout_log import Progress, RolloutLog, play_missing, write_json
from gatokit.evaluation.rollouts import AgentMaker, RolloutJob, Scripted, play
from gatokit.evaluation.score_chart import draw_scores
from gatokit.evaluation.scores import Anchors, Results, Returns, Score, TaskScores, best_variant, check_rollouts
from gatokit.evaluation.tasks import EvalTask, find_tasks
from gatokit.evaluation.videos import Videos, has_video
from gatokit.policy.decode import Rule
from gatokit.policy.policy import Decoding, Player, Policy
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
    for task in tasks:
        _check(policy, task, scoring)
    with RolloutLog(out, settings) as log:
        makers: dict[str, AgentMaker] = {"random": partial(Scripted, agent="random")}
        if not scoring.expert_from_data:
            makers["expert"] = partial(Scripted, agent="expert")
        jobs = [
            RolloutJob(task.name, agent, number, maker, task.options)
            for task in tasks
            for agent, maker in makers.items()
            for number in range(scoring.rollouts)
        ]
        play_missing(log, jobs, scoring.workers, progress)
        anchors = {task.name: _anchors(log, task, scoring) for task in tasks}
        refused = {name: scale for name, scale in anchors.items() if scale.refusal is not None}
        tasks = [task for task in tasks if task.name not in refused]
        variants = tuple(f"{scoring.rule}/{mode}" for mode in scoring.modes)
        _play_policy(log, policy, tasks, variants, scoring, progress, notice)
        scored = _scored(log, tasks, anchors, variants, scoring)
        best = best_variant(scored, variants) if scored else variants[0]
        if scoring.sampling and scoring.rule != "sample":
            sampling = f"sample/{best.partition('/')[2]}"
            _play_policy(log, policy, tasks, (sampling,), scoring, progress, notice)
            variants = (*variants, sampling)
            scored = _scored(log, tasks, anchors, variants, scoring)
        results = Results(scoring.rule, best, variants, scored, refused)
        write_json(out / SCORES, results.to_json())
        if scored:
            draw_scores(results, out)
        _film(log, policy, tasks, best, scoring, out / VIDEOS, progress, notice)
    return results


def params_digest(params: Any) -> str:
    """Sixteen hexadecimal digits that identify parameters by their values."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, leaf in sorted(flat(params).items()):
        array = np.ascontiguousarray(leaf)
        hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hasher.update(array.data)
    return hasher.hexdigest()


def _player(policy: Policy, task: EvalTask, spec: Any, variant: str, rows: int, scoring: Scoring) -> Player:
    """The player of a variant, ``rule/memory``."""
    rule, _, memory = variant.partition("/")
    decoding = Decoding(
        rule=rule,  # type: ignore[arg-type]
        temperature=scoring.temperature,
        mask=scoring.mask,
        memory=memory,  # type: ignore[arg-type]
        prompt_tokens=scoring.prompt_tokens,
    )
    return policy.player(task.task, spec, rows, decoding)


def _check(policy: Policy, task: EvalTask, scoring: Scoring) -> None:
    """Raises ConfigError or DataError if the policy cannot play the task, or if it cannot be filmed and should be."""
    with task.adapters(1) as (adapter,):
        _player(policy, task, adapter.spec, f"{scoring.rule}/memory", 1, scoring)
        if scoring.videos:
            adapter.reset(0)
            adapter.render()


def _anchors(log: RolloutLog, task: EvalTask, scoring: Scoring) -> Anchors:
    random = Returns.of(log.of(task.name, "random", scoring.rollouts))
    if scoring.expert_from_data:
        return Anchors(random, Returns.known(task.task.expert_return), "data")
    return Anchors(random, Returns.of(log.of(task.name, "expert", scoring.rollouts)))


def _play_policy(
    log: RolloutLog,
    policy: Policy,
    tasks: Sequence[EvalTask],
    variants: Sequence[str],
    scoring: Scoring,
    progress: Progress,
    notice: Callable[[str], None],
) -> None:
    """Plays the policy's rollouts in these variants that the log does not have yet."""
    total = scoring.rollouts * len(tasks)
    done = dict.fromkeys(variants, 0)
    invalid = 0
    for task in tasks:
        missing = {variant: log.missing(task.name, task.agent(variant), scoring.rollouts) for variant in variants}
        for variant, numbers in missing.items():
            done[variant] += scoring.rollouts - len(numbers)
            progress(variant, done[variant], total)
        with task.adapters(min(scoring.rows, max(map(len, missing.values())))) as adapters:
            for variant, numbers in missing.items():
                if not numbers:
                    continue
                rows = min(scoring.rows, scoring.rollouts)
                player = _player(policy, task, adapters[0].spec, variant, rows, scoring)
                for rollout in play(adapters[: len(numbers)], player, numbers):
                    log.add(task.name, task.agent(variant), rollout)
                    done[variant] += 1
                    progress(variant, done[variant], total)
                invalid += player.invalid
    if invalid:
        notice(f"{invalid} tokens were chosen that are not valid for their action; the nearest valid ones were taken")


def _scored(
    log: RolloutLog,
    tasks: Sequence[EvalTask],
    anchors: Mapping[str, Anchors],
    variants: Sequence[str],
    scoring: Scoring,
) -> list[TaskScores]:
    def score(task: EvalTask, variant: str) -> Score:
        return Score.of(Returns.of(log.of(task.name, task.agent(variant), scoring.rollouts)), anchors[task.name])

    return [
        TaskScores(task.name, anchors[task.name], {variant: score(task, variant) for variant in variants})
        for task in tasks
    ]


def _film(
    log: RolloutLog,
    policy: Policy,
    tasks: Sequence[EvalTask],
    variant: str,
    scoring: Scoring,
    folder: Path,
    progress: Progress,
    notice: Callable[[str], None],
) -> None:
    """Plays the first rollouts of each task once more, for the videos that do not exist; scores do not change."""
    count = min(scoring.videos, scoring.rollouts)
    total, done = count * len(tasks), 0
    for task in tasks if count else ():
        numbers = [number for number in range(count) if not has_video(folder, task.name, number)]
        done += count - len(numbers)
        progress("videos", done, total)
        if not numbers:
            continue
        scored = log.of(task.name, task.agent(variant), count)
        with task.adapters(min(scoring.rows, len(numbers))) as adapters:
            rows = min(scoring.rows, scoring.rollouts)
            player = _player(policy, task, adapters[0].spec, variant, rows, scoring)
            videos = Videos(folder, task.name)
            for rollout in play(adapters, player, numbers, videos):
                videos.finish(rollout.number)
                done += 1
                progress("videos", done, total)
                before = scored[rollout.number].episode_return
                if rollout.episode_return != before:
                    notice(
                        f"the video of {task.name} {rollout.number} shows a return of {rollout.episode_return:g}; the "
                        f"scored rollout had {before:g}: other rollouts beside it change the rounding"
                    )
