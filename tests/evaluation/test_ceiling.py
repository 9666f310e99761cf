"""The expert behind tokens."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gatokit.environments import make
from gatokit.evaluation.ceiling import ACTIONS, BOTH, Loss, TokenExpert, measure_ceiling, through_tokens
from gatokit.evaluation.rollouts import Rollout
from gatokit.schemas.manifest import FieldSpec

FIRST = 1 << 30


def test_values_come_back_as_the_centres_of_their_bins() -> None:
    arm = FieldSpec(
        path="action", kind="continuous", dtype="float32", shape=(3,), range=((-1.0, 1.0), (0.0, 4.0), (-2.0, 0.0))
    )
    found = through_tokens(arm, np.array([0.5, 4.0, -2.0], np.float32))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([0.5 + 1 / 1024, 4 - 2 / 1024, -2 + 1 / 1024], np.float32))

    def compressed(value: float) -> float:
        return float(np.sign(value) * np.log(abs(value) * 100 + 1) / np.log(256 * 100 + 1))

    state = FieldSpec(path="observation/state", kind="continuous", dtype="float32", shape=(4,))
    values = [0.0, 0.07, -1.5, 200.0]
    for value, back in zip(values, through_tokens(state, np.array(values, np.float32)).tolist(), strict=True):
        assert abs(compressed(back) - compressed(value)) <= 1 / 1024 + 1e-6
    grid = FieldSpec(path="observation/grid", kind="discrete", dtype="uint8", shape=(2, 2))
    codes = np.array([[0, 9], [3, 255]], np.uint8)
    np.testing.assert_array_equal(through_tokens(grid, codes), codes)
    assert through_tokens(FieldSpec(path="observation/mission", kind="text", dtype="str"), "go") == "go"


@pytest.mark.parametrize("observes", [False, True])
def test_the_expert_behind_tokens_does_nearly_what_it_does_without(observes: bool) -> None:
    adapter = make("metaworld/door-open-v3")
    agent = TokenExpert([adapter], observes)
    observation = adapter.reset(FIRST)
    agent.begin(0, FIRST)
    steps = []
    for _ in range(30):
        exact = adapter.expert_action()
        action = agent.act({0: observation})[0]
        places = (action.astype(np.float64) + 1) * 512 - 0.5
        np.testing.assert_allclose(places, np.round(places), atol=1e-3)
        steps.append(np.abs(action - exact).max())
        observation = adapter.step(action).observation
    assert 0 < max(steps) < (0.3 if observes else 1.001 / 1024)


def test_a_loss_is_that_of_pairs_in_percent_of_the_gap() -> None:
    without, behind = (
        [Rollout(number, number, value, 1, 0.0) for number, value in enumerate(values)]
        for values in ((100.0, 300.0, 200.0), (99.0, 296.0, 199.0))
    )
    found = Loss.of(without, behind, 50.0)
    assert (found.mean_return, found.loss) == (198.0, 4.0)
    assert found.standard_error == pytest.approx(100 / 50 * np.std([1, 4, 1], ddof=1) / np.sqrt(3))


def test_a_ceiling_by_task(tmp_path: Path) -> None:
    limits = {"metaworld": 100, "dm_control": 500, "babyai": 1}
    names = ["metaworld/door-open-v3", "dm_control/cartpole-swingup", "babyai/GoToLocal-v0"]
    reports: list[tuple[str, int, int]] = []
    arm, pole, grid = measure_ceiling(
        names, tmp_path, rollouts=3, workers=1, time_limits=limits, progress=lambda *report: reports.append(report)
    )
    assert (arm.expert_observes, pole.expert_observes, grid.continuous) == (True, False, False)
    for found in (arm.actions, arm.actions_and_observations, pole.actions):
        assert found is not None
        assert abs(found.loss) < 5
        assert found.standard_error < 5
    assert pole.actions_and_observations is None
    assert (grid.actions, grid.actions_and_observations) == (None, None)
    assert "is not above chance's" in (grid.refused or "")
    assert reports[-1] in [(ACTIONS, 9, 9), (BOTH, 3, 3)]
    written = json.loads((tmp_path / "ceiling.json").read_text())
    assert [item["task"] for item in written["tasks"]] == names
    assert written["tasks"][0]["actions"]["loss"] == arm.actions.loss if arm.actions else False
    size = (tmp_path / "rollouts.jsonl").stat().st_size
    again = measure_ceiling(names, tmp_path, rollouts=3, workers=1, time_limits=limits, progress=lambda *report: None)
    assert again == [arm, pole, grid]
    assert (tmp_path / "rollouts.jsonl").stat().st_size == size


def test_it_needs_no_jax() -> None:
    code = "import sys, gatokit.evaluation.ceiling, gatokit.evaluation.videos; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
