"""The explorer in a browser, as the command serves it: what it shows is what the index and the shards say."""

import csv
import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from explorer_server import serving
from sealing import seal, write_manifest
from selenium.webdriver.support.ui import WebDriverWait

from gatokit.cli.main import main
from gatokit.inspection import open_directory
from gatokit.inspection.explorer.query import Filter, Order, find, page
from gatokit.schemas.tokens import TokenKind

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.hit = 1'>"
CELLS = """
return found(...arguments, 'tbody tr').map(
  (row) => Object.fromEntries([...row.cells].filter((cell) => cell.dataset.column).map(
    (cell) => [cell.dataset.column, cell.textContent])));
"""
COUNTS = "return found('.words.counts p').map((line) => line.textContent)"
CHOOSE = """
const select = found('select').find(
  (one) => one.closest('.bk-input-group')?.querySelector('label')?.textContent.trim() === arguments[0]);
select.value = [...select.options].find((option) => option.textContent === arguments[1]).value;
select.dispatchEvent(new Event('change', {bubbles: true}));
"""
WRITE = """
const input = found('input').find(
  (one) => one.closest('.bk-input-group')?.querySelector('label')?.textContent.trim() === arguments[0]);
input.value = arguments[1];
input.dispatchEvent(new Event('change', {bubbles: true}));
"""
CLICK = "found(arguments[1], '.bk-btn').find((button) => button.textContent.trim() === arguments[0]).click()"
OPEN = "found('table.fixed tbody tr')[arguments[0]].click()"
TICK = "found('table.fixed tbody input')[arguments[0]].click()"
VALUES = """
return Object.fromEntries(found('.value').map((one) => [one.dataset.field, one.querySelector('.text').textContent]));
"""
SAYS = "return found(arguments[0], '.words.wrong p').some((line) => line.textContent.includes(arguments[1]))"
TITLE = "return found('.words.title p').map((line) => line.textContent)"
STEP = "return found('.player[data-step]').map((player) => player.dataset.step)[0]"


@pytest.fixture(scope="module")
def served(built):
    """The explorer of the recorded build."""
    with serving(built) as (address, _):
        yield address


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def opened(browser, served, downloads):
    """The page, opened once; downloads go to a folder."""
    browser.driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    visit(browser, served)
    return browser


def visit(browser, address: str) -> None:
    browser.driver.get("about:blank")
    browser.messages()
    browser.requests()
    browser.driver.get(address)
    browser.wait_deep("return found('.words.counts p').some((line) => line.textContent.includes('match'))")


def settle(browser, text: str) -> None:
    """Waits until the counts say so."""
    browser.wait_deep(COUNTS.replace("return ", "return arguments[0] === ") + "[0]", text)


def counts_of(match) -> str:
    steps = "step" if match.steps == 1 else "steps"
    return f"{match.rows:,} rows match, {match.kept:,} kept, {match.steps:,} {steps}, {match.tokens:,} tokens"


def choose_dataset(browser, name: str, match) -> None:
    browser.deep(CHOOSE, "dataset", name)
    settle(browser, counts_of(match))


def test_it_is_drawn_without_another_host_or_an_error(opened, served):
    browser = opened
    hosts = {urlparse(address).netloc for address in browser.requests() if not address.startswith(("data:", "blob:"))}
    assert hosts == {urlparse(served).netloc}
    assert [line for line in browser.messages() if "SEVERE" in line or "rror" in line] == []


def test_a_task_is_filtered_to_and_counted_as_the_index_counts(opened, built):
    browser, dataset = opened, open_directory(built).datasets["babyai"]
    choose_dataset(browser, "babyai", find(dataset, Filter()))
    [line] = [row for row in browser.deep(CELLS, "#tasks") if row["task"] == "PickupLoc-v0"]
    rows = list(dataset.rows(task="PickupLoc-v0"))
    assert (line["found"], line["kept"]) == (str(len(rows)), str(sum(row.kept for row in rows)))
    browser.deep("found('#tasks', 'tbody tr').find((row) => row.textContent.startsWith('PickupLoc')).click()")
    settle(browser, counts_of(find(dataset, Filter(task="PickupLoc-v0"))))
    shown = browser.deep(CELLS, "#rows")
    assert [row["episode_id"] for row in shown] == [row.episode_id for row in rows[:20]]
    assert {row["task"] for row in shown} == {"PickupLoc-v0"}

    browser.deep(CHOOSE, "kept", "kept")
    settle(browser, counts_of(find(dataset, Filter(task="PickupLoc-v0", kept=True))))
    browser.deep("found('th button').find((button) => button.textContent === 'return').click()")
    browser.wait_deep("return found('th[aria-sort=ascending]').some((cell) => cell.textContent.startsWith('return'))")
    match = find(dataset, Filter(task="PickupLoc-v0", kept=True), Order("return"))
    browser.wait_deep(
        "return found('#rows', 'tbody td[data-column=episode_id]')[0].textContent === arguments[0]",
        page(dataset, match, 0, 1)[0].episode_id,
    )


def test_a_wrong_expression_is_a_sentence_and_the_table_stays(opened, built):
    browser, dataset = opened, open_directory(built).datasets["babyai"]
    before = browser.deep(CELLS, "#rows")
    browser.deep(WRITE, "expression", "speed > 3")
    browser.wait_deep(
        "return found('.words.wrong p').some((line) => line.textContent.includes(\"'speed' is no column\"))"
    )
    assert browser.deep(CELLS, "#rows") == before
    browser.deep(WRITE, "expression", "steps > 3 and agent != 'random'")
    wanted = Filter(task="PickupLoc-v0", kept=True, where="steps > 3 and agent != 'random'")
    settle(browser, counts_of(find(dataset, wanted)))
    browser.wait_deep("return found('.words.wrong p').every((line) => !line.checkVisibility())")


def test_an_episode_is_played(opened, built):
    browser, dataset = opened, open_directory(built).datasets["babyai"]
    choose_dataset(browser, "metaworld", find(open_directory(built).datasets["metaworld"], Filter()))
    choose_dataset(browser, "babyai", find(dataset, Filter()))
    browser.deep(CHOOSE, "kept", "kept")
    match = find(dataset, Filter(kept=True))
    settle(browser, counts_of(match))
    row = max(page(dataset, match, 0, 20), key=lambda row: row.steps)
    browser.deep(OPEN, page(dataset, match, 0, 20).index(row))
    browser.wait_deep(TITLE + "[0] === arguments[0]", row.episode_id)
    browser.wait_deep("return found('.player canvas, .bk-Figure, canvas').length > 0")
    episode = dataset.episode(row)
    values = episode.decode()
    for step in (1, row.steps - 1):
        browser.deep(
            "const slider = found('.player input[type=range]')[0];"
            " slider.value = arguments[0]; slider.dispatchEvent(new Event('input'))",
            step,
        )
        browser.wait_deep(STEP + " === String(arguments[0])", step)
        shown = browser.deep(VALUES)
        assert shown["action/action"] == str(values["action"][step])
        assert shown["observation/mission"] == values["observation/mission"][step]
        assert shown["observation/direction"] == str(values["observation/direction"][step])
        assert shown["observation/grid"].split() == [str(item) for item in values["observation/grid"][step].ravel()]
        assert float(shown["reward"]) == pytest.approx(episode.reward[step])
        assert float(shown["return so far"]) == pytest.approx(episode.reward[: step + 1].sum(), rel=1e-5)
    browser.deep(
        "const slider = found('.player input[type=range]')[0]; slider.value = 0;"
        " slider.dispatchEvent(new Event('input')); found('.player select')[0].value = '50'"
    )
    browser.wait_deep(STEP + " === '0'")
    browser.deep("found('.player button.play')[0].click()")
    browser.wait_deep(STEP + " === String(arguments[0])", row.steps - 1)
    browser.wait_deep("return found('.player button.play')[0].textContent === '▶'")


def test_its_tokens_are_those_of_its_records(opened, built):
    browser, dataset = opened, open_directory(built).datasets["babyai"]
    id_ = browser.deep(TITLE)[0]
    episode = dataset.episode(id_)
    browser.deep(CLICK, "tokens", "#opened")
    browser.wait_deep("return found('#opened', 'td[data-column=token]').some((cell) => cell.checkVisibility())")
    last = episode.steps - 1
    begin = int(episode.sequence.step_begin[last])
    browser.wait_deep("return found('#opened', 'td[data-column=token]')[0].textContent === arguments[0]", f"{begin:,}")
    [*_, action] = _all_tokens(browser)
    assert action["id"] == str(episode.sequence.tokens[-1])
    assert (action["kind"], action["target"], action["field"]) == ("discrete action", "yes", "action")
    browser.deep(CLICK, "all", "#opened")
    browser.wait_deep("return found('#opened', 'td[data-column=token]')[0].textContent === '0'")
    shown = [row for row in browser.deep(CELLS, "#opened") if "token" in row]
    assert [int(row["id"]) for row in shown] == episode.sequence.tokens[:50].tolist()
    assert [row["kind"] for row in shown] == [
        TokenKind(kind).name.lower().replace("_", " ") for kind in episode.sequence.kinds[:50].tolist()
    ]


def _all_tokens(browser) -> list[dict[str, str]]:
    """The tokens that are asked for, page by page."""
    rows: list[dict[str, str]] = []
    while True:
        rows += [row for row in browser.deep(CELLS, "#opened") if "token" in row]
        ahead = browser.deep("return found('#opened', 'button.page').filter((one) => one.title === 'next page')")
        if not ahead or not ahead[0].is_enabled():
            return rows
        browser.run("arguments[0].click()", ahead[0])
        browser.wait_deep(
            "return found('#opened', 'td[data-column=token]')[0].textContent === arguments[0]",
            f"{int(rows[-1]['token'].replace(',', '')) + 1:,}",
        )


def test_frames_are_pictures(opened, built):
    browser, dataset = opened, open_directory(built).datasets["atari"]
    choose_dataset(browser, "atari", find(dataset, Filter()))
    browser.deep(CHOOSE, "kept", "kept")
    settle(browser, counts_of(find(dataset, Filter(kept=True))))
    browser.deep(OPEN, 0)
    browser.wait_deep("return found('.images img').some((image) => image.complete && image.naturalHeight)")
    sizes = browser.deep("return found('.images img').map((image) => [image.naturalHeight, image.naturalWidth])")
    image = next(dataset.read([next(dataset.rows(kept=True))])).sequence.images[0].image
    assert sizes == [[image.height, image.width]]


def test_a_dropped_episode_says_why(opened, built):
    browser, dataset = opened, open_directory(built).datasets["metaworld"]
    choose_dataset(browser, "metaworld", find(dataset, Filter()))
    browser.deep(CHOOSE, "kept", "dropped")
    settle(browser, counts_of(find(dataset, Filter(kept=False))))
    browser.deep(OPEN, 0)
    row = next(dataset.rows(kept=False))
    browser.wait_deep(SAYS, "#opened", "dropped: below_threshold: the return is below the task's threshold")
    lines = {line["column"]: line["value"] for line in browser.deep(CELLS, "#opened") if "column" in line}
    assert (lines["episode_id"], lines["source_file"]) == (row.episode_id, row.source_file)


def test_a_selection_is_exported_and_built(opened, built, recorded_config, downloads, tmp_path):
    browser, directory = opened, open_directory(built)
    babyai, metaworld = directory.datasets["babyai"], directory.datasets["metaworld"]
    choose_dataset(browser, "babyai", find(babyai, Filter()))
    everything = page(babyai, find(babyai, Filter()), 0, 1000)
    chosen = [row for row in everything[:20] if row.kept][:2]
    for row in chosen:
        browser.deep(TICK, everything.index(row))
    browser.wait_deep("return found('#selection', '.words p')[0].textContent.startsWith('2 episodes selected')")
    choose_dataset(browser, "metaworld", find(metaworld, Filter()))
    browser.deep(WRITE, "expression", "kept and agent == 'expert'")
    match = find(metaworld, Filter(where="kept and agent == 'expert'"))
    settle(browser, counts_of(match))
    browser.deep(CLICK, "select all that match", "#rows")
    total = match.rows + 2
    browser.wait_deep(f"return found('#selection', '.words p')[0].textContent.startsWith('{total} episodes selected')")
    assert browser.deep("return found('table.fixed tbody input').every((box) => box.checked)")
    assert "- name: babyai\n    keep: {episodes: episodes.csv}" in browser.deep(
        "return found('#selection', 'pre')[0].textContent"
    )

    browser.deep("found('#selection', 'a.download')[0].click()")
    file = downloads / "episodes.csv"
    WebDriverWait(browser.driver, 30).until(lambda _: file.exists())
    listed = list(csv.DictReader(file.open(newline="")))
    experts = [row.episode_id for row in page(metaworld, match, 0, 1000)]
    assert [(row["dataset"], row["episode_id"]) for row in listed] == [
        *(("metaworld", id_) for id_ in experts),
        *(("babyai", row.episode_id) for row in chosen),
    ]

    # The build of the list keeps what it names, exactly.
    content = yaml.safe_load(recorded_config.read_text())
    content["vocabulary"] = str(recorded_config.parent / content["vocabulary"])
    content["datasets"] = [item for item in content["datasets"] if item["name"] in ("metaworld", "babyai")]
    for item in content["datasets"]:
        item |= {"source": str(recorded_config.parent / item["source"]), "keep": {"episodes": str(file)}}
    (tmp_path / "listed.yaml").write_text(yaml.safe_dump(content))
    assert main(["build", str(tmp_path / "listed.yaml"), "--out", str(tmp_path / "listed")]) == 0
    again = open_directory(tmp_path / "listed").datasets
    assert sorted(row.episode_id for row in again["metaworld"].rows(kept=True)) == sorted(experts)
    assert {row.episode_id for row in again["babyai"].rows(kept=True)} == {row.episode_id for row in chosen}

    browser.deep(CLICK, "clear", "#selection")
    browser.wait_deep("return !found('#selection', 'a.download').length")
    assert browser.deep("return found('table.fixed tbody input').every((box) => !box.checked)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_wider_than_the_window(opened, width, scheme):
    opened.show_as(width, scheme)
    opened.wait_deep("return document.documentElement.clientWidth <= arguments[0]", width)
    assert opened.run("return document.documentElement.scrollWidth") <= width
    ground = opened.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")


def test_nothing_was_asked_of_another_host_nor_went_wrong(opened, served):
    hosts = {urlparse(address).netloc for address in opened.requests() if not address.startswith(("data:", "blob:"))}
    assert hosts <= {urlparse(served).netloc}
    assert [line for line in opened.messages() if " ERROR " in line or "rror" in line] == []


def test_ids_and_texts_with_html_are_texts(browser, built, tmp_path):
    path = Path(shutil.copytree(built, tmp_path / "hostile"))
    for file in path.glob("babyai/*.index.parquet"):
        table = pq.read_table(file)
        columns = {
            "episode_id": [HOSTILE + id_ for id_ in table["episode_id"].to_pylist()],
            "agent": [HOSTILE] * table.num_rows,
            "detail": [HOSTILE] * table.num_rows,
        }
        for name, values in columns.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
        pq.write_table(table, file)
    seal(path)
    with serving(path, "--dataset", "babyai") as (address, _):
        visit(browser, address)
        rows = browser.deep(CELLS, "#rows")
        assert all(row["episode_id"].startswith(HOSTILE) and row["agent"] == HOSTILE for row in rows)
        browser.deep(OPEN, 0)
        browser.wait_deep(TITLE + "[0].startsWith(arguments[0])", HOSTILE)
        assert browser.deep("return found('img').length") == 0
        assert browser.run("return window.hit ?? null") is None
        assert [line for line in browser.messages() if "rror" in line and HOSTILE not in line] == []


def test_a_page_says_that_its_server_has_ended(browser, built):
    with serving(built, "--dataset", "atari") as (address, server):
        visit(browser, address)
        assert not browser.run("return document.getElementById('stopped').checkVisibility()")
        server.terminate()
        assert server.wait(30) == 0
        browser.wait("return document.getElementById('stopped').checkVisibility()")


def test_a_tab_of_an_earlier_start_says_where_to_go(browser, built):
    with serving(built, "--dataset", "atari") as (address, server):
        visit(browser, address)
        server.terminate()
        assert server.wait(30) == 0
        browser.wait("return document.getElementById('stopped').checkVisibility()")
        port = urlparse(address).port
        with serving(built, "--dataset", "atari", "--port", str(port)) as (new, _):
            assert urlparse(new).port == port
            browser.driver.refresh()
            browser.wait("return document.body.textContent.includes('gatokit inspect --serve printed')")
            assert browser.deep("return found('.words').length") == 0
            visit(browser, new)


def test_several_tabs_and_a_reload_have_pages_of_their_own(browser, built):
    with serving(built, "--dataset", "babyai") as (address, _):
        visit(browser, address)
        first = browser.driver.current_window_handle
        browser.deep(TICK, 0)
        browser.wait_deep("return found('#selection a.download, a.download').length === 1")
        browser.driver.switch_to.new_window("tab")
        try:
            visit(browser, address.rstrip("/"))
            assert browser.run("return location.href") == address
            assert browser.deep("return found('a.download').length") == 0
        finally:
            browser.driver.close()
            browser.driver.switch_to.window(first)
        assert browser.deep("return found('a.download').length") == 1
        visit(browser, address)
        assert browser.deep("return found('a.download').length") == 0


FOREIGN_PAGE = """<!doctype html><title>elsewhere</title><script>
const open_socket = (address) => new Promise((done) => {
  const socket = new WebSocket(address, ["bokeh", "x"]);
  socket.onopen = () => done("open"); socket.onerror = () => done("refused");
});
const load = (tag, attribute, address) => new Promise((done) => {
  const element = document.createElement(tag);
  element.onload = () => done("loaded"); element.onerror = () => done("refused");
  element[attribute] = address; document.documentElement.append(element);
});
const read = (address) => fetch(address, {credentials: "include"}).then((answer) => answer.text(), () => "refused");
window.attack = (port, token) => Promise.all(["127.0.0.1", "localhost", location.hostname].flatMap((host) =>
  ["", `${token}/`].flatMap((path) => [
    read(`http://${host}:${port}/${path}`),
    open_socket(`ws://${host}:${port}/${path}ws`),
    load("script", "src", `http://${host}:${port}/${path}static/js/bokeh.min.js`),
    load("script", "src", `http://${host}:${port}/${path}autoload.js?bokeh-autoload-element=x`),
  ])));
</script>"""


def test_a_page_of_another_name_sees_nothing_even_with_the_token(browser, built, tmp_path):
    """``evil.example`` is mapped to this machine, as by a name server that its owner runs."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(FOREIGN_PAGE.encode())

        def log_message(self, *_: object) -> None: ...

    with serving(built, "--dataset", "atari") as (address, _), ThreadingHTTPServer(("127.0.0.1", 0), Page) as foreign:
        Thread(target=foreign.serve_forever, daemon=True).start()
        port, token = urlparse(address).port, urlparse(address).path.strip("/")
        try:
            for host in ("evil.example", "127.0.0.1"):
                browser.driver.get(f"http://{host}:{foreign.server_port}/")
                answers = browser.driver.execute_async_script(
                    "attack(arguments[0], arguments[1]).then(arguments[2])", port, token
                )
                assert (host, answers) == (host, ["refused"] * 24)
        finally:
            foreign.shutdown()
        # The explorer itself under the foreign name, as a page that was rebound to this machine asks for it.
        browser.driver.get(f"http://evil.example:{port}/{token}/")
        assert "gatokit inspect --serve printed" in browser.run("return document.body.textContent")
        browser.driver.get(f"http://127.0.0.1:{port}/")
        assert "gatokit inspect --serve printed" in browser.run("return document.body.textContent")
        visit(browser, address)
        assert browser.run("return document.referrer") == ""


def test_an_index_without_rows_is_explored(browser, built, tmp_path):
    path = Path(shutil.copytree(built, tmp_path / "empty"))
    for file in [*path.glob("*/*.index.parquet"), *path.glob("*/tasks.parquet")]:
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    content = json.loads((path / "manifest.json").read_bytes())
    for split in (split for dataset in content["datasets"] for split in dataset["splits"]):
        split["rows"] = 0
    write_manifest(path, content)
    seal(path)
    with serving(path) as (address, _):
        visit(browser, address)
        assert browser.deep(COUNTS) == ["0 rows match, 0 kept, 0 steps, 0 tokens"]
        texts = browser.deep("return found('.empty').map((line) => line.textContent)")
        assert "Nothing matches." in texts
        assert "The dataset has no tasks." in texts


def test_a_scan_is_explored(browser, recorded_config, tmp_path):
    from gatokit.pipelines.run import scan

    scan(recorded_config, tmp_path / "scanned")
    with serving(tmp_path / "scanned", "--dataset", "babyai") as (address, _):
        visit(browser, address)
        dataset = open_directory(tmp_path / "scanned").datasets["babyai"]
        browser.deep(CHOOSE, "kept", "kept")
        match = find(dataset, Filter(kept=True))
        settle(browser, f"{match.rows} rows match, {match.rows} kept, {match.steps:,} steps, no tokens in a scan")
        browser.deep(OPEN, 0)
        browser.wait_deep(SAYS, "#opened", "kept; a scan stores no tokens, build to see them")
