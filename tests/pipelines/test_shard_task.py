"""An order's fingerprint changes with what its shard's bytes depend on, and with nothing else."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gatokit.pipelines import planning
from gatokit.pipelines.episodes.envlogger import EnvLoggerFile
from gatokit.pipelines.episodes.reader import EpisodeFile, SourceFeatures, SourceField
from gatokit.pipelines.episodes.rlds import RldsFile
from gatokit.pipelines.episodes.tokenize import EpisodeShardHeader
from gatokit.pipelines.planning import ShardTask
from gatokit.pipelines.stages import TASK_ROWS, ShardSettings
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, digest

FEATURES = SourceFeatures(steps=(SourceField(path="action", dtype="float32", shape=(4,)),), metadata=())
OTHER = SourceFeatures(steps=(SourceField(path="action", dtype="float64", shape=(4,)),), metadata=())
SPEC = EpisodeSpec(fields=(FieldSpec(path="action", kind="continuous", dtype="float32", range=((-1, 1),)),))
WIDER = EpisodeSpec(fields=(FieldSpec(path="action", kind="continuous", dtype="float32", range=((-2, 2),)),))
SETTINGS = {"chunk_tokens": 4096, "discrete_offset": 0, "vocabulary_digest": "v"}


def file(number: int, **changes: Any) -> EpisodeFile:
    fields = {"path": f"/mnt/data/f{number}", "name": f"reach/f{number}", "size": 100 + number, "episodes": 2}
    return RldsFile.model_validate({"format": "tfrecord"} | fields | changes)


def row(number: int, **changes: Any) -> dict[str, Any]:
    columns = {
        "episode_id": f"reach/f{number // 2}#{number % 2}",
        "task": "reach",
        "agent": "",
        "spec": SPEC.id,
        "order": None,
        "split": "train",
        "steps": 5,
        "return": 1.5,
        "kept": True,
        "reason": None,
        "detail": None,
        "lost": 1,
        "source_file": f"reach/f{number // 2}",
        "source_position": number % 2,
        "file": number // 2,
        "offset": 50 * (number % 2),
        "length": 50,
        "crc": 1000 + number,
    }
    assert changes.keys() <= columns.keys()
    return columns | changes


def order(
    changes: dict[str, Any] | None = None,
    files: list[tuple[EpisodeFile, SourceFeatures]] | None = None,
    spec: EpisodeSpec = SPEC,
    dataset: str = "demo",
    **settings: Any,
) -> ShardTask:
    """Four rows of two files; ``changes`` are those of row 2."""
    files = files or [(file(0), FEATURES), (file(1), FEATURES)]
    rows = [row(0), row(1), row(2, **(changes or {})), row(3)]
    header = EpisodeShardHeader.of(dataset, ShardSettings.model_validate(SETTINGS | settings), {spec.id: spec}, files)
    return ShardTask(header=header, rows=pa.Table.from_pylist(rows, TASK_ROWS))


def test_fingerprint_of_a_literal_order() -> None:
    assert order().fingerprint == "6dc0d5895401e70b"
    assert order().kept_fingerprint == "7380beee4c0115f0"
    assert order().stem == "demo-7380beee4c0115f0"
    assert order().index == "demo-7380beee4c0115f0-6dc0d5895401e70b.index.parquet"


@pytest.mark.parametrize("of_row", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [{"return": 1e9}, {"steps": 99}, {"crc": 1}, {"length": 1}, {"offset": 3}, {"order": 4.0}, {"episode_id": "other"}],
)
def test_a_dropped_row_names_the_index_and_not_the_shard(of_row: int, changes: dict[str, Any]) -> None:
    dropped = {"kept": False, "split": None, "reason": "below_threshold"}
    rows = [row(number, **(dropped if number == of_row else {})) for number in range(4)]
    other = [row(number, **(dropped | changes if number == of_row else {})) for number in range(4)]
    one, two = (ShardTask(order().header, pa.Table.from_pylist(each, TASK_ROWS)) for each in (rows, other))
    assert one.kept_fingerprint == two.kept_fingerprint != order().kept_fingerprint
    assert one.fingerprint != two.fingerprint


def test_a_file_without_kept_rows_does_not_name_the_shard() -> None:
    dropped = {"kept": False, "split": None, "reason": "below_threshold"}
    rows = pa.Table.from_pylist([row(0), row(1), row(2, **dropped), row(3, **dropped)], TASK_ROWS)
    names = set()
    for last in ((file(1), FEATURES), (file(1, name="reach/x", size=9), OTHER)):
        header = EpisodeShardHeader.of("demo", order().header.settings, {SPEC.id: SPEC}, [(file(0), FEATURES), last])
        names.add(ShardTask(header, rows).kept_fingerprint)
    before = EpisodeShardHeader.of(
        "demo", order().header.settings, {SPEC.id: SPEC}, [(file(9), OTHER), (file(0), FEATURES)]
    )
    moved = [row(number, file=1) for number in range(2)]
    names.add(ShardTask(before, pa.Table.from_pylist([row(2, **dropped, file=0), *moved], TASK_ROWS)).kept_fingerprint)
    assert len(names) == 1


def test_the_shard_names_versions_of_what_makes_pictures() -> None:
    names = {order(codecs=codecs).kept_fingerprint for codecs in ({}, {"opencv": "4.10"}, {"opencv": "5.0"})}
    assert len(names) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"kept": False, "split": None, "reason": "below_threshold"},
        {"split": "held_out"},
        {"return": 1.25},
        {"crc": 999},
        {"length": 51},
        {"offset": 1},
        {"source_position": 7},
        {"episode_id": "other"},
        {"task": "push"},
        {"agent": "b"},
        {"order": 3.0},
        {"steps": 6},
        {"detail": "why"},
        {"lost": 2},
        {"file": 0},
    ],
)
def test_it_changes_with_every_column_of_a_row(changes: dict[str, Any]) -> None:
    assert order(changes).fingerprint != order().fingerprint
    names_index_alone = {"return", "order", "steps", "lost", "file"}
    assert (order(changes).kept_fingerprint == order().kept_fingerprint) == (changes.keys() <= names_index_alone)


@pytest.mark.parametrize(
    "settings", [{"chunk_tokens": 4097}, {"discrete_offset": 33024}, {"vocabulary_digest": "w"}, {"spec": WIDER}]
)
def test_it_changes_with_settings_vocabulary_and_spec(settings: dict[str, Any]) -> None:
    assert order(**settings).fingerprint != order().fingerprint


@pytest.mark.parametrize(
    "files",
    [
        [(file(0), FEATURES), (file(1, name="reach/f2"), FEATURES)],
        [(file(0), FEATURES), (file(1, size=7), FEATURES)],
        [(file(0), FEATURES), (file(1), OTHER)],
        [(file(0), OTHER), (file(1), FEATURES)],
        [(file(1), FEATURES), (file(0), FEATURES)],
    ],
)
def test_it_changes_with_the_files(files: list[tuple[EpisodeFile, SourceFeatures]]) -> None:
    assert order(files=files).fingerprint != order().fingerprint


def test_it_changes_with_the_order_of_the_rows_and_their_number() -> None:
    whole = order()
    turned = ShardTask(header=whole.header, rows=whole.rows.take([1, 0, 2, 3]))
    fewer = ShardTask(header=whole.header, rows=whole.rows.slice(0, 3))
    assert len({item.fingerprint for item in (whole, turned, fewer)}) == 3


def test_it_does_not_change_with_the_path() -> None:
    moved = [(file(0, path="/tmp/elsewhere"), FEATURES), (file(1, path="/x"), FEATURES)]
    assert order(files=moved).fingerprint == order().fingerprint


def test_it_does_not_change_with_how_features_are_shared_or_arrow_lays_out_rows() -> None:
    plain = order()
    header = plain.header.model_copy(update={"features": [OTHER, FEATURES, FEATURES], "features_of": [2, 1]})
    assert ShardTask(header=header, rows=plain.rows).fingerprint == plain.fingerprint
    pieces = pa.concat_tables([plain.rows.slice(0, 1), plain.rows.slice(1, 3)])
    assert pieces["kept"].num_chunks == 2
    assert ShardTask(header=plain.header, rows=pieces).fingerprint == plain.fingerprint


def test_it_does_not_change_with_the_process() -> None:
    program = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_shard_task as t"
    program += "; print(t.order().fingerprint)"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == "6dc0d5895401e70b"


def test_the_dataset_is_in_the_stem() -> None:
    assert order(dataset="other").stem == "other-7380beee4c0115f0"


def test_equal_features_are_stored_once() -> None:
    header = order(files=[(file(0), FEATURES), (file(1), OTHER), (file(2), FEATURES)]).header
    assert (header.features, header.features_of) == ([FEATURES, OTHER], [0, 1, 0])


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    fields = {"path": "/p", "name": "n", "size": 1, "episodes": None}
    files: list[tuple[EpisodeFile, SourceFeatures]] = [
        (RldsFile.model_validate({"format": "tfrecord"} | fields), FEATURES),
        (RldsFile.model_validate({"format": "array_record"} | fields), OTHER),
        (EnvLoggerFile.model_validate(fields), FEATURES),
    ]
    written = order({"order": 0.1, "reason": "ü", "kept": False}, files)
    written.write(tmp_path / "orders" / "order.parquet")
    again = ShardTask.read(tmp_path / "orders" / "order.parquet")
    assert again.header == written.header
    assert again.rows.to_pylist() == written.rows.to_pylist()
    assert again.rows.column_names == TASK_ROWS.names
    assert again.fingerprint == written.fingerprint
    assert again.header.source_files() == [item for item, _ in files]
    assert [type(item) for item in again.header.source_files()] == [RldsFile, RldsFile, EnvLoggerFile]
    assert [path.name for path in (tmp_path / "orders").iterdir()] == ["order.parquet"]


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7])
def test_a_column_is_digested_in_parts_as_its_list_would_be(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_DIGESTED_ROWS", 2)
    for values in (["a", None, "é, 'b'", "", "]", "\n", "x"], [1.5, None, float("nan"), 0.0, -0.0, 1e300, 2.0]):
        column = pa.chunked_array([values[:1], values[1:]]).slice(0, rows)
        assert planning._column_digest(column) == digest(repr(column.to_pylist()).encode())
