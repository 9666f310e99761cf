"""The report: its numbers against ``preview`` and against the rows, odd indexes, and what the page is made of."""

import base64
import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatokit.cli.main import main
from gatokit.inspection import open_directory, preview
from gatokit.inspection.card import Card, Section, card, markdown
from gatokit.inspection.report import page, report
from gatokit.inspection.report.tasks import FRACTIONS, facts, stops
from gatokit.schemas.index import INDEX, TASKS

HOSTILE = "<script>alert('x')</script>|`*"


def data_of(html: str) -> dict:
    packed = re.search(r'id="data">([^<]*)</script>', html)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def report_of(path: Path) -> dict:
    directory = open_directory(path)
    return json.loads(json.dumps(report(directory, list(directory.datasets.values())), allow_nan=False))


def kept_at(task: dict, stop: int, name: str = "episodes") -> int:
    return int(np.cumsum(task["stops"][name])[stop])


def test_sums_at_stops_are_those_of_the_rows_that_reach_them():
    found = stops(
        np.array([0.0, 5.0, 10.0, 5.0]),
        np.array([-1.0, 0.0, 4.9, 5.0, 12.0]),
        np.array([1, 10, 100, 1000, 10000]),
        np.array([7, 70, -1, 700, -1]),
    )
    assert found.episodes.tolist() == [4, 2, 1, 2]
    assert found.steps.tolist() == [11110, 11000, 10000, 11000]
    assert found.tokens.tolist() == [770, 700, 0, 700]
    assert found.unstored_steps.tolist() == [10100, 10000, 10000, 10000]


@pytest.mark.parametrize("where", ["built", "scanned"])
def test_every_tenth_stop_is_what_at_says(small, where):
    directory = open_directory(getattr(small, where))
    shown = report_of(directory.path)
    compared = 0
    for number, (name, dataset) in enumerate(directory.datasets.items()):
        tasks = {task["name"]: task for task in shown["tasks"] if task["dataset"] == number}
        for stop in (*range(0, 201, 10), 77, 151, 199):
            for row in preview(dataset, FRACTIONS[stop]):
                task = tasks[row.task]
                assert (kept_at(task, stop), task["found"] - kept_at(task, stop)) == (row.kept_at, row.dropped_at), name
                compared += 1
    assert compared == 24 * 4


@pytest.mark.parametrize(("name", "task", "unstored"), [("arm", "reach", True), ("against_random", "push", False)])
def test_tokens_and_hours_at_a_stop_are_those_of_the_rows(small, name, task, unstored):
    dataset = open_directory(small.built).datasets[name]
    task = next(found for found in facts(dataset, 0, frozenset()) if found.name == task)
    rows = list(dataset.episodes(task=task.name))
    for stop in (0, 60, 100, 160, 200):
        random = 0 if name == "arm" else -40
        limit = random + FRACTIONS[stop] * (task.expert_return - random)
        then = [
            row
            for row in rows
            if row.episode_return is not None
            and row.episode_return >= limit - 1e-9 * abs(limit)
            and row.steps > 0
            and row.reason in (None, "below_threshold")
        ]
        assert task.stops.episodes[stop] == len(then)
        assert task.stops.steps[stop] == sum(row.steps for row in then)
        assert task.stops.tokens[stop] == sum(row.tokens for row in then if row.kept)
        assert task.stops.unstored_steps[stop] == sum(row.steps for row in then if not row.kept)
    assert (task.stops.unstored_steps[0] > 0) == unstored


def test_tokens_a_step_are_exact_without_text(small):
    datasets = open_directory(small.built).datasets
    [grid] = facts(datasets["grid"], 0, frozenset())
    # Five observation tokens, the separator, four forces and a move.
    assert (grid.tokens_a_step, grid.is_exact, grid.tokens) == (11, True, grid.steps * 11)
    assert [task.is_exact for task in facts(datasets["arm"], 0, frozenset())] == [False, False]


def test_few_rows_at_a_time_give_the_same(small):
    dataset = open_directory(small.built).datasets["arm"]
    drawn = frozenset(dataset.task_names)
    for whole, piece in zip(facts(dataset, 50, drawn), facts(dataset, 50, drawn, most_rows=1), strict=True):
        assert (whole.name, whole.kept, whole.chosen) == (piece.name, piece.kept, piece.chosen)
        np.testing.assert_array_equal(whole.stops.episodes, piece.stops.episodes)
        np.testing.assert_array_equal(whole.points.value, piece.points.value)
        np.testing.assert_array_equal(whole.lengths.kept, piece.lengths.kept)


def test_points_are_in_collection_order_of_each_agent(small):
    dataset = open_directory(small.built).datasets["arm"]
    task = next(task for task in facts(dataset, 50, frozenset({"reach"})) if task.name == "reach")
    streams = {}
    for row in sorted(dataset.episodes(task="reach"), key=lambda row: row.order):
        if row.episode_return is not None:
            streams.setdefault(row.agent, []).append((row.episode_return, row.kept))
    found = {}
    for agent, place, value, kept in zip(
        task.points.agent, task.points.place, task.points.value, task.points.kept, strict=True
    ):
        own = found.setdefault(task.points.agents[agent], [])
        assert place == len(own)
        own.append((value, kept))
    assert found == streams
    # Of fewer than twenty episodes the window is one: the curve is the returns.
    for curve in task.curves:
        assert curve.window == 1
        assert curve.mean.tolist() == pytest.approx([value for value, _ in streams[curve.agent]])


def test_tokens_by_kind_add_up(small, corpora):
    for path in (small.built, corpora.built):
        for item in report_of(path)["datasets"]:
            assert sum(item["kinds"].values()) == item["tokens"] > 0
    arm = report_of(small.built)["datasets"][0]
    steps = sum(row.steps for row in open_directory(small.built).datasets["arm"].episodes(kept=True))
    # An image of 32 x 48, three numbers of state, two of the action.
    assert arm["kinds"] | {"text": 0} == {
        "text": 0,
        "image": 6 * steps,
        "continuous": 3 * steps,
        "separator": steps,
        "continuous action": 2 * steps,
    }
    assert arm["images"] == [[32, 48, steps]]


def test_drops_have_their_counts_and_first_ids(small):
    shown = report_of(small.built)
    arm = open_directory(small.built).datasets["arm"]
    for drop in shown["datasets"][0]["drops"]:
        rows = [row for row in arm.episodes(kept=False) if row.reason == drop["reason"]]
        assert (drop["count"], drop["examples"]) == (len(rows), [row.episode_id for row in rows[:3]])
    reach = next(task for task in shown["tasks"] if task["name"] == "reach")
    assert reach["reasons"] == [["below_threshold", 6], ["not_finite", 2], ["too_short", 1]]


def test_films_show_the_episode(small):
    shown = report_of(small.built)
    film = next(task for task in shown["tasks"] if task["name"] == "reach")["films"][0]
    dataset = open_directory(small.built).datasets["arm"]
    best = max(dataset.episodes(task="reach", kept=True), key=lambda row: row.episode_return)
    assert (film["label"], film["id"], film["tokens"]) == ("best kept", best.episode_id, best.tokens)
    first, last = film["frames"][0], film["frames"][-1]
    assert (first["step"], first["flags"], last["step"]) == (0, ["first"], best.steps - 1)
    assert first["texts"] == {"mission": "reach"}
    assert first["images"]["image"].startswith("data:image/png;base64,")
    # Six patches, text, three numbers, the separator, two of the action.
    fields = [token["field"] for token in film["tokens_shown"]]
    assert fields[:6] == ["image"] * 6
    assert fields[-6:] == ["state 0", "state 1", "state 2", "", "action 0", "action 1"]
    texts = [token["value"] for token in film["tokens_shown"] if token["field"] == "mission"]
    assert "".join(texts).strip() == "reach"
    values = dataset.episode(best).decode()
    assert float(film["tokens_shown"][-1]["value"]) == pytest.approx(values["action"][0][1], rel=1e-4)


def test_documents_are_quoted_and_their_images_counted(corpora):
    shown = {item["name"]: item for item in report_of(corpora.built)["datasets"]}
    assert shown["captions"]["excerpts"][0]["parts"][1] == {"text": "a ramp of colours"}
    assert shown["captions"]["excerpts"][0]["parts"][0]["size"] == "32 x 48"
    assert sum(count for *_, count in shown["pages"]["images"]) == 2 + 5
    kept = sum(1 for _ in open_directory(corpora.built).datasets["notes"].rows(kept=True))
    assert sum(count for _, count in shown["notes"]["sizes"]) == kept


@pytest.mark.parametrize("which", ["small", "corpora"])
def test_a_scan_is_reported_before_any_build(which, request):
    shown = report_of(request.getfixturevalue(which).scanned)
    assert shown["content"] == "scan"
    assert {item["tokens"] for item in shown["datasets"]} == {None}
    assert not any(task["films"] for task in shown["tasks"])
    assert all(task["points"]["value"] for task in shown["tasks"])


def rewritten(path: Path, change) -> None:
    """Changes every index of a directory."""
    for file in path.glob("*/*.index.parquet"):
        table = pq.read_table(file)
        pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), file)


@pytest.mark.parametrize(
    "column", ["agent", "order", "return", "kept", "reason", "lost", "tokens", "steps", "task", "episode_id"]
)
def test_an_index_without_a_column_is_reported(damaged, seal, column):
    rewritten(damaged, lambda table: table.drop_columns([column]))
    seal(damaged)
    shown = report_of(damaged)
    assert f"the index lacks {column}: what rests on them is left out" in shown["datasets"][0]["notes"]
    assert shown["datasets"][0]["found"] > 0


def test_no_episodes_at_all(damaged, seal, edit_manifest):
    rewritten(damaged, lambda table: table.slice(0, 0))
    for file in damaged.glob("*/tasks.parquet"):
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    seal(damaged)
    edit_manifest(
        damaged, lambda content: [split.update(rows=0) for item in content["datasets"] for split in item["splits"]]
    )
    shown = report_of(damaged)
    assert shown["tasks"] == []
    assert [(item["found"], item["kept"], item["drops"]) for item in shown["datasets"]] == [(0, 0, [])] * 3


def simulated(path: Path, seal, edit_manifest, columns: dict, tasks: list[dict]) -> None:
    """Gives ``arm`` of a scan other rows and tasks."""
    described, table = (path / "arm" / name for name in ("dataset.json", "tasks.parquet"))
    rows = len(columns["task"])
    first, *others = open_directory(path).datasets["arm"].totals.splits
    for split in others:
        pq.write_table(INDEX.empty_table(), path / "arm" / split.index)
    arrays = [pa.array(columns.get(field.name, [None] * rows), field.type) for field in INDEX]
    pq.write_table(pa.table(arrays, schema=INDEX), path / "arm" / first.index)
    pq.write_table(
        pa.Table.from_pylist([{"agent": "", "steps": 0, "held_out": 0, **task} for task in tasks], TASKS), table
    )
    content = json.loads(described.read_text())
    content["tasks"] = dict.fromkeys((task["task"] for task in tasks), next(iter(content["tasks"].values())))
    described.write_text(json.dumps(content))
    seal(path)

    def count(content: dict) -> None:
        for number, split in enumerate(content["datasets"][0]["splits"]):
            split["rows"] = rows if number == 0 else 0

    edit_manifest(path, count)


def test_the_moving_average_is_over_windows_in_collection_order(small, tmp_path, seal, edit_manifest):
    path = Path(shutil.copytree(small.scanned, tmp_path / "one"))
    # Collected as 0, 1, …, 29 and stored backwards: the last three are the best window.
    columns = {
        "episode_id": [str(number) for number in range(30)],
        "task": ["climb"] * 30,
        "agent": ["a"] * 30,
        "order": np.arange(30.0)[::-1],
        "return": np.arange(30.0)[::-1],
        "steps": np.full(30, 2),
        "kept": np.ones(30, bool),
        "lost": np.ones(30, int),
    }
    row = {"task": "climb", "agent": "a", "episodes": 30, "window": 3, "expert_return": 28.0, "kept": 30, "dropped": 0}
    simulated(path, seal, edit_manifest, columns, [row])
    [task] = facts(open_directory(path).datasets["arm"], 10, frozenset({"climb"}))
    [curve] = task.curves
    assert (curve.agent, curve.window) == ("a", 3)
    assert curve.place.tolist() == [2, 7, 13, 18, 24, 29]
    assert curve.mean.tolist() == [1, 6, 12, 17, 23, 28]
    assert task.points.value.tolist() == task.points.place.tolist() == list(range(0, 30, 3))


def test_a_thousand_tasks_and_names_with_html(small, tmp_path, seal, edit_manifest):
    path = Path(shutil.copytree(small.scanned, tmp_path / "many"))
    names = [f"{HOSTILE}{number:04d}" for number in range(1000)]
    returns = np.arange(4000) % 4
    columns = {
        "episode_id": [f"{HOSTILE}#{number}" for number in range(4000)],
        "task": np.repeat(names, 4),
        "steps": np.full(4000, 10),
        "return": returns.astype(float),
        "kept": returns == 3,
        "reason": np.where(returns == 3, None, "below_threshold"),
        "lost": np.ones(4000, int),
    }
    row = {"episodes": 4, "window": 1, "expert_return": 3.0, "threshold": 2.4, "kept": 1, "dropped": 3}
    simulated(path, seal, edit_manifest, columns, [{"task": name, **row} for name in names])

    directory = open_directory(path)
    datasets = list(directory.datasets.values())
    html = page(report(directory, datasets), "/* library */")
    assert len(html) < 2_000_000
    assert "alert(" not in html
    shown = data_of(html)
    assert [task["name"] for task in shown["tasks"] if task["dataset"] == 0] == names
    # Returns 0 to 3: three of four reach two thirds of 3, less a third of a stop.
    assert [kept_at(shown["tasks"][500], stop) for stop in (0, 66, 67, 133, 134, 200)] == [4, 3, 2, 2, 1, 1]
    text = markdown(card(directory, datasets))
    assert "<script" not in text
    assert "Tasks, the first 100 of" in text


def test_a_page_asks_nothing_of_a_network_and_is_the_same_again(small):
    directory = open_directory(small.built)
    pages = [page(report(directory, list(directory.datasets.values())), "</script>") for _ in range(2)]
    assert pages[0] == pages[1]
    assert "default-src 'none'" in pages[0]
    assert not re.search(r'(src|href)="(?!data:)', pages[0])
    # The library cannot end the script that it stands in.
    assert pages[0].count("</script>") == 3


def test_markdown_is_escaped():
    found = Card("<b>", "a|b", (Section("*t*", ("x", "n"), ((HOSTILE, "1\n2"),), frozenset({1})),))
    assert markdown(found) == (
        "# &lt;b&gt;\n\na\\|b\n\n## \\*t\\*\n\n| x | n |\n| --- | --: |\n"
        "| &lt;script&gt;alert('x')&lt;/script&gt;\\|\\`\\* | 1\\\\n2 |\n"
    )


def test_the_card_says_what_the_manifest_says(corpora):
    directory = open_directory(corpora.built)
    text = markdown(card(directory, list(directory.datasets.values())))
    assert directory.manifest.digest in text
    assert directory.manifest.vocabulary.blake2b in text
    assert f"| pyarrow | {pa.__version__} |" in text
    assert "| questions | questions: questions.json, annotations: annotations.json, image\\_dir: images |" in text


def test_the_command_writes_both_files(small, tmp_path, capsys):
    html, text = tmp_path / "report.html", tmp_path / "CARD.md"
    assert main(["inspect", str(small.built), "--html", str(html), "--card", str(text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"card": str(text), "html": str(html)}
    assert "vegaEmbed" in html.read_text()
    assert len(data_of(html.read_text())["datasets"]) == 3
    assert main(["inspect", str(small.built), "--html", str(html), "--dataset", "grid"]) == 0
    assert [item["name"] for item in data_of(html.read_text())["datasets"]] == ["grid"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["CARD.md", "report.html"]


def test_what_a_run_draws_stands_beside_the_weights(small, tmp_path):
    config = tmp_path / "run.yaml"
    weights = "{arm: 3, grid: 1, against_random: 4}"
    config.write_text(f"model: {{size: tiny}}\ncontext: 64\nbatch: 8\nsteps: 20000\ninput: {{weights: {weights}}}\n")
    html = tmp_path / "report.html"
    assert main(["inspect", str(small.built), "--html", str(html), "--run", str(config)]) == 0
    shown = {item["name"]: item["of_run"] for item in data_of(html.read_text())["datasets"]}
    asked = {"arm": 0.375, "grid": 0.125, "against_random": 0.5}
    assert {name: shares["asked"] for name, shares in shown.items()} == asked
    assert sum(shares["drawn"] for shares in shown.values()) == pytest.approx(1)
    # A thousand windows; some that have too many images are drawn again.
    assert {name: shares["drawn"] for name, shares in shown.items()} == pytest.approx(asked, abs=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--html", "absent/r.html"),
            "--html absent/r.html: there is no directory absent; make it, or give another file",
        ),
        (("--card", "."), "--card .: that is a directory; give a file"),
        (("--html", "r.html", "--at", "0.5"), "--html and --at exclude each other: give one of them"),
        (("--card", "c.md", "--task", "reach"), "--card and --task exclude each other: give one of them"),
        (("--card", "c.md", "--run", "tiny"), "--run belongs to --step or --html"),
        (("--html", "r.html", "--run", "."), "--run .: it holds no run.json"),
    ],
)
def test_mistakes_are_said_in_a_sentence(small, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(small.built), *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_plotting_library_the_extra_is_named(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert main(["inspect", str(small.built), "--html", "r.html"]) == 2
    said = "gatokit: vl_convert is not installed; run in a checkout of gatokit: pip install '.[report]'\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())
