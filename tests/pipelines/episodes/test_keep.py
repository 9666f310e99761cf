"""Each rule on four episodes, and all of them against a loop; what a list may hold, and where a config finds it."""

import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatokit.pipelines.episodes.filter import read_episode_list
from gatokit.pipelines.holdout import row_hash
from gatokit.pipelines.inputs import read_inputs
from gatokit.schemas.config_episodes import EpisodesConfig, Keep
from gatokit.schemas.episode_list import EpisodeList
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.filter import FILTER_REASONS, RULES, Candidates, apply_rules, sample_hash
from gatokit.schemas.index import RULE_REASONS

RETURNS = np.array([10.0, 8.0, 7.9, -1.0])


def candidates(expert: float = 10.0, success: list[bool] | None = None) -> Candidates:
    return Candidates("reach", RETURNS, expert, success=None if success is None else np.array(success))


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
    verdict = apply_rules(Keep.model_validate(rule), candidates(expert))
    assert verdict.kept.tolist() == kept
    assert {FILTER_REASONS[place] for place in verdict.failed[~verdict.kept]} <= {"below_threshold"}
    assert verdict.threshold == limit


def test_all_keeps_everything_and_has_no_threshold() -> None:
    verdict = apply_rules(Keep.model_validate({"all": True}), candidates())
    assert (verdict.kept.tolist(), verdict.failed.tolist(), verdict.threshold) == ([True] * 4, [-1] * 4, None)


def test_success_goes_by_the_mark_and_not_by_the_return() -> None:
    marks = [False, True, False, True]
    verdict = apply_rules(Keep.model_validate({"success": "done"}), candidates(success=marks))
    assert (verdict.kept.tolist(), verdict.threshold) == (marks, None)
    assert [FILTER_REASONS[place] for place in verdict.failed[~verdict.kept]] == ["not_success", "not_success"]


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        ([7.9, 8], [False, True, True, False]),
        ([None, 7.9], [False, False, True, True]),
        ([8.0, None], [True, True, False, False]),
        ([-1, -1], [False, False, False, True]),
    ],
)
def test_both_ends_of_a_range_are_in_it(ends: list[float | None], kept: list[bool]) -> None:
    assert apply_rules(Keep.model_validate({"return": ends}), candidates()).kept.tolist() == kept


@pytest.mark.parametrize(
    ("best", "kept"),
    [
        (1, [0]),
        (2, [0, 3]),  # of equal returns the first
        (3, [0, 3, 4]),
        (99, [0, 1, 2, 3, 4]),
        (0.1, [0]),  # rounded up
        (0.4, [0, 3]),
        (0.41, [0, 3, 4]),
    ],
)
def test_the_best(best: int | float, kept: list[int]) -> None:
    found = apply_rules(Keep.model_validate({"best": best}), Candidates("t", np.array([9.0, 1, 2, 8, 8]), 9.0))
    assert np.flatnonzero(found.kept).tolist() == kept
    assert {FILTER_REASONS[place] for place in found.failed[~found.kept]} <= {"not_best"}


def test_a_share_is_the_decimal_that_was_written() -> None:
    assert 0.07 * 100 > 7
    assert apply_rules(Keep.model_validate({"best": 0.07}), Candidates("t", np.arange(100.0), 1.0)).kept.sum() == 7


def test_the_best_and_a_sample_are_of_what_the_others_leave() -> None:
    playable = np.array([False, True, True, True, True])
    returns = np.array([9.0, 7, 5, 3, 1])
    hashes = np.array([0, 5, 1, 3, 2], np.uint64)
    keep = Keep.model_validate({"return": [None, 5], "best": 2, "sample": 1})
    found = apply_rules(keep, Candidates("t", returns, 9.0, playable, hashes=hashes))
    assert found.kept.tolist() == [False, False, True, False, False]
    reasons = [FILTER_REASONS[place] for place in found.failed[[0, 1, 3, 4]]]
    assert reasons == ["outside_range", "outside_range", "not_sampled", "not_best"]
    # An episode without a step takes nobody's place.
    alone = apply_rules(Keep.model_validate({"best": 1}), Candidates("t", returns, 9.0, playable))
    assert np.flatnonzero(alone.kept & playable).tolist() == [1]


def test_a_sample_has_about_its_share_and_never_nothing() -> None:
    hashes = np.array([sample_hash(3, f"episode {number}") for number in range(10_000)], np.uint64)
    keep = Keep.model_validate({"sample": 0.2, "seed": 3})
    found = apply_rules(keep, Candidates("t", np.zeros(10_000), 0.0, hashes=hashes)).kept
    assert abs(int(found.sum()) - 2_000) < 200  # five deviations
    few = apply_rules(keep, Candidates("t", np.zeros(3), 0.0, hashes=np.array([9, 8, 9], np.uint64) << np.uint64(60)))
    assert few.kept.tolist() == [False, True, False]
    # More rows move no other: each is decided by its own hash.
    assert (
        apply_rules(keep, Candidates("t", np.zeros(500), 0.0, hashes=hashes[:500])).kept.tolist()
        == found[:500].tolist()
    )


def test_a_sample_says_nothing_of_what_is_held_out() -> None:
    ids = [f"episode {number}" for number in range(2_000)]
    sampled = np.array([sample_hash(0, id_) < 2**63 for id_ in ids])
    apart = np.array([row_hash(0, id_) < 2**62 for id_ in ids])
    assert abs(sampled[apart].mean() - 0.5) < 0.12


rules = st.fixed_dictionaries(
    {},
    optional={
        "success": st.just("done"),
        "min_return": st.sampled_from([0, 0.5, 1]),
        "return": st.sampled_from([[-1, None], [None, 2], [0, 1]]),
        "where": st.just("steps > 0"),
        "episodes": st.just("list.txt"),
        "best": st.sampled_from([1, 3, 0.3, 0.5]),
        "sample": st.sampled_from([1, 2, 0.25, 0.9]),
    },
).filter(bool)
episodes = st.lists(
    st.tuples(
        st.sampled_from([-2.0, -1, 0, 0.5, 1, 2, 3]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.integers(0, 2**64 - 1),
    ),
    max_size=12,
)


def brute_force(rule: dict[str, Any], rows: list[tuple[Any, ...]], expert: float) -> list[str | None]:
    """The reason of each episode, one at a time, None of those kept."""
    reasons: list[str | None] = [None] * len(rows)
    limit = expert - (1 - rule.get("min_return", 0)) * abs(expert)
    low, high = rule.get("return", (None, None))
    for at, (value, success, where, listed, _, _) in enumerate(rows):
        tests = [
            ("success" in rule and not success, "not_success"),
            ("min_return" in rule and value < limit, "below_threshold"),
            ((low is not None and value < low) or (high is not None and value > high), "outside_range"),
            ("where" in rule and not where, "not_where"),
            ("episodes" in rule and not listed, "not_listed"),
        ]
        reasons[at] = next((reason for fails, reason in tests if fails), None)
    for key, reason, column, sign in (("best", "not_best", 0, -1), ("sample", "not_sampled", 5, 1)):
        if key not in rule:
            continue
        left = [at for at in range(len(rows)) if reasons[at] is None and rows[at][4]]
        left = sorted(left, key=lambda at: (sign * rows[at][column], at))
        amount = rule[key]
        count = amount if isinstance(amount, int) else math.ceil(Fraction(str(amount)) * len(left))
        chosen = set(left[:count])
        if key == "sample" and isinstance(amount, float):
            chosen = {at for at in left if rows[at][5] < amount * 2**64} | set(left[:1])
        for at in range(len(rows)):
            if reasons[at] is None and rows[at][4] and at not in chosen:
                reasons[at] = reason
    return reasons


@given(rules, episodes, st.sampled_from([-1.0, 0.0, 2.0]))
def test_all_rules_against_a_loop(rule: dict[str, Any], rows: list[tuple[Any, ...]], expert: float) -> None:
    columns = [
        np.array([row[place] for row in rows], kind) for place, kind in enumerate((float, *[bool] * 4, np.uint64))
    ]
    returns, success, where, listed, playable, hashes = columns
    found = apply_rules(
        Keep.model_validate(rule), Candidates("t", returns, expert, playable, success, where, listed, hashes)
    )
    expected = brute_force(rule, rows, expert)
    for at in np.flatnonzero(playable).tolist():
        assert (FILTER_REASONS[found.failed[at]] if found.failed[at] >= 0 else None) == expected[at]
        assert found.kept[at] == (expected[at] is None)


def test_every_rule_is_a_key_of_the_config_and_has_a_reason() -> None:
    assert set(RULES) | {"all"} <= set(Keep.model_fields)
    assert set(FILTER_REASONS) <= set(RULE_REASONS)
    assert len(set(FILTER_REASONS)) == len(RULES)


IDS = ["a#0", "a#1", "b#0"]


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
    elif path.suffix == ".csv":
        names = list(dict.fromkeys(name for line in lines for name in line))
        text = "\r\n".join([",".join(names), *(",".join(str(line.get(name, "")) for name in names) for line in lines)])
        path.write_text("\ufeff" + text + "\r\n", newline="")
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(line) for line in lines))
    else:
        path.write_text("\r\n".join(line["episode_id"] for line in lines) + "\r\n\r\n", newline="")
    return path


def listed(path: Path, dataset: str = "d") -> list[bool]:
    selection = EpisodeList(path.read_bytes(), str(path), dataset)
    found = selection.find(IDS, ["a", "a", None]).tolist()
    selection.check_found(dataset)
    return found


@pytest.mark.parametrize("suffix", [".txt", "", ".jsonl", ".csv", ".parquet"])
def test_a_list_in_every_form(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"list{suffix}", [{"episode_id": "a#1"}, {"episode_id": "b#0"}, {"episode_id": "a#1"}])
    assert listed(path) == [False, True, True]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_lines_of_other_datasets_are_skipped_and_a_task_must_be_right(tmp_path: Path, suffix: str) -> None:
    lines = [
        {"dataset": "d", "task": "a", "episode_id": "a#0", "score": 3},
        {"dataset": "other", "task": "a", "episode_id": "a#7", "score": 4},
    ]
    path = written(tmp_path / f"list{suffix}", lines)
    assert listed(path) == [True, False, False]
    path = written(tmp_path / f"list{suffix}", [{"episode_id": "a#0", "task": "a"}, {"episode_id": "b#0", "task": "b"}])
    with pytest.raises(ConfigError) as caught:
        listed(path)
    assert str(caught.value) == f"{path}: d has no episode 'b#0' of task 'b'; list episode_id as the index holds it"


def test_an_id_that_matches_nothing_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "list.txt", [{"episode_id": id_} for id_ in ("a#0", "x", "y", "z")])
    with pytest.raises(ConfigError) as caught:
        listed(path)
    said = f"{path}: d has no episode 'x', nor 2 more of the list; list episode_id as the index holds it"
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.txt", b"", "lists no episode of the dataset d; list some, or give another keep rule"),
        ("x.txt", b"a\xff", "is not UTF-8 text: 'utf-8' codec can't decode byte 0xff"),
        ("x.jsonl", b"a#0\n", "line 1 is not JSON: Expecting value"),
        ("x.jsonl", b"\n[1]\n", "line 2 is not a JSON object; write one with the key episode_id"),
        ("x.jsonl", b'{"id": "a"}', "line 1: episode_id is None; give the id as the index holds it, a string"),
        ("x.jsonl", b'{"episode_id": "a", "task": 3}', "line 1: task is 3; give a string, or leave it out"),
        (
            "x.jsonl",
            b'{"episode_id": "a"}\n{"episode_id": "a", "task": "t"}',
            "entry 2 names 'a' again with another task",
        ),
        ("x.csv", b"id,task\na,b\n", "has no column episode_id, only id, task; name the column so"),
        ("x.csv", b"", "has no column episode_id, only none; name the column so"),
        ("x.csv", b"task,episode_id\nb\n", "line 2: episode_id is None; give the id"),
        ("x.parquet", b"PAR1", "is not a Parquet file: "),
    ],
)
def test_what_is_no_list(name: str, data: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EpisodeList(data, name, "d")
    assert str(caught.value).startswith(f"{name}: {said}")


def config(tmp_path: Path, keep: str) -> Path:
    path = tmp_path / "build.yaml"
    path.write_text(f"vocabulary: v\ndatasets: [{{name: d, kind: episodes, source: s, keep: {keep}}}]\n")
    return path


def keep_of(path: Path) -> Keep:
    (dataset,) = read_inputs(path)[0].datasets
    assert isinstance(dataset, EpisodesConfig)
    return dataset.keep


def test_a_config_holds_the_digest_of_its_list_and_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    path = tmp_path / "below" / "list.txt"
    path.write_text("a#0\n")
    digest = hashlib.blake2b(b"a#0\n", digest_size=32).hexdigest()
    for stated in ("below/list.txt", path):
        keep = keep_of(config(tmp_path, f"{{episodes: {stated}}}"))
        assert (keep.episodes, keep.digest) == ("below/list.txt", digest)
    keep = keep_of(config(tmp_path, f"{{episodes: below/list.txt, digest: {digest}}}"))
    assert keep.digest == digest
    path.write_text("a#1\n")
    with pytest.raises(ConfigError, match=r"^datasets\[0\]\.keep\.digest: .* has the digest .* another than"):
        keep_of(config(tmp_path, f"{{episodes: below/list.txt, digest: {digest}}}"))
    with pytest.raises(ConfigError, match=r"list\.txt: the list changed since the config was read"):
        read_episode_list(keep, str(path), "d")


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^datasets\[0\]\.keep\.episodes: .*none\.txt does not exist; give a list"):
        keep_of(config(tmp_path, "{episodes: none.txt}"))
