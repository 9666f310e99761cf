"""Names of episodes from metadata, step fields, paths and constants; marks of success; columns of the index."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from sealing import seal

from gatokit.inspection import open_directory
from gatokit.inspection.preview import preview
from gatokit.inspection.verify.directory import verify
from gatokit.inspection.verify.index import read_index
from gatokit.pipelines.run import build, scan
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.errors import ConfigError, MalformedError
from gatokit.schemas.index import INDEX, common_type, metadata_columns
from gatokit.storage.folder import read_dataset_file

F = tfds.features
STEPS = {
    "observation": {"state": F.Tensor(shape=(2,), dtype=np.float32), "success": F.Scalar(dtype=np.float32)},
    "action": F.Tensor(shape=(1,), dtype=np.float32),
    "language_instruction": F.Text(),
    "codes": F.Tensor(shape=(8,), dtype=np.int32),
    "object_id": F.Tensor(shape=(1,), dtype=np.int64),
    "tag:placed": np.bool_,
    "reward": np.float32,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_terminal": np.bool_,
}
METADATA = {
    "episode_metadata": F.FeaturesDict(
        {
            "file_path": F.Text(),
            "end-effector type": F.Text(),
            "done": F.Scalar(dtype=np.bool_),
            "number": F.Scalar(dtype=np.int64),
            "mass": F.Scalar(dtype=np.float32),
            "task": F.Text(),
            "bounds": F.Tensor(shape=(3,), dtype=np.float32),
        }
    ),
    "return": F.Scalar(dtype=np.float32),
}
INSTRUCTIONS = ("pick up", "push", "pick up", "öffne", "push", "push")


def codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode().ljust(8, b"\0"), np.uint8).astype(np.int32)


def episode(number: int, run: int) -> dict[str, Any]:
    """Three steps with an action and the last. Odd numbers are successes, in every mark."""
    is_success = number % 2 == 1
    steps = [
        {
            "observation": {
                "state": np.full(2, step / 4, np.float32),
                "success": np.float32(is_success and step == 1),
            },
            "action": np.zeros(1, np.float32),
            "language_instruction": INSTRUCTIONS[number] if step == 0 else "later",
            "codes": codes(INSTRUCTIONS[number] if step == 0 else "later"),
            "object_id": np.array([number % 3]),
            "tag:placed": is_success and step == 3,
            "reward": np.float32((0.9 if is_success else 0.89) * (step == 2)),
            "is_first": step == 0,
            "is_last": step == 3,
            "is_terminal": False,
        }
        for step in range(4)
    ]
    metadata = {
        "file_path": f"/droid/{'success' if is_success else 'failure'}/{run}-{number}.h5",
        "end-effector type": ("suction", "gripper")[number % 2],
        "done": is_success,
        "number": number,
        "mass": np.float32(np.nan if number == 4 else number / 2),
        "task": ("stack", "sort")[number % 2],
        "bounds": np.zeros(3, np.float32),
    }
    return {"steps": steps, "episode_metadata": metadata, "return": np.float32(number)}


@pytest.fixture(scope="module")
def source(write_tfds: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of six episodes, with the same numbers."""
    root = tmp_path_factory.mktemp("runs")
    for run in (1, 2):
        episodes = [episode(number, run) for number in range(6)]
        write_tfds(root / f"pong_run_{run}", STEPS, episodes, metadata=METADATA, max_examples_per_shard=3)
    return root


@pytest.fixture
def scanned(
    source: Path, tmp_path: Path, exact_vocabulary: Path
) -> Callable[..., tuple[list[dict[str, Any]], Any, Path]]:
    """``scanned(**keys of the dataset) -> (rows of the index in source order, result, directory)``."""

    def run(*, job: Any = scan, **keys: Any) -> tuple[list[dict[str, Any]], Any, Path]:
        config, out = tmp_path / "c.yaml", tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        dataset = {
            "name": "d",
            "kind": "episodes",
            "source": f"{source}/*",
            "keep": {"all": True},
            "fields": {"observation/success": {"as": "skip"}},
            "last_step": "padding",
            **keys,
        }
        config.write_text(json.dumps({"vocabulary": str(exact_vocabulary), "datasets": [dataset]}))
        result = job(config, out)
        assert verify(out) == []
        [index] = out.glob("d/*.index.parquet")
        return pq.read_table(index).to_pylist(), result, out

    return run


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ({"field": "language_instruction"}, [*INSTRUCTIONS, *INSTRUCTIONS]),
        ({"field": "codes"}, [*INSTRUCTIONS, *INSTRUCTIONS]),
        ({"field": "object_id"}, ["0", "1", "2"] * 4),
        ({"metadata": "end-effector type"}, ["suction", "gripper"] * 6),
        ({"metadata": "done"}, ["0", "1"] * 6),
        ({"path": r"run_(\d+)/"}, ["1"] * 6 + ["2"] * 6),
        ({"path": "pong_run_[12]"}, ["pong_run_1"] * 6 + ["pong_run_2"] * 6),
        ({"from": "directory"}, ["pong_run_1"] * 6 + ["pong_run_2"] * 6),
        ({"constant": "Pong"}, ["Pong"] * 12),
    ],
)
def test_names_of_tasks_and_agents(scanned, key, expected):
    rows, _, _ = scanned(task=key, merge=True)
    assert [row["task"] for row in rows] == expected
    rows, _, _ = scanned(task={"constant": "Pong"}, merge=True, agent=key)
    assert [row["agent"] for row in rows] == expected
    assert {row["task"] for row in rows} == {"Pong"}


def test_order_and_id_from_fields_and_paths(scanned):
    rows, _, _ = scanned(order={"path": r"-(\d+)$"}, id={"metadata": "file_path"})
    assert [row["order"] for row in rows] == [0, 0, 0, 1, 1, 1] * 2
    assert rows[7]["episode_id"] == "/droid/success/2-1.h5"
    rows, _, _ = scanned(order={"field": "object_id"})
    assert [row["order"] for row in rows] == [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"task": {"metadata": "language_instruction"}},
            "d1, datasets[0]: task asks for the metadata key 'language_instruction', which is a field of the steps; "
            "write task: {field: language_instruction}",
        ),
        (
            {"agent": {"field": "file_path"}},
            "d1, datasets[0]: agent asks for the step field 'file_path', which is stored with the episode; "
            "write agent: {metadata: file_path}",
        ),
        (
            {"id": {"metadata": "file_pth"}},
            "d1, datasets[0]: id asks for the metadata key 'file_pth'; did you mean 'file_path'? the "
            "source's keys are episode_metadata/bounds, episode_metadata/done, episode_metadata/end-effector type, "
            "episode_metadata/file_path, episode_metadata/mass, episode_metadata/number, episode_metadata/task, "
            "return; of the steps {field: language_instruction} is a text",
        ),
        (
            {"task": {"field": "instruction"}},
            "d1, datasets[0]: task asks for the step field 'instruction'; did you mean 'language_instruction'? the "
            "steps' fields are action, codes, is_first, is_last, is_terminal, language_instruction, object_id, "
            "observation/state, observation/success, reward, tag:placed",
        ),
        (
            {"order": {"metadata": "file_path"}},
            "d1, datasets[0]: order needs a number, and episode_metadata/file_path is a Text of str; of the others "
            "these would do: episode_metadata/done, episode_metadata/mass, episode_metadata/number, return",
        ),
        (
            {"task": {"field": "observation/state"}},
            "d1, datasets[0]: task needs a string or a number, and observation/state is a Tensor of float32 and shape "
            "[2]; of the others these would do: action, codes, is_first, is_last, is_terminal, language_instruction, "
            "object_id, observation/success, reward, tag:placed",
        ),
        (
            {"agent": {"path": "seed=([0-9]+)"}},
            "datasets[0].agent.path: 'seed=([0-9]+)' finds nothing in 'pong_run_1/recorded-train.tfrecord-00000', the "
            "path of a file below the source; mend the expression, or narrow datasets[0].source",
        ),
        (
            {"order": {"path": "run_."}},
            "datasets[0].order.path: finds 'run_1' in 'pong_run_1/recorded-train.tfrecord-00000', which is no number; "
            "mend the expression",
        ),
        (
            {"keep": {"success": "file_path"}},
            "d1, datasets[0]: success needs a number or a truth, and episode_metadata/file_path is a text; say which "
            "texts are a success, such as {metadata: episode_metadata/file_path, matches: '^success$'}",
        ),
        (
            {"keep": {"success": {"field": "tag:plced"}}},
            "d1, datasets[0]: success asks for the step field 'tag:plced'; did you mean 'tag:placed'? the steps' "
            "fields are ",
        ),
        (
            {"keep": {"where": "sucess and mass > 3"}},
            "datasets[0].keep.where: 'sucess' is no column; ",
        ),
        (
            {"keep": {"where": "file_path > 3"}},
            "datasets[0].keep.where: compares file_path, a string, with 3, a number, by >",
        ),
        (
            {"keep": {"best": 2, "by": "mas"}},
            "datasets[0].keep.by: 'mas' is no column; did you mean 'mass'? the columns are expert_return, order, "
            "return, source_position, steps, mass, number, metadata/return",
        ),
        (
            {"keep": {"best": 2, "by": "file_path"}},
            "datasets[0].keep.by: file_path is a column of type string, and best needs numbers; the columns of numbers "
            "are expert_return, order, return, source_position, steps, mass, number, metadata/return",
        ),
    ],
)
def test_a_wrong_choice_is_named_with_what_would_do(scanned, source, keys, said):
    with pytest.raises(ConfigError) as caught:
        scanned(**keys)
    assert str(caught.value).replace(f"{source}/pong_run_1", "d1")[: len(said)] == said


def test_all_wrong_choices_stand_in_one_message(scanned, source):
    """Of fields, names, paths, marks and columns; each once, though two directories have it."""
    with pytest.raises(ConfigError) as caught:
        scanned(
            task={"metadata": "language_instruction"},
            agent={"path": "seed=([0-9]+)"},
            order={"path": "run_."},
            id={"field": "file_path"},
            fields={"observation/stat": {"as": "skip"}, "codes": {"as": "text"}, "observation/state": {"num": 3}},
            keep={"success": "file_path", "where": "sucess", "best": 2, "by": "mas"},
        )
    error = caught.value
    begins = [
        "10 things are wrong:",
        "datasets[0].fields: the source has no field 'observation/stat'; did you mean 'observation/state'? its fields",
        "datasets[0].fields: codes is neither observation nor action, so its rule would do nothing; write observe: ",
        "d1: field observation/state of dtype float32 as continuous takes no num; remove num under datasets[0].fields",
        "datasets[0].keep.where: 'sucess' is no column; ",
        "datasets[0].keep.by: 'mas' is no column; did you mean 'mass'?",
        "d1, datasets[0]: task asks for the metadata key 'language_instruction', which is a field of the steps; write",
        "d1, datasets[0]: id asks for the step field 'file_path', which is stored with the episode; write id: {meta",
        "d1, datasets[0]: success needs a number or a truth, and episode_metadata/file_path is a text; say which",
        "datasets[0].agent.path: 'seed=([0-9]+)' finds nothing in 'pong_run_1/recorded-train.tfrecord-00000', the path",
        "datasets[0].order.path: finds 'run_1' in 'pong_run_1/recorded-train.tfrecord-00000', which is no number; mend",
    ]
    lines = str(error).replace(f"{source}/pong_run_1", "d1").split("\n  ")
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == begins
    assert (error.problem, error.way_out, len(error.parts)) == (str(error), None, 10)


# --- order and notices -----------------------------------------------------------------------------------------------


def notices_with(result: Any, word: str) -> list[str]:
    return [notice for notice in result.notices if word in notice]


def test_several_collections_keep_their_order_and_repeated_numbers_are_named(scanned):
    pong: dict[str, Any] = {"task": {"constant": "Pong"}, "merge": True, "order": {"metadata": "number"}}
    _, result, _ = scanned(**pong)
    assert notices_with(result, "repeat") == [
        "d: numbers of order repeat within a task and agent, 6 times: pong_run_1/recorded-train.tfrecord-00000#0 and "
        "pong_run_2/recorded-train.tfrecord-00000#0 have 0; directories are taken one after the other, in the order of "
        "their names; if their episodes are of different agents, write datasets[0].agent: {from: directory}"
    ]
    _, result, out = scanned(**pong, agent={"from": "directory"})
    assert notices_with(result, "repeat") == []
    tasks = pq.read_table(out / "d" / "tasks.parquet").to_pylist()
    assert [(row["task"], row["agent"], row["episodes"]) for row in tasks] == [
        ("Pong", "pong_run_1", 6),
        ("Pong", "pong_run_2", 6),
    ]
    _, result, _ = scanned(order={"field": "object_id"})
    assert notices_with(result, "repeat") == [
        "d: numbers of order repeat within a task and agent, 6 times: pong_run_1/recorded-train.tfrecord-00000#0 and "
        "pong_run_1/recorded-train.tfrecord-00001#0 have 0; equal numbers are taken by position; choose another "
        "datasets[0].order if that is wrong"
    ]


def test_keys_that_name_every_episode_and_tasks_that_are_several(scanned):
    _, result, _ = scanned(task={"metadata": "file_path"})
    assert notices_with(result, "of its own") == [
        'd: datasets[0].task: {"metadata": "file_path"} gives each of 12 episodes a task of its own, with which no '
        "other is compared; choose a key whose values repeat: end-effector type (2 values), "
        "episode_metadata/task (2 values), number (6 values)"
    ]
    _, result, _ = scanned(agent={"metadata": "file_path"})
    assert [notice.split(" gives ")[0] for notice in notices_with(result, "of its own")] == [
        'd: datasets[0].agent: {"metadata": "file_path"}'
    ]
    assert notices_with(result, "seems to be several") == [
        "d: task 'pong_run_1' seems to be several: episode_metadata/task has 2 values in it (sort, stack); write "
        "datasets[0].task: {metadata: episode_metadata/task} to tell them apart"
    ]
    _, result, _ = scanned(task={"metadata": "episode_metadata/task"}, merge=True)
    assert notices_with(result, "of its own") + notices_with(result, "seems to be several") == []


# --- success ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "success",
    [
        "done",
        "tag:placed",
        {"metadata": "done"},
        {"field": "tag:placed"},
        {"field": "observation/success"},
        {"metadata": "file_path", "matches": "/success/"},
        {"key": "end-effector type", "matches": "^grip"},
        {"metadata": "number", "matches": "^[135]$"},
    ],
)
def test_marks_of_success(scanned, success):
    rows, _, _ = scanned(keep={"success": success})
    assert [row["kept"] for row in rows] == [False, True] * 6
    assert {row["reason"] for row in rows} == {None, "not_success"}


def test_success_by_the_last_reward_as_it_was_recorded(scanned):
    rows, _, _ = scanned(keep={"success": {"last_reward": 0.9}})
    assert float(np.float32(0.9)) < 0.9
    assert [row["kept"] for row in rows] == [False, True] * 6


def test_a_field_marks_a_text_in_any_step(scanned):
    rows, _, _ = scanned(keep={"success": {"field": "language_instruction", "matches": "pick|ö"}})
    assert [row["kept"] for row in rows] == [text in ("pick up", "öffne") for text in INSTRUCTIONS] * 2


# --- columns of the index --------------------------------------------------------------------------------------------


def test_every_value_stored_with_an_episode_is_a_column(scanned):
    for job in (scan, build):
        rows, _, out = scanned(job=job)
        described = read_dataset_file(out / "d")
        assert described.columns == {
            "done": "bool",
            "end-effector type": "string",
            "episode_metadata/task": "string",
            "file_path": "string",
            "mass": "float64",
            "metadata/return": "float64",
            "number": "int64",
        }
        [index] = out.glob("d/*.index.parquet")
        schema = pq.read_schema(index)
        assert schema.names[: len(INDEX)] == INDEX.names
        assert {name: str(schema.field(name).type) for name in schema.names[len(INDEX) :]} == {
            name: {"float64": "double"}.get(type_, type_) for name, type_ in described.columns.items()
        }
        assert [row["mass"] for row in rows] == [0.0, 0.5, 1.0, 1.5, None, 2.5] * 2
        assert [row["metadata/return"] for row in rows] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] * 2
        assert [row["done"] for row in rows] == [False, True] * 6
        assert rows[9]["file_path"] == "/droid/success/2-3.h5"
        row = open_directory(out).datasets["d"].row(rows[9]["episode_id"])
        assert row is not None
        assert row.metadata == {name: rows[9][name] for name in row.metadata}
        assert row.columns()["end-effector type"] == "gripper"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("done", [1, 3, 5]),
        ("file_path contains '/success/' and number > 1", [3, 5]),
        ("file_path matches '-[04][.]h5$'", [0, 4]),
        ("`end-effector type` == 'suction' and mass is not null", [0, 2]),
        ("mass is null", [4]),
        ("`metadata/return` in (1, 2) or done == false and mass > 0.6", [1, 2]),
    ],
)
def test_expressions_over_the_source_s_own_values(scanned, where, expected):
    rows, _, _ = scanned(keep={"where": where})
    assert [number for number, row in enumerate(rows[:6]) if row["kept"]] == expected
    _, _, everything = scanned()
    dataset = open_directory(everything).datasets["d"]
    assert [task.kept_at for task in preview(dataset, Keep.model_validate({"where": where}))] == [len(expected)] * 2


def test_the_best_by_a_column(scanned):
    rule = {"best": 3, "by": "mass"}
    rows, _, _ = scanned(keep=rule)
    # The mass of the fourth is not known.
    assert [number for number, row in enumerate(rows[:6]) if row["kept"]] == [2, 3, 5]
    assert {row["reason"] for row in rows} == {None, "not_best"}
    _, _, everything = scanned()
    dataset = open_directory(everything).datasets["d"]
    assert [task.kept_at for task in preview(dataset, Keep.model_validate(rule))] == [3, 3]
    said = "^d: by: 'mas' is no column; did you mean 'mass'"
    with pytest.raises(ConfigError, match=said):
        preview(dataset, Keep.model_validate({"best": 3, "by": "mas"}))


def test_an_index_answers_marks_that_it_holds(scanned):
    _, _, out = scanned()
    dataset = open_directory(out).datasets["d"]
    for success in (
        "done",
        {"metadata": "file_path", "matches": "/success/"},
        {"metadata": "number", "matches": "^[135]$"},
    ):
        assert [task.kept_at for task in preview(dataset, Keep.model_validate({"success": success}))] == [3, 3]
    scan_it = "into the config, run gatokit scan, and inspect what that writes"
    for success, said in [
        (
            {"field": "tag:placed"},
            "success: only a scan reads the steps' field tag:placed, and the index of d does not; write keep: "
            f'{{success: {{"field": "tag:placed"}}}} {scan_it}',
        ),
        (
            {"last_reward": 0.5},
            "success: only a scan reads the last rewards, and the index of d does not; write keep: "
            f'{{success: {{"last_reward": 0.5}}}} {scan_it}',
        ),
        (
            "file_path",
            "success: the column file_path of d is a text; say which texts are a success, such as {success: {metadata: "
            "file_path, matches: '^success$'}}",
        ),
        (
            {"metadata": "dne"},
            "success: the index of d does not hold the mark 'dne'; its columns are "
            "done, end-effector type, episode_metadata/task, file_path, mass, metadata/return, number",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            preview(dataset, Keep.model_validate({"success": success}))
        assert str(caught.value) == said


def test_shards_do_not_depend_on_columns_and_old_indexes_read_as_null(scanned):
    _, _, out = scanned(job=build)
    [index] = out.glob("d/*.index.parquet")
    directory = open_directory(out)
    old = pq.read_table(index).select(INDEX.names)
    pq.write_table(old, index)
    seal(out)
    dataset = open_directory(out).datasets["d"]
    assert dataset.missing_columns() == tuple(directory.datasets["d"].columns)
    row = next(dataset.rows())
    assert set(row.metadata.values()) == {None}
    assert dataset.rows_at([0])[0] == row
    assert [task.kept_at for task in preview(dataset, Keep.model_validate({"where": "done is null"}))] == [6, 6]


def test_a_column_of_another_type_is_a_fault(scanned):
    _, _, out = scanned()
    [index] = out.glob("d/*.index.parquet")
    columns, table = open_directory(out).datasets["d"].columns, pq.read_table(index)
    assert read_index(index, columns).column_names == [*INDEX.names, *columns]
    wrong = table.set_column(table.schema.get_field_index("number"), "number", pa.array(["a"] * 12))
    pq.write_table(wrong, index)
    with pytest.raises(MalformedError, match=r" has a column number of string, not int64$"):
        read_index(index, columns)
    pq.write_table(table.append_column("more", pa.array([1] * 12)), index)
    with pytest.raises(MalformedError, match=r" has a column more, which dataset.json does not have$"):
        read_index(index, columns)


def test_names_and_types_of_columns():
    paths = [
        "episode_metadata/task",
        "a/seed",
        "b/seed",
        "seed",
        "length",
        "return",
        "metadata/return",
        "shard",
        "x/y z",
    ]
    assert metadata_columns(paths) == {
        "a/seed": "a/seed",
        "b/seed": "b/seed",
        "episode_metadata/task": "episode_metadata/task",
        "length": "length",
        "metadata/return": "metadata/return",
        "return": "metadata/metadata/return",
        "seed": "seed",
        "shard": "metadata/shard",
        "x/y z": "y z",
    }
    assert common_type(["bool", "int64"]) == "int64"
    assert common_type(["bool", "float64", "int64"]) == "float64"
    assert common_type(["bool", "string"]) == "string"
    assert common_type(["bool"]) == "bool"
