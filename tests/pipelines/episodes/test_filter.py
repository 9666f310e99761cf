"""Verdicts of a dataset's rows, what is held out, and the error budget."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.episodes.filter import Rows, filter_rows
from gatokit.pipelines.holdout import held_out, row_hash
from gatokit.pipelines.losses import Losses
from gatokit.pipelines.stages import Stream, Task
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.errors import ConfigError, DataError

NAN = float("nan")


def rows(*lines: tuple[Any, ...], success: list[bool] | None = None, order: list[float] | None = None) -> Rows:
    """Rows of (task, agent, steps, return, reason), names numbered as they come."""
    tasks = list(dict.fromkeys(line[0] for line in lines if line[0] is not None))
    agents = list(dict.fromkeys(line[1] for line in lines if line[1] is not None))
    return Rows(
        task=np.array([-1 if line[0] is None else tasks.index(line[0]) for line in lines]),
        agent=np.array([-1 if line[1] is None else agents.index(line[1]) for line in lines]),
        order=np.full(len(lines), NAN) if order is None else np.array(order),
        steps=np.array([line[2] for line in lines]),
        returns=np.array([line[3] for line in lines]),
        success=None if success is None else np.array(success),
        reason=np.array([line[4] for line in lines], object),
        task_names=tasks,
        agent_names=agents,
    )


def keep(**rule: Any) -> Keep:
    return Keep.model_validate(rule)


def judged(given_rows: Rows, rule: Keep) -> tuple[list[Task], list[bool], list[str | None]]:
    tasks, kept, reason = filter_rows(given_rows, rule, "demo")
    return tasks, kept.tolist(), reason.tolist()


def test_tasks_and_agents_apart_and_sorted_by_name() -> None:
    given_rows = rows(
        ("push", "z", 5, 10.0, None),
        ("lift", "z", 5, -1.0, None),
        ("push", "b", 5, 7.0, None),
        ("push", "z", 5, 8.0, None),
        ("lift", "z", 5, -1.3, None),
    )
    tasks, kept, reason = judged(given_rows, keep(min_return=0.8))
    assert tasks == [
        Task("lift", -1.0, -1.2, (Stream("z", 2, 1, -1.0),)),
        Task("push", 10.0, 8.0, (Stream("b", 1, 1, 7.0), Stream("z", 2, 1, 10.0))),
    ]
    assert kept == [True, True, False, True, False]
    assert reason == [None, None, "below_threshold", None, "below_threshold"]


def test_rows_that_are_bad_or_too_short() -> None:
    given_rows = rows(
        ("a", "", 5, 10.0, None),
        ("a", "", 0, NAN, "corrupt_record"),
        (None, None, 0, NAN, "corrupt_length"),
        ("a", "", 0, 0.0, None),
        ("a", "", 5, 100.0, "corrupt_record"),  # its rewards parse, another field does not
        ("a", "", 5, 1.0, "missing_field"),
    )
    tasks, kept, reason = judged(given_rows, keep(min_return=0.1))
    assert tasks == [Task("a", 100.0, 10.0, (Stream("", 4, 1, 100.0),))]
    assert kept == [True, False, False, False, False, False]
    assert reason == [None, "corrupt_record", "corrupt_length", "too_short", "corrupt_record", "missing_field"]


def test_too_short_is_the_reason_whatever_the_rule_says() -> None:
    given_rows = rows(("a", "", 3, 2.0, None), ("a", "", 0, 0.0, None), success=[True, True])
    for rule in (keep(all=True), keep(min_return=0.5), keep(success="done")):
        assert judged(given_rows, rule)[1:] == ([True, False], [None, "too_short"])


def test_bad_rows_do_not_widen_the_window() -> None:
    sound = [("a", "", 1, float(value), None) for value in [9, 0] * 9 + [4]]
    assert len(sound) == 19
    bad = [("a", "", 0, NAN, "corrupt_record")] * 30
    assert judged(rows(*sound, *bad), keep(min_return=0.8))[0][0].streams == (Stream("", 19, 1, 9.0),)
    one_more = [*sound, ("a", "", 1, 5.0, None)]
    # Twenty sound ones make pairs: the best is the last, (4 + 5) / 2 = 4.5, as are all others (9 + 0) / 2.
    assert judged(rows(*one_more, *bad), keep(min_return=0.8))[0][0].streams == (Stream("", 20, 2, 4.5),)


def test_windows_follow_the_collection_order_and_not_the_position() -> None:
    returns = [9.0, 0.0] * 10
    lines = [("a", "", 1, value, None) for value in returns]
    in_place = judged(rows(*lines), keep(min_return=0.8))[0][0].expert_return
    # The order puts all nines first.
    order = [number // 2 + (0 if value else 100) for number, value in enumerate(returns)]
    ordered = judged(rows(*lines, order=[float(value) for value in order]), keep(min_return=0.8))[0][0].expert_return
    assert (in_place, ordered) == (4.5, 9.0)


def test_a_shuffled_source_with_an_order_gives_the_same_expert_return() -> None:
    generator = np.random.default_rng(0)
    returns = generator.normal(size=200)
    shuffled = generator.permutation(200)
    plain = rows(*[("a", "", 1, value, None) for value in returns])
    mixed = rows(*[("a", "", 1, returns[number], None) for number in shuffled], order=shuffled.astype(float).tolist())
    expected = max(np.mean(returns[begin : begin + 20]) for begin in range(181))
    for given_rows in (plain, mixed):
        assert judged(given_rows, keep(all=True))[0][0].expert_return == pytest.approx(expected, rel=1e-12)


def test_ties_in_the_order_go_by_position() -> None:
    lines = [("a", "", 1, 1.0 if number in (3, 4) else 0.0, None) for number in range(20)]
    tied = judged(rows(*lines, order=[7.0] * 20), keep(all=True))[0][0].expert_return
    apart = judged(rows(*lines, order=[float(number % 2) for number in range(20)]), keep(all=True))[0][0].expert_return
    assert (tied, apart) == (1.0, 0.5)


@pytest.mark.parametrize(("streams", "expert"), [("agent", 4.0), ("task", 2.0)])
def test_streams_of_agents_or_one_of_the_task(streams: str, expert: float) -> None:
    # Two agents in turns: their 20 episodes each make pairs, the task's 40 make windows of four.
    lines = [("a", "xy"[number % 2], 1, 4.0 if number in (10, 12) else 0.0, None) for number in range(40)]
    tasks, _, _ = judged(rows(*lines), keep(min_return=0.0, streams=streams))
    assert tasks == [Task("a", expert, 0.0, (Stream("x", 20, 2, 4.0), Stream("y", 20, 2, 0.0)))]


def test_rules_by_mark() -> None:
    lines = [("a", "", 1, value, None) for value in (1.0, 2.0, 3.0)]
    tasks, kept, reason = judged(rows(*lines, success=[False, True, False]), keep(success="done"))
    assert tasks == [Task("a", 3.0, None, (Stream("", 3, 1, 3.0),))]
    assert (kept, reason) == ([False, True, False], ["not_success", None, "not_success"])


def test_random_returns_of_each_task() -> None:
    lines = [("a", "", 1, 10.0, None), ("a", "", 1, 7.0, None), ("b", "", 1, 10.0, None), ("b", "", 1, 7.0, None)]
    rule = keep(min_return=0.5, random_return={"a": 6.0, "b": 2.0})
    assert judged(rows(*lines), rule)[1] == [True, False, True, True]
    said = r"^demo: keep\.random_return names no return for task 'b'; add it$"
    with pytest.raises(ConfigError, match=said):
        filter_rows(rows(*lines), keep(min_return=0.5, random_return={"a": 6.0}), "demo")


def test_a_task_without_a_sound_episode_is_named() -> None:
    given_rows = rows(
        ("good", "", 1, 1.0, None),
        ("bad", "", 0, NAN, "corrupt_record"),
        ("bad", "", 0, NAN, "not_finite"),
        ("bad", "", 0, NAN, "not_finite"),
    )
    said = r"^demo: task 'bad' has no sound episode among 3: 2 not_finite, 1 corrupt_record$"
    with pytest.raises(DataError, match=said):
        filter_rows(given_rows, keep(all=True), "demo")


@pytest.mark.parametrize(
    ("given_rows", "counts"),
    [
        (rows(), "no episode"),
        (rows(*[(None, None, 0, NAN, "corrupt_record")] * 2), "2 episodes, of which none is sound: 2 corrupt_record"),
    ],
)
def test_a_source_without_any_task_is_an_error(given_rows: Rows, counts: str) -> None:
    with pytest.raises(DataError) as caught:
        filter_rows(given_rows, keep(all=True), "demo")
    assert str(caught.value) == f"demo: the source holds {counts}. Record it again, or leave it out of source"


def test_a_task_that_keeps_nothing_is_named() -> None:
    given_rows = rows(
        ("good", "", 1, 1.0, None), ("bad", "", 0, 0.0, None), ("bad", "", 0, -0.5, None), ("bad", "", 1, -2.0, None)
    )
    with pytest.raises(DataError) as caught:
        filter_rows(given_rows, keep(min_return=1), "demo")
    assert str(caught.value) == (
        "demo: task 'bad' keeps none of its 3 episodes (2 too_short, 1 below_threshold; expert return 0, threshold 0). "
        "Lower keep.min_return, choose another keep rule, or leave the task out of source"
    )


def test_a_task_without_a_success_is_named() -> None:
    with pytest.raises(DataError, match=r"^demo: task 'a' keeps none of its 1 episodes \(1 not_success; expert "):
        filter_rows(rows(("a", "", 1, 1.0, None), success=[False]), keep(success="done"), "demo")


def ids(task: int, count: int) -> list[str]:
    return [f"task{task}/episodes-{number // 7}.tfrecord#{number % 7}" for number in range(count)]


def hashes(names: list[str], seed: int) -> np.ndarray:
    return np.array([row_hash(seed, name) for name in names], np.uint64)


def apart_of(counts: list[int], share: float, seed: int = 0) -> list[list[bool]]:
    """What is held out of tasks with these numbers of kept episodes."""
    names = [name for task, count in enumerate(counts) for name in ids(task, count)]
    task = np.repeat(np.arange(len(counts)), counts)
    apart = held_out(hashes(names, seed), np.ones(len(names), bool), task, share)
    return [apart[task == number].tolist() for number in range(len(counts))]


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.integers(0, 9),
)
def test_at_least_one_and_never_all_of_a_task(counts: list[int], share: float, seed: int) -> None:
    for count, apart in zip(counts, apart_of(counts, share, seed), strict=True):
        if count >= 2:
            assert 1 <= sum(apart) < count
        else:
            assert sum(apart) == 0


def test_a_share_of_zero_holds_nothing_out() -> None:
    assert not any(apart_of([50], 0.0)[0])


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_about_what_was_asked(share: float) -> None:
    [apart] = apart_of([20_000], share)
    # Five standard deviations of a binomial count.
    assert abs(sum(apart) - 20_000 * share) < 5 * (20_000 * share * (1 - share)) ** 0.5


def test_the_seed_draws_others() -> None:
    first, second = apart_of([500], 0.2, 0)[0], apart_of([500], 0.2, 1)[0]
    assert first == apart_of([500], 0.2, 0)[0]
    assert first != second


def test_which_ones_is_written_in_stone() -> None:
    assert [number for number, held in enumerate(apart_of([60], 0.1)[0]) if held] == [0, 9, 21, 34, 42, 46, 48, 51]


@settings(max_examples=40)
@given(st.integers(2, 60), st.integers(0, 60), st.floats(0.01, 0.9))
def test_episodes_of_other_tasks_move_none(count: int, others: int, share: float) -> None:
    assert apart_of([count], share)[0] == apart_of([count, others], share)[0]


def test_new_episodes_of_a_task_move_none_of_a_large_one() -> None:
    before, after = apart_of([400], 0.1)[0], apart_of([500], 0.1)[0]
    assert after[:400] == before
    assert any(after[400:])


def test_dropped_episodes_are_never_held_out_and_decide_nothing() -> None:
    names, task = ids(0, 100), np.zeros(100, int)
    kept = np.arange(100) % 3 == 0
    apart = held_out(hashes(names, 0), kept, task, 0.3)
    assert not apart[~kept].any()
    alone = held_out(hashes(names, 0)[kept], kept[kept], task[kept], 0.3)
    assert apart[kept].tolist() == alone.tolist()
    assert 1 <= apart.sum() < kept.sum()


def test_rows_of_one_hash_stay_together() -> None:
    own = np.array([5, 1 << 63, 5, 9, 1 << 63, 9], np.uint64)
    everything, one = np.ones(6, bool), np.zeros(6, int)
    assert np.flatnonzero(held_out(own, everything, one, 1e-30)).tolist() == [0, 2]
    assert np.flatnonzero(held_out(own, everything, one, 0.6)).tolist() == [0, 2, 3, 5]
    alike = np.full(3, 7, np.uint64)
    assert not held_out(alike, everything[:3], one[:3], 0.5).any()


def allowing(**budgets: float) -> BuildConfig:
    return BuildConfig.model_validate({**budgets, "datasets": [{"name": "demo", "kind": "text", "source": "*.txt"}]})


def check(bad: dict[str, int], total: int, share: float) -> None:
    losses = Losses()
    columns = {"reason": list(bad), "lost": list(bad.values()), "detail": pa.nulls(len(bad))}
    losses.add(pa.table(columns), lambda rows: [f"{reason}-place" for reason in rows["reason"].to_pylist()])
    losses.rows = total
    losses.check_budget(allowing(max_bad_fraction=share), "demo")


@pytest.mark.parametrize(
    ("bad", "total", "share"),
    [
        (0, 10, 0.0),
        (10, 12, 0.01),
        (11, 1100, 0.01),
        (50, 100, 0.5),
    ],
)
def test_within_the_budget(bad: int, total: int, share: float) -> None:
    check({"corrupt_record": bad, "below_threshold": 10**6, "too_short": 5, "not_success": 5}, total, share)
    with pytest.raises(DataError, match=f"^demo: {bad + 1} of {total} episodes are bad"):
        check({"corrupt_record": bad + 1}, total, share)


def test_the_summary_counts_every_reason_and_names_its_first() -> None:
    with pytest.raises(DataError) as caught:
        check({"not_finite": 3, "corrupt_length": 400, "below_threshold": 7}, 1000, 0.02)
    assert str(caught.value) == (
        "demo: 403 of 1000 episodes are bad, more than the 20 that max_bad_fraction 0.02 allows: "
        "400 corrupt_length (first corrupt_length-place); 3 not_finite (first not_finite-place). "
        "Mend the source or raise max_bad_fraction"
    )
