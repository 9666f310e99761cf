"""Builds by each rule, whole: what is kept and why, the same from a preview, with two workers, and after an update."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gatokit.inspection import open_directory, preview
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines import estimate as module
from gatokit.pipelines.estimate import estimate
from gatokit.pipelines.run import build, scan
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.filter import sample_hash

STEPS = {
    "observation": {"state": tfds.features.Tensor(shape=(2,), dtype=np.float32)},
    "action": tfds.features.Tensor(shape=(1,), dtype=np.float32),
    "reward": np.float32,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_terminal": np.bool_,
}
METADATA = {"agent": tfds.features.Text(), "index": np.int64, "done": np.bool_}
NAN = float("nan")
READS = "d: reads split train (11)"
# agent, steps with an action, return, success; of the second task the state of the best is NaN.
TASKS: dict[str, list[tuple[str, int, float, bool]]] = {
    "push": [
        ("expert", 2, 8.0, True),
        ("expert", 4, 4.0, True),
        ("noisy", 2, 8.0, False),
        ("noisy", 1, -2.0, False),
        ("expert", 3, NAN, True),
        ("noisy", 0, 0.0, True),
        ("expert", 2, 6.0, False),
    ],
    "reach": [
        ("expert", 1, 3.0, True),
        ("noisy", 5, 9.0, False),
        ("noisy", 2, 1.0, True),
        ("expert", 2, 2.0, False),
    ],
}


def episode(number: int, row: tuple[str, int, float, bool], damaged: bool) -> dict[str, Any]:
    agent, steps, total, done = row
    written = [
        {
            "observation": {"state": np.full(2, NAN if damaged else 0.5, np.float32)},
            "action": np.zeros(1, np.float32),
            "reward": np.float32(total if step == 0 else 0),
            "is_first": step == 0,
            "is_last": step == steps,
            "is_terminal": False,
        }
        for step in range(steps + 1)
    ]
    return {"steps": written, "agent": agent, "index": 10 - number, "done": done}


def short(id_: str) -> str:
    """``push3`` of the third episode of a task."""
    task, _, place = id_.partition("/")
    file, _, position = place.partition("#")
    return f"{task}{2 * int(file.rpartition('-')[2]) + int(position)}"


def long(name: str) -> str:
    """The id of ``push3``, of files of two episodes."""
    number = int(name[-1])
    return f"{name[:-1]}/recorded-train.tfrecord-{number // 2:05d}#{number % 2}"


@pytest.fixture(scope="module")
def configured(
    tmp_path_factory: pytest.TempPathFactory, write_tfds: Callable[..., Path], exact_vocabulary: Path
) -> Callable[[dict[str, Any]], Path]:
    """``configured(keep)`` writes a config beside the recordings, one for each rule."""
    folder = tmp_path_factory.mktemp("rules")
    for task, rows in TASKS.items():
        episodes = [episode(number, row, (task, number) == ("reach", 1)) for number, row in enumerate(rows)]
        write_tfds(folder / "data" / task, STEPS, episodes, metadata=METADATA)

    def write(keep: dict[str, Any]) -> Path:
        dataset = {
            "name": "d",
            "kind": "episodes",
            "source": "data/*",
            "agent": {"metadata": "agent"},
            "order": {"metadata": "index"},
            "last_step": "padding",
            "keep": keep,
        }
        text = json.dumps({"vocabulary": str(exact_vocabulary), "shard_bytes": 1024, "datasets": [dataset]})
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
        path.write_text(text)
        return path

    return write


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("build.log.jsonl", ".lock") and ".scan" not in path.parts
    }


def kept(directory: Path) -> list[str]:
    return [short(row.episode_id) for row in open_directory(directory).datasets["d"].episodes(kept=True)]


RULES: list[tuple[dict[str, Any], list[str]]] = [
    ({"all": True}, ["push0", "push1", "push2", "push3", "push6", "reach0", "reach2", "reach3"]),
    ({"return": [1, 6]}, ["push1", "push6", "reach0", "reach2", "reach3"]),
    ({"return": [None, 2.0]}, ["push3", "reach2", "reach3"]),
    ({"best": 2}, ["push0", "push2", "reach0"]),  # the best of reach is rejected, and nobody takes its place
    ({"best": 0.5}, ["push0", "push2", "push6", "reach0"]),
    ({"success": "done"}, ["push0", "push1", "reach0", "reach2"]),
    ({"success": "done", "best": 1}, ["push0", "reach0"]),
    ({"where": "steps < 4 and agent == 'expert'"}, ["push0", "push6", "reach0", "reach3"]),
    ({"where": "task == 'push' and return > 0.5 * expert_return"}, ["push0", "push2", "push6"]),
    (
        {"where": f"episode_id != {long('push0')!r} and source_position == 0 and order > 4"},
        ["push2", "reach0", "reach2"],
    ),
    ({"where": "source_file in ('reach/recorded-train.tfrecord-00001',)", "best": 1}, ["reach3"]),
    ({"where": "return > 0", "return": [None, 5], "min_return": 0.2}, ["push1", "reach0", "reach3"]),
]


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory, configured: Callable[[dict[str, Any]], Path]) -> Path:
    """A scan that knows the marks of success."""
    out = tmp_path_factory.mktemp("marked") / "out"
    scan(configured({"success": "done"}), out)
    return out


def chosen(directory: Path) -> Counter[str | None]:
    """By task the episodes that the rule chose, of which tokenizing may have rejected some."""
    rows = open_directory(directory).datasets["d"].episodes()
    return Counter(
        row.task for row in rows if row.kept or (row.reason == "not_finite" and row.episode_return is not None)
    )


def previewed(directory: Path, keep: dict[str, Any]) -> Counter[str | None]:
    rows = preview(open_directory(directory).datasets["d"], Keep.model_validate(keep))
    return Counter({row.task: row.kept_at for row in rows if row.kept_at})


@pytest.mark.parametrize(("keep", "expected"), RULES, ids=[json.dumps(keep) for keep, _ in RULES])
def test_a_build_by_a_rule(tmp_path, configured, marked, keep, expected):
    build(configured(keep), tmp_path / "out")
    assert kept(tmp_path / "out") == expected
    assert verify(tmp_path / "out") == []
    assert previewed(marked, keep) == chosen(tmp_path / "out")
    for row in preview(open_directory(tmp_path / "out").datasets["d"], Keep.model_validate(keep)):
        assert (row.added, row.removed, row.threshold_at) == (0, 0, row.threshold)


@pytest.mark.parametrize("keep", [{"sample": 0.5, "seed": 2}, {"sample": 2, "best": 3}, {"min_return": 0.5}])
def test_a_preview_keeps_what_a_scan_by_the_rule_keeps(tmp_path, configured, marked, keep):
    scan(configured(keep), tmp_path / "out")
    assert verify(tmp_path / "out") == []
    assert previewed(marked, keep) == chosen(tmp_path / "out")


def test_every_dropped_row_has_its_reason(tmp_path, configured):
    build(configured({"success": "done", "return": [None, 5], "best": 1}), tmp_path / "out")
    rows = open_directory(tmp_path / "out").datasets["d"].episodes()
    assert {short(row.episode_id): row.reason for row in rows} == {
        "push0": "outside_range",
        "push1": None,
        "push2": "not_success",
        "push3": "not_success",
        "push4": "not_finite",
        "push5": "too_short",
        "push6": "not_success",
        "reach0": None,
        "reach1": "not_success",
        "reach2": "not_best",
        "reach3": "not_success",
    }
    assert verify(tmp_path / "out") == []


def test_a_list(tmp_path, configured):
    path = configured({"episodes": "list.jsonl"})
    listed = path.parent / "list.jsonl"
    lines = [{"episode_id": long(name), "task": name[:-1]} for name in ("push1", "push4", "reach2")]
    listed.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    build(path, out)
    assert kept(out) == ["push1", "reach2"]
    reasons = {short(row.episode_id): row.reason for row in open_directory(out).datasets["d"].episodes(kept=False)}
    assert {name for name, reason in reasons.items() if reason == "not_listed"} == {
        *("push0", "push2", "push3", "push6", "reach0", "reach1", "reach3")
    }
    found = {row.task: row.kept_at for row in preview(open_directory(out).datasets["d"], keep_of_list(listed))}
    assert found == {"push": 1, "reach": 1}

    # The list is a part of the config, and what it drops a part of the shards.
    listed.write_text(json.dumps(lines[0]))
    with pytest.raises(ConfigError, match="holds a finished build of another config; --update builds what changed"):
        build(path, out)
    result = build(path, out, update=True)
    assert result.notices[-1] == "d: keep leaves no episode of 1 of 2 tasks: reach"
    assert kept(out) == ["push1"]
    assert verify(out) == []
    build(path, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")

    listed.write_text(json.dumps({"episode_id": "push/x#0"}))
    with pytest.raises(ConfigError, match=r"list\.jsonl: d has no episode 'push/x#0'; list episode_id as the index"):
        scan(path, tmp_path / "scanned")
    listed.write_text("\n".join(json.dumps({"episode_id": long(name)}) for name in ("push0", "push6")))
    scan(path, tmp_path / "limited", limit=2)  # which does not look at all that is listed
    assert kept(tmp_path / "limited") == ["push0"]


def keep_of_list(path: Path) -> Keep:
    return Keep.model_validate({"episodes": str(path)})


def test_two_processes_give_the_bytes_of_one(tmp_path, configured):
    path = configured({"return": [-3, 8], "where": "steps > 0", "best": 0.8, "sample": 0.7, "seed": 5})
    build(path, tmp_path / "one")
    build(path, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert verify(tmp_path / "two") == []


def test_a_sample_takes_the_lowest_hashes(tmp_path, configured):
    scan(configured({"where": "return >= 4 or task == 'reach'", "sample": 1, "seed": 7}), tmp_path / "out")
    left = {"push": ["push0", "push1", "push2", "push6"], "reach": ["reach0", "reach1", "reach2", "reach3"]}
    assert kept(tmp_path / "out") == [min(of, key=lambda name: sample_hash(7, long(name))) for of in left.values()]


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ({"where": "steps > 100"}, r"^d: keep leaves none of 11 episodes \(9 not_where, 1 not_finite, 1 too_short\)"),
        (
            {"return": [7, None], "success": "done"},
            r"^d: task 'reach' keeps none of its 4 episodes \(2 outside_range, 2 not_success;",
        ),
    ],
)
def test_a_rule_that_keeps_nothing(tmp_path, configured, keep, said):
    with pytest.raises(DataError, match=said):
        scan(configured(keep), tmp_path / "out")


def test_a_task_without_a_success_is_left_out(tmp_path, configured):
    result = scan(configured({"success": {"last_reward": 3}}), tmp_path / "out")
    assert kept(tmp_path / "out") == ["reach0"]
    assert "d: keep leaves no episode of 1 of 2 tasks: push" in result.notices


def test_what_an_index_cannot_answer(configured, marked):
    dataset = open_directory(marked).datasets["d"]
    for rule, said in [
        (
            {"success": "agent"},
            "success: the index of d does not hold the mark 'agent'; write keep: {success: agent} into the config, run "
            "gatokit scan, and inspect what that writes",
        ),
        (
            {"min_return": 1, "streams": "task"},
            "streams: the expert returns of d are those of streams: agent, and the rule wants task; scan with it",
        ),
        ({"min_return": 1, "random_return": {"push": 0}}, "d: random_return names no return for task 'reach'; add it"),
        ({"episodes": "/none"}, "episodes: cannot read /none: No such file or directory; give a list of episode ids"),
    ]:
        with pytest.raises(ConfigError) as caught:
            preview(dataset, Keep.model_validate(rule))
        assert str(caught.value) == said


def test_a_part_of_a_source_may_lack_what_is_listed_and_says_too_much_of_numbers(configured, monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 100)
    monkeypatch.setattr(module, "_FIRST_BYTES", 100)
    path = configured({"episodes": "plan.txt", "best": 2})
    (path.parent / "plan.txt").write_text(f"{long('push0')}\n{long('reach3')}\n")
    found = estimate(path, sample_seconds=0)
    assert found.datasets[0].scanned_share < 1
    assert found.notices[:2] == (READS, "d: keeps a number of episodes a task, of which a sample says too much")
    whole = estimate(path, sample_seconds=300)
    assert (whole.datasets[0].kept, whole.notices) == (2, (READS,))
