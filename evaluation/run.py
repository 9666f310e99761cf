"""Plays a policy, the expert and chance in the same environments, and scores the policy between the two."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gatokit.environments.drawing import choose_backend
from gatokit.evaluation.rollout_jobs import Match, Progress, play_missing
from gatokit.evaluation.rollout_log import RolloutLog, write_json
from gatokit.evaluation.rollouts import AgentMaker, Scripted, play
from gatokit.evaluation.score_plots import draw_scores
from gatokit.evaluation.scores import Anchors, Results, Returns, Score, TaskScores, best_variant, check_rollouts
from gatokit.evaluation.tasks import Contest, find_contests
from gatokit.evaluation.videos import Videos, has_video
from gatokit.policy.decode import Rule
from gatokit.policy.policy import Decoding, Policy
from gatokit.trainer.checkpoint import flat

SCORES = "scores.json"
VIDEOS = "videos"

Memory = Literal["memory", "window"]
MODES: tuple[Memory, ...] = ("memory", "window")


@dataclass(frozen=True)
class Scoring:
    """How a policy is scored."""

    rollouts: int = 50
    """Of every agent in every task."""
    rule: Rule = "median"
    modes: tuple[Memory, ...] = MODES
    """Of several all are scored, and the one with the highest mean counts."""
    sampling: bool = True
    """Where ``rule`` is another one, the paper's sampling is scored too and stands beside it."""
    temperature: float = 1.0
    mask: bool = True
    prompt_tokens: int | None = None
    rows: int = 16
    """Episodes that the policy plays side by side."""
    workers: int = 2
    """Processes that play expert and chance."""
    videos: int = 0
    """Rollouts of every task that are filmed."""
    expert_from_data: bool = False
    """The expert's return is the data's and is not measured."""
    time_limits: Mapping[str, int] = field(default_factory=dict)
    """Steps of an episode, by environment or family; the family's own where neither is named."""

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

    ``out`` gets ``rollouts.jsonl``, ``scores.json``, ``scores.png`` and films; finished rollouts that it holds are not
    played again. ConfigError, DataError: whatever is the user's to mend, a policy that does not fit its environment
    included, before anything is played.
    """
    if scoring.videos:
        choose_backend()
    contests = find_contests(policy, names, scoring.time_limits, notice)
    settings = {
        "played by": "a policy",
        "checkpoint": params_digest(policy.params),
        "temperature": scoring.temperature,
        "prompt tokens": scoring.prompt_tokens,
        "mask": scoring.mask,
        "time limits": dict(sorted(scoring.time_limits.items())),
    }
    for contest in contests:
        _check(policy, contest, scoring)
    with RolloutLog(out, settings) as log:
        makers: dict[str, AgentMaker] = {"random": partial(Scripted, agent="random")}
        if not scoring.expert_from_data:
            makers["expert"] = partial(Scripted, agent="expert")
        matches = [Match(contest.name, contest.options, makers) for contest in contests]
        play_missing(log, matches, scoring.rollouts, scoring.workers, progress)
        anchors = {contest.name: _anchors(log, contest, scoring) for contest in contests}
        refused = {name: found for name, found in anchors.items() if found.refusal is not None}
        contests = [contest for contest in contests if contest.name not in refused]
        variants = tuple(f"{scoring.rule}/{mode}" for mode in scoring.modes)
        _play_policy(log, policy, contests, variants, scoring, progress, notice)
        scored = _scored(log, contests, anchors, variants, scoring)
        chosen = best_variant(scored, variants) if scored else variants[0]
        if scoring.sampling and scoring.rule != "sample":
            beside = f"sample/{chosen.partition('/')[2]}"
            _play_policy(log, policy, contests, (beside,), scoring, progress, notice)
            variants = (*variants, beside)
            scored = _scored(log, contests, anchors, variants, scoring)
        results = Results(scoring.rule, chosen, variants, scored, refused)
        write_json(out / SCORES, results.to_json())
        if scored:
            draw_scores(results, out)
        _film(log, policy, contests, chosen, scoring, out / VIDEOS, progress, notice)
    return results


def params_digest(params: Any) -> str:
    """Sixteen hexadecimal digits that name parameters by their values."""
    found = hashlib.blake2b(digest_size=8)
    for name, leaf in sorted(flat(params).items()):
        array = np.ascontiguousarray(leaf)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.data)
    return found.hexdigest()


def _check(policy: Policy, contest: Contest, scoring: Scoring) -> None:
    """ConfigError, DataError where the policy cannot play here, or where what is to be filmed cannot be drawn."""
    with contest.adapters(1) as (adapter,):
        policy.player(contest.task, adapter.spec, 1, scoring.decoding(f"{scoring.rule}/memory"))
        if scoring.videos:
            adapter.reset(0)
            adapter.render()


def _anchors(log: RolloutLog, contest: Contest, scoring: Scoring) -> Anchors:
    random = Returns.of(log.of(contest.name, "random", scoring.rollouts))
    if scoring.expert_from_data:
        return Anchors(random, Returns.known(contest.task.expert_return), "data")
    return Anchors(random, Returns.of(log.of(contest.name, "expert", scoring.rollouts)))


def _play_policy(
    log: RolloutLog,
    policy: Policy,
    contests: Sequence[Contest],
    variants: Sequence[str],
    scoring: Scoring,
    progress: Progress,
    notice: Callable[[str], None],
) -> None:
    """Plays what is missing of the policy's rollouts in these variants."""
    total = scoring.rollouts * len(contests)
    done = dict.fromkeys(variants, 0)
    invalid = 0
    for contest in contests:
        missing = {variant: log.missing(contest.name, contest.agent(variant), scoring.rollouts) for variant in variants}
        for variant, numbers in missing.items():
            done[variant] += scoring.rollouts - len(numbers)
            progress(variant, done[variant], total)
        side_by_side = min(scoring.rows, max(map(len, missing.values())))
        with contest.adapters(side_by_side) as adapters:
            for variant, numbers in missing.items():
                if not numbers:
                    continue
                player = policy.player(
                    contest.task, adapters[0].spec, min(scoring.rows, scoring.rollouts), scoring.decoding(variant)
                )
                for rollout in play(adapters[: len(numbers)], player, numbers):
                    log.add(contest.name, contest.agent(variant), rollout)
                    done[variant] += 1
                    progress(variant, done[variant], total)
                invalid += player.invalid
    if invalid:
        notice(f"{invalid} tokens were chosen that are no action's, and taken for the nearest one that is")


def _scored(
    log: RolloutLog,
    contests: Sequence[Contest],
    anchors: Mapping[str, Anchors],
    variants: Sequence[str],
    scoring: Scoring,
) -> list[TaskScores]:
    return [
        TaskScores(
            contest.name,
            anchors[contest.name],
            {
                variant: Score.of(
                    Returns.of(log.of(contest.name, contest.agent(variant), scoring.rollouts)), anchors[contest.name]
                )
                for variant in variants
            },
        )
        for contest in contests
    ]


def _film(
    log: RolloutLog,
    policy: Policy,
    contests: Sequence[Contest],
    variant: str,
    scoring: Scoring,
    folder: Path,
    progress: Progress,
    notice: Callable[[str], None],
) -> None:
    """Plays the first rollouts of every task once more, for the films that are not there; scores do not change."""
    count = min(scoring.videos, scoring.rollouts)
    total, done = count * len(contests), 0
    for contest in contests if count else ():
        numbers = [number for number in range(count) if not has_video(folder, contest.name, number)]
        done += count - len(numbers)
        progress("videos", done, total)
        if not numbers:
            continue
        scored = log.of(contest.name, contest.agent(variant), count)
        with contest.adapters(min(scoring.rows, len(numbers))) as adapters:
            player = policy.player(
                contest.task, adapters[0].spec, min(scoring.rows, scoring.rollouts), scoring.decoding(variant)
            )
            videos = Videos(folder, contest.name)
            for rollout in play(adapters, player, numbers, videos):
                videos.finish(rollout.number)
                done += 1
                progress("videos", done, total)
                before = scored[rollout.number].episode_return
                if rollout.episode_return != before:
                    notice(
                        f"the film of {contest.name} {rollout.number} shows a return of {rollout.episode_return:g}; in "
                        f"the scored rollout, beside others, rounding led to {before:g}"
                    )
