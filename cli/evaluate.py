"""``gatokit evaluate``: a policy against expert and chance, or the expert behind tokens."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatokit.cli.build import positive
from gatokit.cli.console import Output, needs
from gatokit.schemas.errors import ConfigError

EXAMPLE = """gatokit evaluate --checkpoint run --env metaworld/door-open-v3 --env babyai/GoToLocal-v0 --out scores
  gatokit evaluate --checkpoint run --all --rollouts 10 --memory window --out scores
  gatokit evaluate --ceiling --env dm_control/cartpole-swingup --out ceiling

A score is 100 * (policy - random) / (expert - random), all three measured in the same environments with the same
seeds. Run the same command again to go on where it stopped; finished rollouts are not played again."""

ROLLOUTS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--checkpoint", metavar="DIR", help="a run's directory, one of its checkpoints, or an export")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="environment to play, such as metaworld/door-open-v3; give several",
    )
    parser.add_argument("--all", action="store_true", help="play all environments of the checkpoint's tasks")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for rollouts, scores and videos")
    parser.add_argument(
        "--rollouts",
        type=positive,
        default=ROLLOUTS,
        metavar="N",
        help=f"for each agent and task (default: {ROLLOUTS})",
    )
    parser.add_argument(
        "--rule",
        choices=("median", "sample", "greedy"),
        default="median",
        help="how continuous actions are chosen (default: median); discrete ones are sampled, but with greedy",
    )
    parser.add_argument(
        "--memory",
        choices=("both", "memory", "window"),
        default="both",
        help="cached keys and values, or a window that is read again; of both the better counts (default: both)",
    )
    parser.add_argument("--no-sampling", action="store_true", help="do not score the paper's sampling beside --rule")
    parser.add_argument("--temperature", type=_number, default=1.0, metavar="T", help="of sampling (default: 1)")
    parser.add_argument(
        "--prompt-tokens",
        type=_count,
        metavar="N",
        help="most tokens of the prompt (default: half of the context)",
    )
    parser.add_argument("--no-mask", action="store_true", help="let the policy choose invalid ids, too")
    parser.add_argument(
        "--rows",
        type=positive,
        default=16,
        metavar="N",
        help="episodes that the policy plays side by side (default: 16)",
    )
    parser.add_argument(
        "--workers", type=positive, default=2, metavar="N", help="processes for expert and chance (default: 2)"
    )
    parser.add_argument("--video", type=positive, default=0, metavar="N", help="film the first N rollouts of a task")
    parser.add_argument(
        "--expert-return",
        choices=("measured", "data"),
        default="measured",
        help="data: take the dataset's expert return, which is marked then (default: measured)",
    )
    parser.add_argument(
        "--time-limit",
        action="append",
        default=[],
        metavar="NAME=STEPS",
        help="cut the episodes of an environment or a family, as its recording did; give several",
    )
    parser.add_argument(
        "--ceiling", action="store_true", help="play the expert with actions and observations passed through tokens"
    )


def run(arguments: argparse.Namespace) -> int:
    """Plays the policy and shows its scores; status 1 if no task has a scale."""
    output = Output(arguments.json)
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
    modes = MODES if arguments.memory == "both" else (arguments.memory,)
    scoring = Scoring(
        rollouts=arguments.rollouts,
        rule=arguments.rule,
        modes=modes,
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
    out = Path(arguments.out)
    policy = load_policy(Path(arguments.checkpoint))
    names = None if arguments.all else arguments.env
    with output.progress() as progress:
        results = score_policy(policy, names, out, scoring, progress, output.notice)
    show_scores(output, results, out)
    about = {"rollouts": scoring.rollouts, "checkpoint": arguments.checkpoint, "out": str(out)}
    output.result(results.to_json() | about)
    return 0 if results.scored else 1


def show_scores(output: Output, results: Any, out: Path) -> None:
    """Tables of an evaluation's ``evaluation.scores.Results``."""
    from gatokit.evaluation.scores import domain_means, overall

    columns = ["task", "rollouts", "random", "expert", "return", "score", "±", *map(_called, results.others)]
    rows: list[Sequence[Any]] = []
    for task in results.scored:
        score = task.scores[results.variant]
        mark = " (data)" if task.anchors.expert_source == "data" else ""
        rows.append(
            [
                task.task,
                score.returns.episodes,
                _rounded(task.anchors.random.mean),
                f"{_rounded(task.anchors.expert.mean):,g}{mark}" if mark else _rounded(task.anchors.expert.mean),
                _rounded(score.returns.mean),
                round(score.normalized, 1),
                round(score.error, 1),
                *(round(task.scores[variant].normalized, 1) for variant in results.others),
            ]
        )
    if rows:
        output.table(f"scores by {_called(results.variant)}, % of expert", columns, rows)
        means = {
            variant: domain_means(results.scored, variant) | {"all domains": overall(results.scored, variant)}
            for variant in (results.variant, *results.others)
        }
        output.table(
            "means, % of expert",
            ["domain", "tasks", "score", "±", *map(_called, results.others)],
            [
                [domain, mean.tasks, round(mean.normalized, 1), round(mean.error, 1)]
                + [round(means[variant][domain].normalized, 1) for variant in results.others]
                for domain, mean in means[results.variant].items()
            ],
        )
    for name, anchors in results.refused.items():
        output.notice(f"{name} has no score: {anchors.refusal}")
    if rows:
        output.say(f"scores, every rollout and the curve are in {out}")


def _ceiling(arguments: argparse.Namespace, time_limits: dict[str, int], output: Output) -> int:
    from gatokit.evaluation.ceiling import measure_ceiling

    names = arguments.env
    if arguments.all:
        with needs("train"):
            from gatokit.evaluation.tasks import find_tasks
            from gatokit.policy.policy import load_policy
        policy = load_policy(Path(arguments.checkpoint))
        names = [task.name for task in find_tasks(policy, None, time_limits, output.notice)]
    out = Path(arguments.out)
    with output.progress() as progress:
        found = measure_ceiling(
            names,
            out,
            rollouts=arguments.rollouts,
            workers=arguments.workers,
            time_limits=time_limits,
            progress=progress,
        )
    output.table(
        "the expert behind tokens; losses in % of expert - random, by pairs of seeds",
        ["task", "action", "random", "expert", "actions", "loss", "±", "and observations", "loss", "±"],
        [
            [
                item.task,
                "continuous" if item.continuous else "discrete",
                _rounded(item.anchors.random.mean),
                _rounded(item.anchors.expert.mean),
                *_lost(item.actions),
                *(_lost(item.both) if item.observes else ["reads the state", None, None]),
            ]
            for item in found
        ],
    )
    for item in found:
        if item.anchors.refusal is not None:
            output.notice(f"{item.task} has no loss: {item.anchors.refusal}")
    output.say(f"every rollout and the losses are in {out}")
    output.result({"rollouts": arguments.rollouts, "tasks": [item.to_json() for item in found], "out": str(out)})
    return 0


def _lost(loss: Any) -> list[float | None]:
    if loss is None:
        return [None, None, None]
    # Adding 0 makes a zero of a small loss below it.
    return [_rounded(loss.mean), round(loss.percent, 2) + 0.0, round(loss.error, 2)]


def _called(variant: str) -> str:
    rule, _, memory = variant.partition("/")
    return f"{rule}, {memory}"


def _rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens")
    return int(text)


def _time_limit(text: str) -> tuple[str, int]:
    name, equals, steps = text.rpartition("=")
    if not (name and equals and steps.isdigit() and int(steps)):
        raise ConfigError(f"--time-limit {text}: write NAME=STEPS, such as atari=300")
    return name, int(steps)
