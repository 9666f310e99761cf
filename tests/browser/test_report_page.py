"""The report in a browser: what it shows is what the index says, it asks nothing of a network, it fits the window."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sealing import seal, write_manifest

from gatokit.cli.main import main
from gatokit.inspection import open_directory, preview

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.hit = 1'>"
MOVE = """
const slider = document.getElementById('stop');
slider.value = arguments[0];
slider.dispatchEvent(new Event('input', {bubbles: true}));
"""
CELLS = """
return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(
  (row) => Object.fromEntries([...row.cells].map((cell) => [cell.dataset.column, cell.textContent])));
"""
TILE = "return document.querySelector(`[data-tile='${arguments[0]}'] b`).textContent"


@pytest.fixture(scope="module")
def opened(browser, built, tmp_path_factory):
    """The report of the recorded build in the browser, opened once."""
    page = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["inspect", str(built), "--html", str(page)]) == 0
    browser.open(page)
    return browser


def test_it_is_drawn_without_a_network_or_an_error(opened):
    assert {address.partition(":")[0] for address in opened.requests()} <= {"file", "data", "blob"}
    assert opened.messages() == []
    assert opened.run("return document.querySelectorAll('figure svg.marks').length") >= 6


@pytest.mark.parametrize("stop", [0, 100, 151, 180, 200])
def test_the_slider_shows_what_at_prints(opened, built, stop, capsys):
    opened.run(MOVE, stop)
    assert opened.run("return document.getElementById('fraction').textContent") == f"{stop / 200:.3f}"
    assert main(["inspect", str(built), "--at", f"{stop / 200}", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert opened.run(TILE, "kept at F") == f"{said['kept_at']:,}"
    assert opened.run(TILE, "dropped at F") == f"{sum(row['dropped_at'] for row in said['tasks']):,}"
    shown = {(row["dataset"], row["task"]): row["kept at F"] for row in opened.run(CELLS, "#task-table")}
    assert shown == {(row["dataset"], row["task"]): f"{row['kept_at']:,}" for row in said["tasks"]}
    for row in opened.run(CELLS, "#then-datasets"):
        dropped = sum(item["dropped_at"] for item in said["tasks"] if item["dataset"] == row["dataset"])
        assert row["dropped at F"] == f"{dropped:,}"


def test_hours_are_unknown_and_tokens_marked_where_they_are_estimated(opened, built):
    opened.run(MOVE, 0)
    assert opened.run(TILE, "hours at F") == "unknown"
    assert opened.run(TILE, "tokens at F").startswith("≈ ")
    assert "estimated" in opened.run("return document.getElementById('estimate').textContent")
    rows = {row["dataset"]: row["tokens at F"] for row in opened.run(CELLS, "#then-datasets")}
    # Everything is kept of atari-small, so nothing of it is estimated.
    assert not rows["atari-small"].startswith("≈")


def test_a_task_is_found_and_shown(opened, built):
    opened.run("const s = document.getElementById('search'); s.value = 'PICKUP'; s.dispatchEvent(new Event('input'))")
    [row] = opened.run(CELLS, "#task-table")
    dataset = open_directory(built).datasets["babyai"]
    kept = sum(1 for _ in dataset.episodes(task="PickupLoc-v0", kept=True))
    assert (row["task"], row["kept"]) == ("PickupLoc-v0", f"{kept}")
    opened.run("document.querySelector('#task-table tbody tr').click()")
    assert opened.run("return document.getElementById('task-name').textContent") == "babyai / PickupLoc-v0"
    opened.wait("return document.querySelectorAll('#task figure svg.marks').length === 3")
    text = opened.run("return document.getElementById('films').textContent")
    best = max(dataset.episodes(task="PickupLoc-v0", kept=True), key=lambda row: row.episode_return)
    assert best.episode_id in text
    assert dataset.episode(best).decode()["observation/mission"][0] in text
    opened.run("const s = document.getElementById('search'); s.value = ''; s.dispatchEvent(new Event('input'))")


def test_frames_of_a_film_are_images(opened):
    opened.run(
        "for (const row of document.querySelectorAll('#task-table tbody tr'))"
        " if (row.textContent.startsWith('atariBreakout')) row.click()"
    )
    opened.wait("return [...document.querySelectorAll('.frame img')].every((image) => image.complete)")
    sizes = "return [...document.querySelectorAll('.frame img')].map((image) => `${image.naturalHeight}`)"
    assert set(opened.run(sizes)) == {"96"}
    assert len(opened.run(sizes)) >= 8


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(opened, width, scheme):
    opened.show_as(width, scheme)
    opened.wait("return document.querySelectorAll('#task figure svg.marks').length >= 2")
    assert opened.run("return document.documentElement.scrollWidth") <= width
    # Nor is a plot wider than its place, once Vega has heard of the new size.
    opened.wait(
        "return [...document.querySelectorAll('figure svg.marks')].every((plot) =>"
        " plot.getBoundingClientRect().right <= plot.closest('figure').getBoundingClientRect().right + 1)"
    )
    ground = opened.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
    assert opened.messages() == []


def test_names_with_html_are_texts(browser, report, built, tmp_path):
    path = Path(shutil.copytree(built, tmp_path / "hostile"))
    for file in path.glob("babyai/*.index.parquet"):
        table = pq.read_table(file)
        renamed = pa.array([HOSTILE + id_ for id_ in table["episode_id"].to_pylist()])
        agents = pa.array([HOSTILE] * table.num_rows)
        places = [(table.schema.get_field_index(name), name) for name in ("episode_id", "agent")]
        for (place, name), column in zip(places, (renamed, agents), strict=True):
            table = table.set_column(place, name, column)
        pq.write_table(table, file)
    content = json.loads((path / "manifest.json").read_bytes())
    content["datasets"] = [item for item in content["datasets"] if item["name"] == "babyai"]
    content["datasets"][0]["shards"] = 0
    content["packages"][HOSTILE] = HOSTILE
    write_manifest(path, content)
    seal(path)
    browser.open(report(path))
    assert browser.run("return document.getElementById('drops').textContent").count(HOSTILE) == 3
    assert HOSTILE in browser.run("return document.getElementById('card').textContent")
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.run("return window.hit ?? null") is None
    assert browser.messages() == []


def test_a_build_without_episodes_is_drawn(browser, report, built, tmp_path):
    path = Path(shutil.copytree(built, tmp_path / "empty"))
    for file in [*path.glob("*/*.index.parquet"), *path.glob("*/tasks.parquet")]:
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    content = json.loads((path / "manifest.json").read_bytes())
    for split in (split for dataset in content["datasets"] for split in dataset["splits"]):
        split["rows"] = 0
    write_manifest(path, content)
    seal(path)
    browser.open(report(path))
    assert browser.run(TILE, "kept") == "0"
    headings = browser.run("return [...document.querySelectorAll('h2')].map((heading) => heading.textContent)")
    assert headings == ["Datasets", "Tokens and weights", "Dropped", "Dataset card"]
    assert browser.run("return document.getElementById('drop-table').textContent") == "Nothing was dropped."
    assert browser.messages() == []


def test_a_scan_is_drawn(browser, report, recorded_config, tmp_path):
    from gatokit.pipelines.run import scan

    scan(recorded_config, tmp_path / "scanned")
    browser.open(report(tmp_path / "scanned"))
    browser.run(MOVE, 160)
    for row in browser.run(CELLS, "#task-table"):
        dataset = open_directory(tmp_path / "scanned").datasets[row["dataset"]]
        assert (
            row["kept at F"] == f"{next(item.kept_at for item in preview(dataset, 0.8) if item.task == row['task']):,}"
        )
    assert browser.run(TILE, "tokens at F").startswith("≈ ")
    assert browser.messages() == []
