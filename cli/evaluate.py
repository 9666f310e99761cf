"""``gatokit evaluate``: scores a policy between chance and expert, or measures what tokens cost the expert."""

import argparse
from pathlib import Path
from typing import Any

from gatokit.cli.console import Output, needs, not_negative, positive
from gatokit.schemas.errors import ConfigError

EXAMPLE = """gatokit evaluate --checkpoint run --env metaworld/door-open-v3 --env babyai/GoToLocal-v0 --out scores
  gatokit evaluate --checkpoint run --all --rollouts 10 --memory window --out scores
  gatokit evaluate --ceiling --env dm_control/cartpole-swingup --out ceiling

A score is 100 * (policy - random) / (expert - random), all three measured in the same environments with the same
seeds. Run the same command again to go on where it stopped; finished rollouts are not played again."""

ROLLOUTS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    option = parser.add_argument
    option("--checkpoint", metavar="DIR", help="a run's directory, one of its checkpoints, or an export")
    option("--env", action="append", default=[], metavar="NAME", help="such as metaworld/door-open-v3; give several")
    option("--all", action="store_true", help="play all environments of the checkpoint's tasks")
    option("--out", required=True, metavar="DIR", help="directory for rollouts, scores and videos")
    option(
        "--rollouts", type=positive, default=ROLLOUTS, metavar="N", help=f"of each agent and task (default: {ROLLOUTS})"
    )
    option(
        "--rule",
        choices=("median", "sample", "greedy"),
        default="median",
        help="how continuous actions are chosen (default: median); discrete ones are sampled, but with greedy",
    )
    option(
        "--memory",
        choices=("both", "memory", "window"),
        default="both",
        help="cached keys and values, or a window that is read again; of both the better counts (default: both)",
    )
    option("--no-sampling", action="store_true", help="do not score the paper's sampling beside --rule")
    option("--temperature", type=float, default=1.0, metavar="T", help="of sampling (default: 1)")
    option(
        "--prompt-tokens", type=not_negative, metavar="N", help="most tokens of the prompt (default: half the context)"
    )
    option("--no-mask", action="store_true", help="let the policy choose invalid ids, too")
    option("--rows", type=positive, default=16, metavar="N", help="episodes played side by side (default: 16)")
    option("--workers", type=positive, default=2, metavar="N", help="processes for expert and chance (default: 2)")
    option("--video", type=positive, default=0, metavar="N", help="film the first N rollouts of a task")
    option(
        "--expert-return",
        choices=("measured", "data"),
        default="measured",
        help="data: take the dataset's expert return, which is marked then (default: measured)",
    )
    option(
        "--time-limit",
        action="append",
        default=[],
        metavar="NAME=STEPS",
        help="cut the episodes of an environment or a family, as its recording did; give several",
    )
    option("--ceiling", action="store_true", help="play the expert with actions and observations passed through tokens")


def run(arguments: argparse.Namespace) -> int:
    """Plays the policy and shows its scores; status 1 if no task has a scale."""
    output, out = Output(arguments.json), Path(arguments.out)
    time_limits = dict(map(_time_limit, arguments.time_limit))
    if bool(arguments.env) == arguments.all:
        raise ConfigError("give --env NAME, once or several times, or --all")
    if not arguments.checkpoint and (arguments.all or not arguments.ceiling):
        raise ConfigError("--checkpoint is needed: a run's directory, one of its checkpoints, or an export")
    if arguments.ceiling:
        return _ceiling(arguments, time_limits, output)
    with needs("train"):
        from gatokit.evaluation.run import MODES, Scoring, score_policy
        from gatokit.policy.policy import load_policy
    scoring = Scoring(
        rollouts=arguments.rollouts,
        rule=arguments.rule,
        modes=MODES if arguments.memory == "both" else (arguments.memory,),
        sampling=not arguments.no_sampling,
        temperature=arguments.temperature,
        mask=not arguments.no_mask,
        prompt_tokens=arguments.prompt_tokens,
        rows=arguments.rows,
        workers=arguments.workers,
        videos=arguments.video,
        expert_from_data=arguments.expert_return == "data",
        time_limits=time_limits,
    )
    policy = load_policy(Path(arguments.checkpoint))
    names = None if arguments.all else arguments.env
    with output.progress() as progress:
        results = score_policy(policy, names, out, scoring, progress, output.notice)
    show_scores(output, results, out)
    about = {"rollouts": arguments.rollouts, "checkpoint": arguments.checkpoint, "out": str(out)}
    output.result(results.to_json() | about)
    return 0 if results.scored else 1


def show_scores(output: Output, results: Any, out: Path) -> None:
    """Shows the tables of an evaluation's ``evaluation.scores.Results``."""
    from gatokit.evaluation.scores import domain_means, overall

    others = [variant.replace("/", ", ") for variant in results.others]
    rows: list[list[Any]] = []
    for task in results.scored:
        score, expert = task.scores[results.variant], _rounded(task.anchors.expert.mean)
        rows.append(
            [
                task.task,
                score.returns.episodes,
                _rounded(task.anchors.random.mean),
                f"{expert:,g} (data)" if task.anchors.expert_source == "data" else expert,
                _rounded(score.returns.mean),
                round(score.normalized, 1),
                round(score.error, 1),
                *(round(task.scores[variant].normalized, 1) for variant in results.others),
            ]
        )
    if rows:
        title = f"scores by {results.variant.replace('/', ', ')}, % of expert"
        output.table(title, ["task", "rollouts", "random", "expert", "return", "score", "±", *others], rows)
        means = {
            variant: domain_means(results.scored, variant) | {"all domains": overall(results.scored, variant)}
            for variant in (results.variant, *results.others)
        }
        rows = [
            [domain, mean.tasks, round(mean.normalized, 1), round(mean.error, 1)]
            + [round(means[variant][domain].normalized, 1) for variant in results.others]
            for domain, mean in means[results.variant].items()
        ]
        output.table("means, % of expert", ["domain", "tasks", "score", "±", *others], rows)
    for name, anchors in results.refused.items():
        output.notice(f"{name} has no score: {anchors.refusal}")
    if results.scored:
        output.say(f"scores, every rollout and the curve are in {out}")


def _ceiling(arguments: argparse.Namespace, time_limits: dict[str, int], output: Output) -> int:
    from dataclasses import asdict

    from gatokit.evaluation.ceiling import measure_ceiling

    names, out = arguments.env, Path(arguments.out)
    if arguments.all:
        with needs("train"):
            from gatokit.evaluation.run import find_tasks
            from gatokit.policy.policy import load_policy
        policy = load_policy(Path(arguments.checkpoint))
        names = [task.name for task in find_tasks(policy, None, time_limits, output.notice)]
    rollouts, workers = arguments.rollouts, arguments.workers
    with output.progress() as progress:
        found = measure_ceiling(
            names, out, rollouts=rollouts, workers=workers, time_limits=time_limits, progress=progress
        )
    rows = []
    for item in found:
        row: list[Any] = [item.task, "continuous" if item.continuous else "discrete"]
        row += [_rounded(item.random_return), _rounded(item.expert_return), *_loss_cells(item.actions)]
        of_both = _loss_cells(item.actions_and_observations)
        row += of_both if item.expert_observes else ["reads the state", None, None]
        rows.append(row)
    output.table(
        "the expert behind tokens; losses in % of expert - random, by pairs of seeds",
        ["task", "action", "random", "expert", "actions", "loss", "±", "and observations", "loss", "±"],
        rows,
    )
    for item in found:
        if item.refused is not None:
            output.notice(f"{item.task} has no loss: {item.refused}")
    output.say(f"every rollout and the losses are in {out}")
    output.result({"rollouts": rollouts, "tasks": [asdict(item) for item in found], "out": str(out)})
    return 0


def _loss_cells(loss: Any) -> list[Any]:
    if loss is None:
        return [None, None, None]
    # A small negative loss rounds to -0.0; adding 0 makes it 0.
    return [_rounded(loss.mean_return), round(loss.loss, 2) + 0.0, round(loss.standard_error, 2)]


def _rounded(value: float) -> float:
    """Rounds to four digits."""
    return float(f"{value:.4g}")


def _time_limit(text: str) -> tuple[str, int]:
    name, equals, steps = text.rpartition("=")
    if not (name and equals and steps.isdigit() and int(steps)):
        raise ConfigError(f"--time-limit {text}: write NAME=STEPS, such as atari=300")
    return name, int(steps)
