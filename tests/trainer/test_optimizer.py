"""The schedule's literal values, and one update against float64."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gatokit.schemas.run import OptimizerConfig, RunConfig
from gatokit.trainer.optimizer import learning_rate, make_optimizer


def run(steps: int, **optimizer: Any) -> RunConfig:
    return RunConfig.model_validate({"model": "tiny", "steps": steps, "optimizer": optimizer})


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-7),
        (7_500, 5.005e-5),
        (15_000, 1e-4),
        (261_250, 1e-5 + 9e-5 * (1 + 0.5**0.5) / 2),
        (507_500, 5.5e-5),
        (1_000_000, 1e-5),
        (1_200_000, 1e-5),
    ],
)
def test_schedule_of_the_paper(step: int, rate: float) -> None:
    assert float(learning_rate(run(1_000_000))(jnp.int32(step))) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-7), (1, 5.05e-6), (2, 1e-5), (10_000, 1e-5)])
def test_constant_schedule(step: int, rate: float) -> None:
    config = run(10_000, learning_rate=1e-5, schedule="constant", warmup_steps=2)
    assert float(learning_rate(config)(jnp.int32(step))) == pytest.approx(rate, rel=1e-5)


def test_no_warmup() -> None:
    config = run(10, learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=0)
    assert float(learning_rate(config)(jnp.int32(0))) == pytest.approx(1e-3)


def test_warmup_is_a_tenth_of_a_short_schedule_and_a_longer_run_stays_at_its_end() -> None:
    assert (run(1_000_000).warmup_steps, run(2_000).warmup_steps, run(5).warmup_steps) == (15_000, 200, 0)
    rate = learning_rate(run(4_000, schedule_steps=2_000))
    assert float(rate(jnp.int32(200))) == pytest.approx(1e-4)
    assert float(rate(jnp.int32(2_000))) == float(rate(jnp.int32(3_999))) == pytest.approx(1e-5)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_two_updates_equal_float64(clip: float | None) -> None:
    config = OptimizerConfig(clip=clip, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1)
    optimizer = make_optimizer(config, {"matrix": True, "norm": False})
    params = {"matrix": np.array([2.0, -3.0]), "norm": np.array([1.0])}
    gradients = [
        {"matrix": np.array([3.0, 4.0]), "norm": np.array([12.0])},
        {"matrix": np.zeros(2), "norm": np.ones(1)},
    ]
    state = optimizer.init({name: jnp.float32(value) for name, value in params.items()})
    first, second = ({name: np.zeros_like(value) for name, value in params.items()} for _ in range(2))
    for count, gradient in enumerate(gradients, 1):
        norm = np.sqrt(sum((value**2).sum() for value in gradient.values()))
        factor = 1.0 if clip is None else min(1.0, clip / norm)
        expected = {}
        for name, value in gradient.items():
            first[name] = 0.9 * first[name] + 0.1 * factor * value
            second[name] = 0.95 * second[name] + 0.05 * (factor * value) ** 2
            expected[name] = (first[name] / (1 - 0.9**count)) / (np.sqrt(second[name] / (1 - 0.95**count)) + 1e-8)
        expected["matrix"] += 0.1 * params["matrix"]
        found, state = optimizer.update(gradient, state, params)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-5)
    assert int(optax.tree_utils.tree_get(state, "count")) == 2
