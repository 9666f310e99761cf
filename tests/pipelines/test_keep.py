"""Each rule on four episodes."""

from typing import Any

import numpy as np
import pytest

from gatokit.pipelines.keep import RULES, Candidates, judge
from gatokit.schemas.config import Keep

RETURNS = np.array([10.0, 8.0, 7.9, -1.0])


def candidates(expert: float = 10.0, success: list[bool] | None = None) -> Candidates:
    return Candidates("reach", RETURNS, None if success is None else np.array(success), expert)


@pytest.mark.parametrize(
    ("rule", "expert", "kept", "limit"),
    [
        ({"min_return": 0.8}, 10.0, [True, True, False, False], 8.0),
        ({"min_return": 1.0}, 10.0, [True, False, False, False], 10.0),
        ({"min_return": 0.0}, 10.0, [True, True, True, False], 0.0),
        ({"min_return": 0.5}, -1.0, [True, True, True, True], -1.5),
        ({"min_return": 0.5, "random_return": 6.0}, 10.0, [True, True, False, False], 8.0),
        ({"min_return": 0.5, "random_return": -12.0}, 10.0, [True, True, True, True], -1.0),
        ({"min_return": 0.5, "random_return": {"reach": 6.0, "push": 0.0}}, 10.0, [True, True, False, False], 8.0),
    ],
)
def test_min_return(rule: dict[str, Any], expert: float, kept: list[bool], limit: float) -> None:
    verdict = judge(Keep.model_validate(rule), candidates(expert))
    assert verdict.kept.tolist() == kept
    assert (verdict.reason, verdict.threshold) == ("below_threshold", limit)


def test_all_keeps_everything_and_has_no_threshold() -> None:
    verdict = judge(Keep.model_validate({"all": True}), candidates())
    assert (verdict.kept.tolist(), verdict.threshold) == ([True] * 4, None)


def test_success_goes_by_the_mark_and_not_by_the_return() -> None:
    marks = [False, True, False, True]
    verdict = judge(Keep.model_validate({"success": "done"}), candidates(success=marks))
    assert (verdict.kept.tolist(), verdict.reason, verdict.threshold) == (marks, "not_success", None)


def test_every_rule_is_a_key_of_the_config() -> None:
    assert set(RULES) == {"min_return", "all", "success"}
    assert set(RULES) <= set(Keep.model_fields)
