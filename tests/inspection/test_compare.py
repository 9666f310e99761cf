"""What changed between two small builds, against a comparison of all rows; and between two rules for one."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from gatokit.inspection import open_directory, preview
from gatokit.inspection.compare import MOST_EXAMPLES, Changes, FieldChange, RowChanges, compare, compare_rules
from gatokit.pipelines.run import build, scan
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.errors import ConfigError

CONFIG = """
vocabulary: {vocabulary}
chunk_tokens: 64
shard_bytes: 150000
holdout: {holdout}
datasets:
  - name: arm
    kind: episodes
    last_step: padding
    source: arm/*
    agent: {{metadata: agent_id}}
    order: {{metadata: index}}
    keep: {keep}
  - name: notes
    kind: text
    source: notes/*.jsonl
"""
OLD = """
  - {{name: old, kind: text, source: notes/*.jsonl, weight: 3}}
"""
NEW = """
  - {{name: new, kind: episodes, last_step: padding, source: arm/push, keep: {{best: 2}}}}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory, small, vocabulary) -> tuple[Path, Path]:
    """A build, and one of another rule, other files and other datasets."""
    root = tmp_path_factory.mktemp("pair")
    shutil.copytree(small.built.parent / "data" / "arm", root / "arm")
    (root / "notes").mkdir()
    for file in "abc":
        lines = [json.dumps({"text": f"note {number} of {file} " * 20}) for number in range(12)]
        (root / "notes" / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    config = root / "build.yaml"
    config.write_text((CONFIG + OLD).format(vocabulary=vocabulary, holdout=0.2, keep="{min_return: 0.8}"))
    build(config, root / "left")
    (root / "notes" / "b.jsonl").unlink()
    lines = (root / "notes" / "c.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"text": "another note"})
    (root / "notes" / "c.jsonl").write_text("\n".join([*lines, json.dumps({"text": "one more"})]) + "\n")
    shutil.copytree(root / "arm" / "reach", root / "arm" / "lift")
    config.write_text((CONFIG + NEW).format(vocabulary=vocabulary, holdout=0.4, keep="{best: 0.6}"))
    build(config, root / "right")
    scan(config, root / "scanned")
    return root / "left", root / "right"


def brute_force(left: Path, right: Path, name: str) -> dict[str, RowChanges]:
    """Every row of both sides by its id."""
    sides = []
    for path in (left, right):
        directory = open_directory(path)
        rows = directory.datasets[name].rows() if name in directory.datasets else ()
        sides.append({row.episode_id: row for row in rows})
    has_tokens = all(row.tokens is not None for side in sides for row in side.values()) and all(sides)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    ids: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"gained": [], "lost": []})
    for at, (what, missing) in enumerate((("lost", "gone"), ("gained", "new"))):
        own, other = sides[at], sides[1 - at]
        for id_, row in own.items():
            if row.kept and not (id_ in other and other[id_].kept):
                counts[row.task][what] += 1
                counts[row.task][missing] += id_ not in other
                ids[row.task][what].append(id_)
            elif row.kept and at == 1:
                before = other[id_]
                said = [(item.steps, item.episode_return, item.tokens if has_tokens else 0) for item in (row, before)]
                counts[row.task]["changed"] += said[0] != said[1]
                counts[row.task]["moved"] += row.split != before.split
    return {
        task: RowChanges(
            **count,
            gained_ids=tuple(ids[task]["gained"][:MOST_EXAMPLES]),
            lost_ids=tuple(ids[task]["lost"][:MOST_EXAMPLES]),
        )
        for task, count in counts.items()
    }


def test_rows_against_brute_force(pair):
    left, right = pair
    for one, other in ((left, right), (right, left), (left, right.parent / "scanned")):
        for most_rows in (1 << 22, 30, 7):
            changes = compare(open_directory(one), open_directory(other), most_rows=most_rows)
            assert {item.name for item in changes.datasets} == {"arm", "notes", "old", "new"}
            for item in changes.datasets:
                expected = {task: moves for task, moves in brute_force(one, other, item.name).items() if moves}
                found = {task.task: task.moves for task in changes.tasks if task.dataset == item.name and task.moves}
                assert found == expected
                assert item.moves.gained == sum(moves.gained for moves in expected.values())
                assert len(item.moves.lost_ids) == min(MOST_EXAMPLES, item.moves.lost)


def test_the_awkward_cases_are_among_them(pair):
    changes = compare(*map(open_directory, pair))
    moves = {item.name: item.moves for item in changes.datasets}
    assert moves["notes"].gone == 12
    assert moves["notes"].new == 1
    assert moves["notes"].changed == 1
    assert moves["notes"].moved > 0
    assert moves["arm"].new > 0
    assert moves["arm"].gained > moves["arm"].new
    assert (moves["old"].lost, moves["old"].gone) == (36, 36)
    assert moves["new"].gained == moves["new"].new > 0
    lift = next(task for task in changes.tasks if task.task == "lift")
    assert (lift.expert_return[0], lift.threshold, lift.kept[0]) == (None, (None, None), 0)
    sides = {item.name: (item.left is None, item.right is None, item.same_shards) for item in changes.datasets}
    assert sides["old"] == (False, True, 0)
    assert sides["new"] == (True, False, 0)


def test_the_config_field_by_field(pair):
    changes = compare(*map(open_directory, pair), names=["arm", "new"])
    assert changes.config[:3] == [
        FieldChange("holdout", 0.2, 0.4),
        FieldChange("arm.keep.min_return", 0.8, None),
        FieldChange("arm.keep.best", None, 0.6),
    ]
    assert {(change.field, change.left) for change in changes.config[3:]} == {
        *(
            (f"new.{name}", None)
            for name in ("name", "kind", "source", "task.from", "merge", "last_step", "fields", "weight")
        ),
        *((f"new.{name}", None) for name in ("keep.streams", "keep.best", "images.quality")),
    }
    manifests = [open_directory(path).manifest for path in pair]
    assert FieldChange("manifest", manifests[0].digest, manifests[1].digest) in changes.made_with
    assert {item.field.split("/")[0].split(":")[0] for item in changes.made_with} == {"data", "manifest", "arm", "new"}
    assert [item.name for item in changes.datasets] == ["arm", "new"]


def test_nothing_changed(pair, tmp_path):
    left, _ = pair
    shutil.copytree(left, tmp_path / "copy")
    changes = compare(open_directory(left), open_directory(tmp_path / "copy"))
    assert not changes
    assert (changes.config, changes.made_with, changes.tasks) == ([], [], [])
    assert [item.same_shards for item in changes.datasets] == [item.left.shards for item in changes.datasets]


@pytest.mark.parametrize("left", [None, 0.2, Keep.model_validate({"where": "steps > 8"})])
@pytest.mark.parametrize("right", [0.9, Keep.model_validate({"best": 1})])
def test_two_rules(small, left, right):
    dataset = open_directory(small.scanned).datasets["arm"]
    changes = compare_rules([dataset], left, right)
    after = {row.task: row for row in preview(dataset, right)}
    before = after if left is None else {row.task: row for row in preview(dataset, left)}
    was = {task: row.kept if left is None else row.kept_at for task, row in before.items()}
    limits = {
        task: (row.threshold if left is None else row.threshold_at, after[task].threshold_at)
        for task, row in before.items()
    }
    assert {task.task: (task.kept, task.threshold) for task in changes.tasks} == {
        task: ((was[task], row.kept_at), limits[task])
        for task, row in after.items()
        if was[task] != row.kept_at or limits[task][0] != limits[task][1]
    }
    for task in changes.tasks:
        assert task.kept[1] - task.kept[0] == task.moves.gained - task.moves.lost
        assert len(task.moves.lost_ids) == min(MOST_EXAMPLES, task.moves.lost)
        if left is None:
            assert (task.moves.gained, task.moves.lost) == (after[task.task].added, after[task.task].removed)


def test_a_rule_for_documents(pair):
    with pytest.raises(ConfigError, match="notes holds documents, which have no threshold"):
        compare_rules([open_directory(pair[0]).datasets["notes"]], None, 0.5)


def test_no_changes_are_false():
    assert not Changes()
