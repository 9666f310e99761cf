"""Expressions against an evaluation row by row, with None for what is unknown, and what is refused."""

import math
import operator
import re
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatokit.schemas.where import COLUMNS, Strings, Truth, Where, arrow_column

ROWS: list[dict[str, Any]] = [
    {"agent": "expert", "task": "push", "steps": 10, "return": 5.0, "expert_return": 8.0, "order": 0.0},
    {"agent": "noisy", "task": "push", "steps": 300, "return": -1.5, "expert_return": 8.0, "order": 1.0},
    {"agent": None, "task": "reach", "steps": 0, "return": 0.0, "expert_return": 0.0, "order": 2.0},
    {"agent": "expert", "task": "reach", "steps": 299, "return": None, "expert_return": 0.0, "order": 3.5},
    {"agent": "", "task": None, "steps": 7, "return": 8.0, "expert_return": None, "order": -4.0},
]
for row, done, gripper in zip(
    ROWS, (True, False, None, True, None), ("2-finger (b)", None, "", "@suction", "a+b"), strict=True
):
    row |= {"done": done, "end-effector type": gripper}
KNOWN: dict[str, Any] = {**COLUMNS, "done": "truth", "end-effector type": "string"}
NUMBERS = [name for name in ("steps", "return", "expert_return", "order") if COLUMNS[name] == "number"]


def columns() -> dict[str, Any]:
    found: dict[str, Any] = {
        name: np.array([math.nan if row[name] is None else row[name] for row in ROWS], np.float64) for name in NUMBERS
    }
    for name in ("agent", "task", "end-effector type"):
        names = sorted({row[name] for row in ROWS if row[name] is not None}, reverse=True)
        codes = [-1 if row[name] is None else names.index(row[name]) for row in ROWS]
        found[name] = Strings(np.array(codes, np.int32), names)
    found["done"] = Truth(*(np.array([row["done"] is answer for row in ROWS]) for answer in (True, False)))
    return found


def passes(text: str) -> list[bool]:
    # A config is read before its source is known, and must accept the same.
    where = Where(text, KNOWN)
    assert Where(text, None).columns == where.columns
    return where.passes(columns(), len(ROWS)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps < 300 and agent == 'expert' and return > 0.5 * expert_return", [True, False, False, False, False]),
        ("return == 5", [True, False, False, False, False]),
        ("not return > 0", [False, True, True, False, False]),  # an unknown return stays unknown
        ("return > 0 or steps == 299", [True, False, False, True, True]),
        ("agent != 'expert'", [False, True, False, False, True]),
        ("agent in ('expert', 'no one')", [True, False, False, True, False]),
        ("agent not in ['expert']", [False, True, False, False, True]),
        ("steps in (-7, 7, 10.0)", [True, False, False, False, True]),
        ("0 < steps <= 299", [True, False, False, True, True]),
        ("return / steps > -1", [True, True, False, False, True]),  # nothing divided by nothing
        ("steps / expert_return > 0", [True, True, False, False, False]),  # 299 / 0 is unknown, not infinite
        ("order % 2 == 0", [True, False, True, False, True]),
        ("task < agent", [False, False, False, False, False]),
        ("agent < task", [True, True, False, True, False]),
        ("task == 'return' or task == \"push\"", [True, True, False, False, False]),
        ("1 < 2", [True] * 5),
        ("done", [True, False, False, True, False]),
        ("not done", [False, True, False, False, False]),
        ("done == true and steps > 10", [False, False, False, True, False]),
        ("done != true", [False, True, False, False, False]),
        ("done is null", [False, False, True, False, True]),
        ("done is not null and not done", [False, True, False, False, False]),
        ("return is null or task is null", [False, False, False, True, True]),
        ("task matches '^(push|pull)$'", [True, True, False, False, False]),
        ("task not matches 'u'", [False, False, True, True, False]),
        ("agent contains 'x'", [True, False, False, True, False]),
        ("'x' in agent and 'xy' not in agent", [True, False, False, True, False]),
        ("agent not contains 'x'", [False, True, False, False, True]),
        ("`end-effector type` contains '(b)'", [True, False, False, False, False]),
        ("`end-effector type` contains '@' or `end-effector type` == 'a+b'", [False, False, False, True, True]),
        ("`end-effector type` is null", [False, True, False, False, False]),
        ("`steps` > 200 and `return` < 0", [False, True, False, False, False]),
        ("not agent matches 'x' and not (task is null)", [False, True, False, False, False]),
        ("task == 'not matches' or task == '`agent`' or task matches '@|//|`'", [False] * 5),
        ("-steps + +3 * (return - 1) > 0\n  and steps < 1e3", [True, False, False, False, True]),
    ],
)
def test_complete_answers(text: str, expected: list[bool]) -> None:
    assert passes(text) == expected


COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": operator.mod}
numbers = st.recursive(
    st.sampled_from(NUMBERS).map(lambda name: ("column", name))
    | st.sampled_from([0, 1, 2.5, 300, 1e300]).map(lambda value: ("literal", value)),
    lambda inner: st.tuples(st.sampled_from(sorted(COMPUTE)), inner, inner),
    max_leaves=4,
)
texts = st.sampled_from(["agent", "task", "end-effector type"]).map(lambda name: ("column", name))
literals = st.sampled_from(["expert", "push", "", "it's", "@", "a+b", "(b)"]).map(lambda value: ("literal", value))
strings = texts | literals
patterns = st.sampled_from(["p", "^$", "e.*t", "[^a-z]", "(us|ea)", "@"]).map(lambda value: ("literal", value))
truths = st.recursive(
    st.tuples(st.sampled_from(sorted(COMPARE)), numbers, numbers)
    | st.tuples(st.sampled_from(sorted(COMPARE)), strings, strings)
    | st.tuples(st.sampled_from(["matches", "not matches"]), texts, patterns)
    | st.tuples(st.sampled_from(["contains", "not contains"]), texts, literals)
    | st.tuples(st.sampled_from(["is null", "is not null"]), texts | numbers | st.just(("column", "done")))
    | st.just(("column", "done"))
    | st.tuples(st.sampled_from(["done == true", "done == false", "done != false"])),
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), inner, inner) | st.tuples(st.just("not"), inner),
    max_leaves=5,
)


def written(tree: Any) -> str:
    match tree:
        case ("column", name):
            return f"`{name}`" if "-" in name else str(name)
        case (whole,):
            return str(whole)
        case ("is null" | "is not null" as words, inner):
            return f"({written(inner)} {words})"
        case ("literal", value):
            return repr(value)
        case ("not", inner):
            return f"(not {written(inner)})"
        case (sign, left, right):
            return f"({written(left)} {sign} {written(right)})"
    raise AssertionError(tree)


def value(tree: Any, row: dict[str, Any]) -> Any:
    """By the rules of SQL: None is unknown."""
    match tree:
        case ("column", name):
            return row[name]
        case ("literal", literal):
            return literal
        case ("not", inner):
            found = value(inner, row)
            return None if found is None else not found
        case ("done == true" | "done != false",):
            return row["done"]
        case ("done == false",):
            return None if row["done"] is None else not row["done"]
        case ("is null" | "is not null" as words, inner):
            return (value(inner, row) is None) == (words == "is null")
        case ("matches" | "contains" | "not matches" | "not contains" as words, left, ("literal", part)):
            text = value(left, row)
            if text is None:
                return None
            has = part in text if "contains" in words else re.search(part, text) is not None
            return has == (not words.startswith("not"))
        case ("and" | "or" as word, left, right):
            found = [value(left, row), value(right, row)]
            decides = word == "or"
            return decides if decides in found else None if None in found else not decides
        case (sign, left, right):
            one, other = value(left, row), value(right, row)
            if one is None or other is None:
                return None
            if sign in COMPARE:
                return COMPARE[sign](one, other)
            try:
                number = COMPUTE[sign](float(one), float(other))
            except ZeroDivisionError:
                return None
            return number if math.isfinite(number) else None
    raise AssertionError(tree)


@given(truths)
def test_against_a_loop_over_rows(tree: Any) -> None:
    assert passes(written(tree)) == [value(tree, row) is True for row in ROWS]


GRAMMAR = (
    "columns, numbers, strings, + - * / %, == != < <= > >=, in (…), matches, contains, is null, and, or, not and "
    "parentheses"
)
NAMES = "agent, episode_id, expert_return, order, return, source_file, source_position, steps, task"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("length > 3", f"'length' is no column; the columns are {NAMES}"),
        ("kept == 1", f"'kept' is no column; the columns are {NAMES}"),
        ("steps", "steps is a number, and the whole needs a comparison"),
        ("steps and 1 < 2", "steps is a number, and 'and' needs a comparison"),
        ("not task", "task is a string, and 'not' needs a comparison"),
        ("return < 'a'", "compares return, a number, with 'a', a string, by <"),
        ("(steps < 3) == (steps < 4)", "compares steps < 3, a truth, with steps < 4, a truth, by =="),
        ("task + 'x' == 'y'", "task is a string, and arithmetic needs a number"),
        ("-agent < 3", "agent is a string, and a sign needs a number"),
        ("agent in ('a', 1)", "1 is a number, and a list beside agent needs a string"),
        ("agent in ()", "looks for agent in '()'; give a list, such as in ('a', 'b')"),
        ("agent in task", "looks for agent in 'task'; give a list, such as in ('a', 'b')"),
        ("steps in (1, order)", "looks for steps in a list with order; a list holds no columns"),
        ("steps is 3", "compares with 'is'; write == or !=, or is null"),
        ("steps ** 2 > 3", f"holds 'steps ** 2', and may hold {GRAMMAR}"),
        ("__import__('os').system('id') == 0", f"holds \"__import__('os').system('id')\", and may hold {GRAMMAR}"),
        ("steps.real > 1", f"holds 'steps.real', and may hold {GRAMMAR}"),
        ("[x for x in (1,)] == 1", f"holds '[x for x in (1,)]', and may hold {GRAMMAR}"),
        ("f'{steps}' == 'a'", f"holds \"f'{{steps}}'\", and may hold {GRAMMAR}"),
        ("b'a' == agent", f"holds b'a', and may hold {GRAMMAR}"),
        ("True", f"holds True, and may hold {GRAMMAR}"),
        ("steps > 1j", f"holds 1j, and may hold {GRAMMAR}"),
        ("steps > ", f"is no expression: invalid syntax; it may hold {GRAMMAR}"),
        ("steps > 1) or (2 > 1", f"is no expression: unmatched ')'; it may hold {GRAMMAR}"),
        ("steps > 1" + "0" * 400, "holds the number 10000000000000000000…, which is too large"),
        ("not " * 60 + "1 < 2", "is nested more than 50 deep; write it shorter"),
        ("-" * 9_000 + "1 < 2", "is nested more than 50 deep; write it shorter"),
        ("1+" * 4_000 + "1 < 2", "is nested more than 50 deep; write it shorter"),
        ("[" + "not " * 600 + "1]", "is nested more than 50 deep; write it shorter"),
        ("1 < 2" + " " * 10_000, "has 10,005 characters, and 10,000 are the most; list episodes in a file"),
        ("task matches 'a(b'", "has 'a(b', which is no regular expression of RE2: missing ): a(b"),
        ("task matches '(?=a)'", "has '(?=a)', which is no regular expression of RE2: invalid perl operator: (?="),
        ("task matches '" + "a" * 1_001 + "'", "has a pattern of 1,001 characters, and 1,000 are the most"),
        ("task matches agent", "'matches' needs a string behind it, not agent"),
        ("steps contains '3'", "steps is a number, and 'contains' needs a string"),
        ("'a' in steps", "steps is a number, and 'in' needs a string"),
        ("agent in 'task'", "looks for agent in \"'task'\"; give a list, such as in ('a', 'b')"),
        ("task @ 'a'", f"holds '@', and may hold {GRAMMAR}"),
        ("steps // 2 > 3", f"holds '//', and may hold {GRAMMAR}"),
        ("steps == true", "compares steps, a number, with True, a truth, by =="),
        ("`step count` > 3", f"'step count' is no column; the columns are {NAMES}"),
        ("stepps > 3", f"'stepps' is no column; did you mean 'steps'? the columns are {NAMES}"),
        ("task == '\ud800'", "is no expression: surrogates not allowed"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Where(text)
    assert str(caught.value) == said


def test_many_rows_with_many_names_are_compared_by_the_names_they_use() -> None:
    names = [f"file-{number}" for number in range(100_000)]
    column = Strings(np.array([3, 99_999, -1]), names)
    assert Where("source_file >= 'file-4'").passes({"source_file": column}, 3).tolist() == [False, True, False]
    assert Where("source_file in ('file-3', 'x')").passes({"source_file": column}, 3).tolist() == [True, False, False]


def test_a_pattern_that_python_would_try_for_ever() -> None:
    names = ["a" * 5_000 + "b"]
    begin = time.monotonic()
    found = Where("task matches '^(a|a|aa)+$'").passes({"task": Strings(np.zeros(1, np.int64), names)}, 1)
    assert found.tolist() == [False]
    assert time.monotonic() - begin < 5


def test_a_config_names_columns_that_only_its_source_has() -> None:
    where = Where("success and `task name` matches 'pick' and mass > 3 and `task name` != shape", None)
    assert where.columns == {"success", "task name", "mass", "shape"}
    for text in ("success > 'a' and success < 3 and return == 'a'", "success + 'a' > 3", "steps"):
        with pytest.raises(ValueError):
            Where(text, None)


@pytest.mark.parametrize(
    ("values", "type_", "text", "expected"),
    [
        ([True, False, None], pa.bool_(), "x", [True, False, False]),
        ([True, False, None], pa.bool_(), "not x", [False, True, False]),
        (["a", None, "b"], pa.string(), "x != 'a'", [False, False, True]),
        (["a", None, "b"], pa.dictionary(pa.int32(), pa.string()), "x != 'a'", [False, False, True]),
        ([3, None, -1], pa.int64(), "x > 0", [True, False, False]),
        ([3.0, None, math.nan], pa.float64(), "x is null", [False, True, True]),
    ],
)
def test_columns_of_arrow(values: list[Any], type_: pa.DataType, text: str, expected: list[bool]) -> None:
    known: dict[str, Any] = {"x": "truth" if pa.types.is_boolean(type_) else "number"}
    if not pa.types.is_primitive(type_):
        known["x"] = "string"
    for column in (pa.array(values, type_), pa.chunked_array([values[:1], values[1:]], type_)):
        assert Where(text, known).passes({"x": arrow_column(column)}, 3).tolist() == expected
