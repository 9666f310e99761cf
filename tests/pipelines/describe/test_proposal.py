"""What describe proposes for small sources, and how it writes it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import yaml

from gatokit.pipelines.describe.config_text import config_text, flow_yaml
from gatokit.pipelines.describe.proposal import Proposal, propose
from gatokit.pipelines.describe.source import Description, describe
from gatokit.schemas.config import BuildConfig

F = tfds.features
FLAGS = {name: F.Scalar(dtype=np.bool_) for name in ("is_first", "is_last")}
Look = Callable[..., tuple[Description, Proposal, dict[str, Any]]]


def vector(size: int, dtype: Any = np.float32) -> F.Tensor:
    return F.Tensor(shape=(size,), dtype=dtype)


@pytest.fixture
def look(tmp_path: Path, write_tfds: Callable[..., Path]) -> Look:
    """``look(features, rows, metadata=…, values=…)``: what describe finds of episodes of ``rows(number)``, what it
    proposes, and the dataset in the config that it writes."""

    def go(
        features: dict[str, Any],
        rows: Callable[[int], Sequence[dict[str, Any]]],
        count: int = 6,
        metadata: dict[str, Any] | None = None,
        values: Callable[[int], dict[str, Any]] = lambda number: {},
    ) -> tuple[Description, Proposal, dict[str, Any]]:
        episodes = []
        for number in range(count):
            steps = [dict(row) for row in rows(number)]
            for ordinal, step in enumerate(steps):
                step |= {"is_first": ordinal == 0, "is_last": ordinal == len(steps) - 1}
            episodes.append({"steps": steps, **values(number)})
        write_tfds(tmp_path / "set", {**features, **FLAGS}, episodes, metadata=metadata)
        found = describe("set", base=tmp_path)
        proposal = propose(found, "set", "set")
        content = yaml.safe_load(config_text(found, proposal, "v.model", "c.yaml"))
        BuildConfig.model_validate(content)
        return found, proposal, content["datasets"][0]

    return go


def classic(number: int, steps: int = 5, **more: Any) -> list[dict[str, Any]]:
    """Steps of classic RL: the last one holds zeros."""
    rng = np.random.default_rng(number)
    return [
        {
            "observation": rng.normal(size=3).astype(np.float32),
            "action": rng.uniform(-1, 1, 2).astype(np.float32) if step < steps - 1 else np.zeros(2, np.float32),
            "reward": np.float32(rng.random() if step < steps - 1 else 0),
            **more,
        }
        for step in range(steps)
    ]


CLASSIC = {"observation": vector(3), "action": vector(2), "reward": F.Scalar(dtype=np.float32)}


def test_classic_rl_keeps_the_best_of_each_agent(look: Look):
    metadata = {"agent_id": F.Text(), "episode_index": np.int64}
    _, proposal, dataset = look(
        CLASSIC, classic, metadata=metadata, values=lambda n: {"agent_id": f"agent {n % 2}", "episode_index": n // 2}
    )
    assert dataset == {
        "name": "set",
        "kind": "episodes",
        "source": "set",
        "last_step": "padding",
        "agent": {"metadata": "agent_id"},
        "order": {"metadata": "episode_index"},
        "keep": {"min_return": 0.8},
        "fields": {"action": {"range": [-1, 1]}},
    }
    assert not proposal.has_text
    assert proposal.tokens == 5


def test_a_return_of_zero_or_one_is_a_success(look: Look):
    def rows(number: int) -> list[dict[str, Any]]:
        steps = classic(number)
        for step in steps:
            step["reward"] = np.float32(0)
        steps[2]["reward"] = np.float32(number % 2)
        return steps

    _, _, dataset = look(CLASSIC, rows)
    assert (dataset["keep"], dataset["last_step"]) == ({"return": [1, None]}, "padding")


def test_a_rule_that_would_keep_nothing_of_a_task_is_not_proposed(look: Look):
    metadata = {"task": F.Text(), "success": np.bool_}
    _, _, dataset = look(
        CLASSIC, classic, metadata=metadata, values=lambda n: {"task": "ab"[n % 2], "success": n % 2 == 0}
    )
    assert dataset["keep"] == {"success": {"metadata": "success"}}
    assert "task" not in dataset


def test_names_of_tasks_that_several_episodes_share(look: Look):
    _, _, dataset = look(
        CLASSIC,
        classic,
        metadata={"task": F.Text(), "success": np.bool_},
        values=lambda n: {"task": "ab"[n % 2], "success": n < 4},
    )
    assert dataset["task"] == {"metadata": "task"}
    assert dataset["keep"] == {"success": {"metadata": "success"}}


def test_what_numbers_become(look: Look):
    fields = {
        "word": vector(4, np.int32),
        "large": np.int64,
        "below": np.int64,
        "small": np.int64,
        "flag": np.bool_,
        "grid": F.Tensor(shape=(7, 7, 3), dtype=np.uint8),
        "still": vector(2),
        "embedding": vector(300),
        "broken": np.float32,
        "first": F.Tensor(shape=(3, 32, 40), dtype=np.uint8),
        "alpha": F.Tensor(shape=(32, 40, 4), dtype=np.uint8),
        "black": F.Image(shape=(32, 40, 3), encoding_format="png"),
        "outcome_success": np.float32,
    }

    def rows(number: int) -> list[dict[str, Any]]:
        return [
            {
                "observation": {
                    "word": np.array([*b"hi", 0, 0], np.int32),
                    "large": 5000 * (step + 1),
                    "below": step - 3,
                    "small": step,
                    "flag": step == 1,
                    "grid": np.full((7, 7, 3), step, np.uint8),
                    "still": np.array([1, 2], np.float32),
                    "embedding": np.full(300, step, np.float32),
                    "broken": np.float32(np.nan if step else 1),
                    "first": np.full((3, 32, 40), 40 + step, np.uint8),
                    "alpha": np.full((32, 40, 4), 40 + step, np.uint8),
                    "black": np.zeros((32, 40, 3), np.uint8),
                    "outcome_success": np.float32(number % 2),
                },
                "action": np.array([0.01 * step, -0.03], np.float32),
            }
            for step in range(4)
        ]

    found, proposal, dataset = look({"observation": F.FeaturesDict(fields), "action": vector(2)}, rows)
    assert dataset["fields"] == {
        "action": {"range": "data"},
        "observation/alpha": {"as": "image", "images": {"size": [32, 32]}},
        "observation/below": {"as": "discrete", "offset": -3},
        "observation/black": {"as": "skip"},
        "observation/broken": {"as": "skip"},
        "observation/embedding": {"as": "skip"},
        "observation/first": {"as": "image", "images": {"size": [32, 32]}},
        "observation/grid": {"as": "discrete"},
        "observation/large": {"as": "continuous"},
        "observation/outcome_success": {"as": "skip"},
        "observation/still": {"as": "skip"},
        "observation/word": {"as": "text"},
    }
    why = {field.path.split("/")[-1]: field.why for field in proposal.fields}
    assert why["black"] == "is black in all frames"
    assert why["broken"] == "holds NaN or infinite numbers (75.00%)"
    assert why["still"] == "never changes: 1 to 2"
    assert dataset["keep"] == {"success": {"field": "observation/outcome_success"}}
    assert found.ends.rewards is None


def test_a_few_values_far_from_the_others_make_quantiles(look: Look):
    def rows(number: int) -> list[dict[str, Any]]:
        steps = classic(number, 60)
        if number == 3:
            steps[7]["action"] = np.array([90, 0], np.float32)
        return steps

    _, _, dataset = look(CLASSIC, rows)
    assert dataset["fields"] == {"action": {"range": {"quantiles": [0.01, 0.99]}, "clip": True}}


def test_fields_at_the_top_are_observed_if_there_is_no_observation(look: Look):
    features = {"pose": vector(3), "note": F.Text(), "control": vector(2)}

    def rows(number: int) -> list[dict[str, Any]]:
        return [{"pose": step["observation"], "note": "x", "control": step["action"]} for step in classic(number)]

    _, proposal, dataset = look(features, rows)
    assert (dataset["observe"], dataset["action"]) == (["pose"], ["control"])
    assert dataset["fields"] == {"control": {"range": [-1, 1]}, "note": {"as": "skip"}}
    assert proposal.complaints == ()


def test_without_an_action_there_is_a_complaint(tmp_path: Path, write_tfds: Callable[..., Path]):
    steps = [{"observation": np.ones(3, np.float32) * n, "is_first": n == 0, "is_last": n == 2} for n in range(3)]
    write_tfds(tmp_path / "set", {"observation": vector(3), **FLAGS}, [{"steps": steps}] * 2)
    found = describe("set", base=tmp_path)
    proposal = propose(found, "set", "set")
    assert proposal.complaints == ("no field looks like an action: give `action: PATH`",)
    assert "# to do: no field looks like an action" in config_text(found, proposal, None, "c.yaml")


HOSTILE = "x'\": {a: [b]} # c\n- d\x1b[31m\u2028\u202e&\x00 é"


def test_texts_of_the_source_do_not_change_the_config(look: Look):
    key = "a: b # c"
    found, proposal, dataset = look(
        {**CLASSIC, "observation": F.FeaturesDict({key: vector(3), "word": F.Text()})},
        lambda number: [
            {**step, "observation": {key: step["observation"], "word": f"{HOSTILE}{number}"}}
            for step in classic(number)
        ],
        metadata={"agent": F.Text(), "task: x": F.Text()},
        values=lambda number: {"agent": f"{HOSTILE}{number % 2}", "task: x": HOSTILE},
    )
    assert dataset["fields"] == {"action": {"range": [-1, 1]}}
    assert dataset["agent"] == {"metadata": "agent"}
    written = config_text(found, proposal, None, "c.yaml")
    assert written.replace("\n", "").isprintable()
    assert "\\x1b[31m" in written


VALUES = [HOSTILE, "a", "1", "no", "- x", "", "é", {"k: v": ["x\ny", None, 1.5, True]}, [-1, 1], {"a": "x" * 999}]


@pytest.mark.parametrize("value", VALUES)
def test_yaml_on_one_line_is_read_back(value: Any):
    text = flow_yaml(value)
    assert "\n" not in text
    assert text.replace("é", "").isprintable()
    assert yaml.safe_load(text) == value
