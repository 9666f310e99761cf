"""Scores between chance and expert: the numbers, and an evaluation of policies that are known."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatokit.environments import Action, Observation, make
from gatokit.evaluation.rollouts import Rollout
from gatokit.evaluation.run import Scoring, environment_of, find_tasks, params_digest, score_policy
from gatokit.evaluation.scores import Anchors, Mean, Results, Returns, Score, TaskScores, best_variant, curve, overall
from gatokit.policy.policy import Decoding
from gatokit.policy.step_codec import Task, check_same_spec
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.policy import Prompt


def rollouts(*returns: float) -> list[Rollout]:
    return [Rollout(number, number, value, 1, 0.0) for number, value in enumerate(returns)]


def test_returns() -> None:
    found = Returns.of(rollouts(1.0, 2.0, 6.0))
    assert (found.episodes, found.mean) == (3, 3.0)
    assert found.error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


def test_a_score_is_the_place_between_chance_and_expert() -> None:
    anchors = Anchors(random=Returns(50, 20.0, 0.0), expert=Returns(50, 120.0, 0.0))
    found = {mean: Score.of(Returns(50, mean, 3.0), anchors) for mean in (20.0, 70.0, 120.0, 170.0, -30.0)}
    assert [score.normalized for score in found.values()] == [0.0, 50.0, 100.0, 150.0, -50.0]
    assert {score.error for score in found.values()} == {3.0}


def test_the_error_of_a_score_is_that_of_simulated_evaluations() -> None:
    rng = np.random.default_rng(0)
    random, expert, policy = (rng.normal(mean, error, 400_000) for mean, error in ((10, 2), (110, 3), (60, 4)))
    simulated = (100 * (policy - random) / (expert - random)).std()
    anchors = Anchors(Returns(50, 10.0, 2.0), Returns(50, 110.0, 3.0))
    assert Score.of(Returns(50, 60.0, 4.0), anchors).error == pytest.approx(simulated, rel=0.01)


@pytest.mark.parametrize(
    ("random", "expert", "why"),
    [
        ((0.0, 3.0), (25.0, 4.0), None),
        ((0.0, 3.0), (24.9, 4.0), "the expert's 24.9 and chance's 0 are 24.9 apart, less than 5 standard errors of 5"),
        ((0.0, 0.0), (0.1, 0.0), None),
        ((2.0, 0.0), (2.0, 0.0), "the expert's 2 is not above chance's 2"),
        ((3.0, 0.1), (2.0, 0.1), "the expert's 2 is not above chance's 3"),
    ],
)
def test_a_scale_needs_five_standard_errors(
    random: tuple[float, float], expert: tuple[float, float], why: str | None
) -> None:
    found = Anchors(Returns(9, *random), Returns(9, *expert)).refusal
    assert (found is None) if why is None else (found or "").startswith(why)


UNIT = Anchors(Returns(2, 0.0, 0.0), Returns(2, 100.0, 0.0))


def task(name: str, **means: float) -> TaskScores:
    return TaskScores(
        name, UNIT, {f"median/{mode}": Score.of(Returns(2, mean, 6.0), UNIT) for mode, mean in means.items()}
    )


SCORED = [
    task("grid/a", memory=10, window=50),
    task("grid/b", memory=30, window=20),
    task("arm/c", memory=80, window=60),
    task("grid/d", memory=50, window=-1),
]


def test_domains_count_equally_whatever_their_tasks() -> None:
    assert overall(SCORED, "median/memory") == Mean(4, 55.0, pytest.approx(math.hypot(6 / math.sqrt(3), 6) / 2))
    assert overall(SCORED, "median/window") == Mean(4, 41.5, pytest.approx(math.hypot(6 / math.sqrt(3), 6) / 2))
    assert best_variant(SCORED, ["median/window", "median/memory"]) == "median/memory"


def test_the_curve_counts_tasks_at_or_above_a_share() -> None:
    assert curve(SCORED, "median/memory", [0, 10, 10.5, 50, 80, 81]) == [4, 4, 3, 2, 1, 0]
    assert curve(SCORED, "median/window", [0, 50, 60, 100]) == [3, 2, 1, 0]


def test_what_is_written() -> None:
    refused = {"arm/e": Anchors(Returns(2, 5.0, 0.0), Returns(0, 4.0, 0.0), "data")}
    found = Results("median", "median/window", ("median/memory", "median/window"), SCORED[2:3], refused).to_json()
    assert found.pop("curve")[6:8] == [
        {"percent_of_expert": 60, "tasks": 1},
        {"percent_of_expert": 70, "tasks": 0},
    ]
    anchors = {"random_return": 0.0, "random_standard_error": 0.0, "expert_return": 100.0, "expert_standard_error": 0.0}
    assert found == {
        "rule": "median",
        "memory": "window",
        "mean": 60.0,
        "standard_error": 6.0,
        "domains": [{"domain": "arm", "tasks": 1, "normalized": 60.0, "standard_error": 6.0}],
        "tasks": [
            {
                "task": "arm/c",
                "domain": "arm",
                "episodes": 2,
                "mean_return": 60,
                "return_standard_error": 6.0,
                **anchors,
                "expert_source": "measured",
                "normalized": 60.0,
                "standard_error": 6.0,
                "others": {"median/memory": {"mean_return": 80, "normalized": 80.0, "standard_error": 6.0}},
            }
        ],
        "others": {"median/memory": 80.0},
        "refused": [
            {
                "task": "arm/e",
                "random_return": 5.0,
                "random_standard_error": 0.0,
                "expert_return": 4.0,
                "expert_standard_error": 0.0,
                "expert_source": "data",
                "why": "the expert's 4 is not above chance's 5",
            }
        ],
    }


def test_environments_of_tasks() -> None:
    for dataset, name, found in (
        ("metaworld", "door-open-v3", "metaworld/door-open-v3"),
        ("demo/babyai", "GoToLocal-v0", "babyai/GoToLocal-v0"),
        ("mine", "atari/Pong", "atari/Pong"),
        ("control", "cartpole-swingup", "dm_control/cartpole-swingup"),
        ("robots", "stack", None),
    ):
        assert environment_of(dataset, name) == found


def test_parameters_are_named_by_their_values() -> None:
    params = {"a": {"b": np.arange(3.0)}, "c": np.ones(2, np.float32)}
    assert params_digest(params) == params_digest({"c": np.ones(2, np.float32), "a": {"b": np.arange(3.0)}})
    assert (
        len({params_digest(params), params_digest(params | {"c": np.zeros(2)}), params_digest({"a": params["a"]})}) == 3
    )


ARM = "metaworld/door-open-v3"
STEPS = 40
LIMITS = {"metaworld": STEPS}


@dataclass
class KnownPlayer:
    """Meta-World's expert, which acts on observations alone, with a share of its action."""

    share: float
    begun: list[int]
    invalid: int = 0

    def __post_init__(self) -> None:
        self.expert = make(ARM)

    def begin(self, row: int, seed: int) -> None:
        self.begun.append(seed)

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        return {row: self.share * self.expert.expert_action_on(seen) for row, seen in observations.items()}


class KnownPolicy:
    """A policy whose weights are nothing but the share of the expert's action that each variant takes."""

    path = Path("known")

    def __init__(self, shares: dict[str, float], tasks: tuple[str, ...] = (ARM,)) -> None:
        self.params = {"shares": np.array([shares[name] for name in sorted(shares)])}
        self.shares, self.begun, self.rows = shares, [], set[int]()
        prompt = Prompt(episode_id="", agent="", episode_return=0, first_record=0, records=1)
        self.tasks = tuple(Task(*name.split("/"), make(name).spec, 900.0, prompt) for name in tasks)

    def find(self, name: str) -> Task:
        for task in self.tasks:
            if name == f"{task.dataset}/{task.name}":
                return task
        raise ConfigError(f"not trained on {name}")

    def player(self, task: Task, spec: Any, rows: int, decoding: Decoding) -> KnownPlayer:
        check_same_spec(task, spec)
        self.rows.add(rows)
        return KnownPlayer(self.shares[f"{decoding.rule}/{decoding.memory}"], self.begun)


SHARES = {"median/memory": 0.1, "median/window": 1.0, "sample/window": 0.5}
SCORING = Scoring(rollouts=4, rows=3, workers=1, time_limits=LIMITS)


def score(policy: Any, out: Path, scoring: Scoring = SCORING, names: list[str] | None = None) -> Results:
    return score_policy(policy, names, out, scoring, lambda *report: None, lambda text: None)


def keys(out: Path) -> list[tuple[str, str, int]]:
    lines = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    return [(line["task"], line["agent"], line["number"]) for line in lines]


def test_the_expert_in_disguise_scores_100_and_its_mode_is_chosen(tmp_path: Path) -> None:
    policy = KnownPolicy(SHARES)
    found = score(policy, tmp_path)
    assert (found.variant, found.others) == ("median/window", ("median/memory", "sample/window"))
    scores = found.scored[0].scores
    assert scores["median/window"].normalized == pytest.approx(100, abs=1)
    assert -50 < scores["median/memory"].normalized < scores["sample/window"].normalized < 90
    agents = ("random", "expert", *SHARES)
    assert sorted(keys(tmp_path)) == sorted((ARM, agent, number) for agent in agents for number in range(4))
    assert sorted(policy.begun) == sorted([(1 << 30) + number for number in range(4)] * 3)
    assert policy.rows == {1, 3}
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["tasks"][0]["normalized"] == scores["median/window"].normalized
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")

    again = KnownPolicy(SHARES)
    assert score(again, tmp_path).to_json() == found.to_json()
    assert again.begun == []
    more = KnownPolicy(SHARES)
    grown = score(more, tmp_path, replace(SCORING, rollouts=5))
    assert {task.anchors.expert.episodes for task in grown.scored} == {5}
    assert more.begun == [(1 << 30) + 4] * 3
    with pytest.raises(ConfigError, match="holds rollouts whose checkpoint is"):
        score(KnownPolicy(SHARES | {"median/memory": 0.2}), tmp_path)
    for change, name in (
        ({"temperature": 0.5}, "temperature"),
        ({"mask": False}, "mask"),
        ({"time_limits": {}}, "time"),
    ):
        with pytest.raises(ConfigError, match=f"holds rollouts whose {name}"):
            score(policy, tmp_path, replace(SCORING, **change))


def test_two_datasets_of_one_environment(tmp_path: Path) -> None:
    policy = KnownPolicy(SHARES)
    policy.tasks += (policy.tasks[0]._replace(dataset="more"),)
    notices: list[str] = []
    found = find_tasks(policy, None, {}, notices.append)  # type: ignore[arg-type]
    assert [item.task.full_name for item in found] == [ARM]
    assert notices == [f"more/door-open-v3 is left out: {ARM} is played in {ARM} already"]
    with pytest.raises(ConfigError, match=f"more/door-open-v3: {ARM} is played in {ARM} already; name one"):
        find_tasks(policy, [ARM, "more/door-open-v3"], {}, notices.append)  # type: ignore[arg-type]
    scoring = replace(SCORING, rollouts=2, modes=("window",), sampling=False)
    for name in (ARM, "more/door-open-v3"):
        score(policy, tmp_path, scoring, [name])
    played = [key for key in keys(tmp_path) if key[1] not in ("random", "expert")]
    agents = ("median/window", "median/window as more/door-open-v3")
    assert played == [(ARM, agent, number) for agent in agents for number in range(2)]


def test_one_mode_alone_and_the_return_of_the_data(tmp_path: Path) -> None:
    scoring = replace(SCORING, modes=("window",), sampling=False, expert_from_data=True)
    found = score(KnownPolicy(SHARES), tmp_path, scoring, [ARM])
    anchors = found.scored[0].anchors
    assert (anchors.expert, anchors.expert_source) == (Returns(0, 900.0, 0.0), "data")
    assert {agent for _, agent, _ in keys(tmp_path)} == {"random", "median/window"}


def test_a_task_without_a_scale_is_refused_before_the_policy_plays_it(tmp_path: Path) -> None:
    policy = KnownPolicy(SHARES)
    found = score(policy, tmp_path, replace(SCORING, time_limits={ARM: 1}))
    assert (found.scored, list(found.refused), policy.begun) == ([], [ARM], [])
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (written["tasks"], written["mean"]) == ([], None)
    assert "standard errors" in written["refused"][0]["why"] or "not above" in written["refused"][0]["why"]


def test_what_does_not_fit_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    known = KnownPolicy(SHARES)
    known.tasks = (known.tasks[0]._replace(spec=make("dm_control/reacher-easy").spec),)
    with pytest.raises(ConfigError, match="the data has the field observation/position, and the environment has not"):
        score(known, tmp_path)
    with pytest.raises(ConfigError, match="not trained on metaworld/reach-v3"):
        score(KnownPolicy(SHARES), tmp_path, SCORING, ["metaworld/reach-v3"])
    with pytest.raises(ConfigError, match="--rollouts is 2 or more, not 1"):
        Scoring(rollouts=1)
    assert not list(tmp_path.iterdir())
