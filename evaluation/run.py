"""Plays a policy, the expert and chance in the same environments, and scores the policy between the two."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gatokit.environments import registry
from gatokit.environments.adapter import Adapter
from gatokit.environments.rendering import choose_backend
from gatokit.evaluation.rollouts import (
    AgentMaker,
    RolloutJob,
    RolloutLog,
    Scripted,
    environment_options,
    play,
    play_missing,
    write_json,
)
from gatokit.evaluation.scores import (
    Anchors,
    Results,
    Returns,
    Score,
    TaskScores,
    best_variant,
    check_rollouts,
    draw_scores,
)
from gatokit.evaluation.videos import Videos, has_video
from gatokit.policy.decode import Rule
from gatokit.policy.policy import Decoding, Player, Policy
from gatokit.policy.step_codec import Task
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import EpisodeSpec
from gatokit.schemas.progress import Progress
from gatokit.schemas.run_directory import flatten

SCORES = "scores.json"
VIDEOS = "videos"

Memory = Literal["memory", "window"]
MODES: tuple[Memory, ...] = ("memory", "window")

Notice = Callable[[str], None]


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
    notice: Notice,
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
        if scoring.expert_from_data and task.task.expert_return is None:
            raise ConfigError(
                f"{task.name}: its data has no rewards and so no expert return; leave out --expert-return data, and it "
                "is measured"
            )
        with task.adapters(1) as (adapter,):
            policy.player(task.task, adapter.spec, 1, scoring.decoding(f"{scoring.rule}/memory"))
            if scoring.videos:
                adapter.reset(0)
                adapter.render()

    with RolloutLog(out, settings) as log:
        evaluation = _Evaluation(log, policy, scoring, progress, notice)
        anchors = evaluation.play_anchors(tasks)
        refused = {name: scale for name, scale in anchors.items() if scale.refusal is not None}
        tasks = [task for task in tasks if task.name not in refused]
        variants = tuple(f"{scoring.rule}/{mode}" for mode in scoring.modes)
        scored = evaluation.play_policy(tasks, variants, anchors)
        best = best_variant(scored, variants) if scored else variants[0]
        if scoring.sampling and scoring.rule != "sample":
            variants = (*variants, f"sample/{best.partition('/')[2]}")
            scored = evaluation.play_policy(tasks, variants, anchors)
        results = Results(scoring.rule, best, variants, scored, refused)
        write_json(out / SCORES, results.to_json())
        if scored:
            draw_scores(results, out)
        evaluation.film(tasks, best, out / VIDEOS)
    return results


def params_digest(params: Any) -> str:
    """Sixteen hexadecimal digits that identify parameters by their values."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hasher.update(array.data)
    return hasher.hexdigest()


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation; a variant of the policy is called ``rule/memory``."""

    log: RolloutLog
    policy: Policy
    scoring: Scoring
    progress: Progress
    notice: Notice

    def play_anchors(self, tasks: Sequence["EvalTask"]) -> dict[str, Anchors]:
        """Plays the missing rollouts of chance and, if it is to be measured, of the expert; the scale of each task."""
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
        anchors = {}
        for task in tasks:
            random = self._returns(task, "random")
            if self.scoring.expert_from_data:
                assert task.task.expert_return is not None
                anchors[task.name] = Anchors(random, Returns(0, task.task.expert_return, 0.0), "data")
            else:
                anchors[task.name] = Anchors(random, self._returns(task, "expert"))
        return anchors

    def play_policy(
        self, tasks: Sequence["EvalTask"], variants: Sequence[str], anchors: Mapping[str, Anchors]
    ) -> list[TaskScores]:
        """Plays the missing rollouts of the policy in these variants; the scores of all tasks."""
        count, total = self.scoring.rollouts, self.scoring.rollouts * len(tasks)
        done = dict.fromkeys(variants, 0)
        invalid = 0
        scored = []
        for task in tasks:
            missing = {variant: self.log.missing(task.name, task.agent(variant), count) for variant in variants}
            for variant, numbers in missing.items():
                done[variant] += count - len(numbers)
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
            returns = {variant: self._returns(task, task.agent(variant)) for variant in variants}
            scores = {variant: Score.of(found, anchors[task.name]) for variant, found in returns.items()}
            scored.append(TaskScores(task.name, anchors[task.name], scores))
        if invalid:
            self.notice(f"{invalid} tokens were chosen that are not valid actions; the nearest valid ones were taken")
        return scored

    def film(self, tasks: Sequence["EvalTask"], variant: str, folder: Path) -> None:
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

    def _returns(self, task: "EvalTask", agent: str) -> Returns:
        return Returns.of(self.log.of(task.name, agent, self.scoring.rollouts))

    def _player(self, task: "EvalTask", spec: EpisodeSpec, variant: str) -> Player:
        # The number of rows is the same in every call, so that results do not depend on where an evaluation was killed.
        rows = min(self.scoring.rows, self.scoring.rollouts)
        return self.policy.player(task.task, spec, rows, self.scoring.decoding(variant))


# --- the environments of a policy's tasks ------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalTask:
    """An environment ``name`` (``family/task``), and the policy's task that is played in it; ``options`` go to
    ``make``."""

    name: str
    task: Task
    options: dict[str, Any]

    def agent(self, variant: str) -> str:
        """The policy's name in the log: tasks of two datasets may be played in one environment."""
        return variant if self.task.full_name == self.name else f"{variant} as {self.task.full_name}"

    @contextmanager
    def adapters(self, count: int) -> Iterator[list[Adapter]]:
        """``count`` adapters of the environment, closed at the end."""
        with ExitStack() as stack:
            yield [stack.enter_context(closing(registry.make(self.name, **self.options))) for _ in range(count)]


def find_tasks(
    policy: Policy, names: Sequence[str] | None, time_limits: Mapping[str, int], notice: Notice
) -> list[EvalTask]:
    """The environments ``names`` (``family/task`` or ``dataset/task``), or those of all the policy's tasks; each once.

    Raises ConfigError for an environment that is unknown, that the policy was not trained on or in which two of the
    named tasks are played, and if no environment is left.
    """
    found: dict[str, EvalTask] = {}
    asked = [(None, task) for task in policy.tasks] if names is None else [(name, policy.find(name)) for name in names]
    for name, task in asked:
        has_family = name is not None and name.partition("/")[0] in registry.families()
        environment = name if has_family else environment_of(task.dataset, task.name)
        if environment is None:
            problem = "no family has an environment of that name"
        elif environment in found and found[environment].task != task:
            problem = f"{found[environment].task.full_name} is played in {environment} already"
        else:
            options = environment_options(environment, time_limits)
            for field in task.spec.observation if environment.startswith("atari/") else ():
                if field.path == "observation/frame":
                    options["size"] = field.shape[:2]
            found[environment] = EvalTask(environment, task, options)
            continue
        if name is not None:
            raise ConfigError(f"{name}: {problem}; name one task of an environment as family/task")
        notice(f"{task.full_name} is left out: {problem}")
    if not found:
        raise ConfigError(f"{policy.path} was trained on no task of a known environment")
    return list(found.values())


def environment_of(dataset: str, task: str) -> str | None:
    """The environment that a dataset's task was recorded in: the one whose family is part of the names, or the only one
    of that task's name; None if neither decides."""
    short = task.rpartition("/")[2]
    for part in reversed(f"{dataset}/{task}".split("/")):
        if part in registry.families():
            return f"{part}/{short}"
    found = [family for family in registry.families() if short in registry.tasks(family)]
    return f"{found[0]}/{short}" if len(found) == 1 else None
