"""Texts of data and names of files reach a terminal, a log, a list, a card and a page as text: nothing is obeyed."""

import asyncio
import base64
import csv
import gzip
import io
import json
import logging
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatokit.cli.console import Output
from gatokit.cli.main import _report, _show_traceback, main
from gatokit.cli.progress import bars, lines
from gatokit.inspection import open_directory
from gatokit.inspection.card import Card, Section, markdown
from gatokit.inspection.explorer.browse import Browse
from gatokit.inspection.explorer.episode import Opened
from gatokit.inspection.explorer.query import Selection
from gatokit.inspection.explorer.widgets import Parts, Player, Table, Words
from gatokit.pipelines.run import _Log
from gatokit.schemas.episode_list import EpisodeList, csv_cell, csv_text
from gatokit.schemas.errors import ConfigError, ConfigErrors
from gatokit.schemas.manifest import digest, json_digest
from gatokit.schemas.words import ascii_json, one_line, visible, visible_lines, visible_texts

EVIL = "\x1b]0;T\x07\x1b[31mA\x9b31m\u202eR\u2066\u200f[red]B[/red][link=https://e.example]L[/link]:smile:\\"
LINES = "one\nFAKE\rTAB\tNUL\x00NEL\x85SEP\u2028\x7f"
TEXTS = st.text(
    st.one_of(
        st.sampled_from(
            "\x00\x07\x08\t\n\r\x1b\x7f\x85\x9b\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\udcff"
        ),
        st.sampled_from("[]/=+-@|\\`*_<>&#\"',;: aB1"),
        st.characters(),
    ),
    max_size=30,
)
IDS = TEXTS.filter(lambda text: text and "Cs" not in map(unicodedata.category, text))
DRAWN = {Parts, Player, Table, Words}
FORMATTING = {"Cc", "Cs", "Zl", "Zp"}
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
EVERY = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) + "".join(sorted(BIDI))
"""Every control character of C0 and C1, and every mark of direction."""


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal or an editor obeys, without line breaks."""
    return [c for c in text if c != "\n" and (unicodedata.category(c) in FORMATTING or c in BIDI)]


def texts_in(value: Any) -> Iterator[str]:
    """The texts of a value of JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in chain(value, value.values() if isinstance(value, dict) else ()):
            yield from texts_in(item)


def printed(call: Callable[[Output], object], as_json: bool = False) -> tuple[str, str]:
    """What a call prints on standard output and on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        call(Output(as_json))
    return out.getvalue(), err.getvalue()


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")


@given(TEXTS)
@example(EVIL)
@example(LINES)
@example(EVERY)
def test_a_text_is_one_line_and_nothing_in_it_is_obeyed(text: str):
    assert obeyed(visible(text)) == []
    assert "\n" not in visible(text)
    assert len(visible_lines(text)) == text.count("\n") + 1
    assert obeyed("\n".join(visible_lines(text))) == []
    assert len(one_line(text, 10)) <= 100
    plain = [c for c in text if visible(c) == c]
    assert visible("".join(plain)) == "".join(plain)
    shown = "\n".join(visible_lines(text))
    assert visible_texts({"a": (text, [text]), "b": 1}) == {"a": [shown, [shown]], "b": 1}


def test_every_control_character_and_mark_is_escaped():
    assert len(EVERY) == 32 + 33 + 12
    assert visible(EVERY).isascii()
    assert [visible(c) for c in EVERY if len(visible(c)) < 2] == []
    assert obeyed(EVERY) == [c for c in EVERY if c != "\n"]


def test_what_is_escaped_and_what_is_not():
    assert visible(EVIL) == (
        "\\x1b]0;T\\x07\\x1b[31mA\\x9b31m\\u202eR\\u2066\\u200f[red]B[/red][link=https://e.example]L[/link]:smile:\\"
    )
    assert visible(LINES) == "one\\nFAKE\\rTAB\\tNUL\\x00NEL\\x85SEP\\u2028\\x7f"
    assert visible("naïve “quotes” שלום 漢字 👩‍🚀 a\u00a0b") == "naïve “quotes” שלום 漢字 👩‍🚀 a\u00a0b"
    assert visible("name-\udcff") == "name-\\udcff"
    assert visible_lines("a\tb\r\nc") == ["a       b\\r", "c"]


@given(TEXTS)
@example(EVIL)
@example(LINES)
@example(EVERY)
def test_tables_lines_and_notices_show_it(text: str):
    def show(output: Output) -> None:
        output.table(text, ["name", text], [[text, 1], [f"{text}!", None]])
        output.say(text)
        output.notice(text)

    out, err = printed(show)
    assert obeyed(out) == []
    assert err == f"note: {visible(text)}\n"
    assert out.endswith(f"\n{visible(text)}\n")
    # A row a line: title, top, head, rule, two rows, bottom and the line said.
    assert out.count("\n") == 7 + (text != "") + text.count("\n")


def test_markup_in_cells_titles_and_columns_is_text():
    out, _ = printed(lambda output: output.table("[bold]t[/bold]", ["[red]c[/red]"], [["[link=x]v[/link]"], ["a\\"]]))
    assert [line.strip() for line in out.splitlines()] == [
        "[bold]t[/bold]",
        "┏━━━━━━━━━━━━━━━━━━┓",
        "┃ [red]c[/red]     ┃",
        "┡━━━━━━━━━━━━━━━━━━┩",
        "│ [link=x]v[/link] │",
        "│ a\\               │",
        "└──────────────────┘",
    ]


@given(TEXTS, TEXTS)
@example(EVIL, LINES)
def test_errors_show_it_on_one_line(text: str, way_out: str):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        _report(["--json"], "data", f"{text}: is wrong", way_out.replace("\n ", "\n"))
    assert obeyed(err.getvalue()) == []
    assert err.getvalue().count("\n") == 1 + text.count("\n  ")
    assert all(line.startswith(("gatokit: ", "  ")) for line in err.getvalue().splitlines())
    assert out.getvalue().isascii()
    assert obeyed(out.getvalue()) == []
    assert json.loads(out.getvalue())["error"]["message"] == f"{text}: is wrong"


@given(TEXTS)
@example(EVIL)
@example(LINES)
def test_a_traceback_shows_it(text: str):
    err = io.StringIO()
    with redirect_stderr(err):
        try:
            raise ValueError(text)
        except ValueError as error:
            _show_traceback(ValueError, error, error.__traceback__)
    assert obeyed(err.getvalue()) == []
    assert err.getvalue().startswith("Traceback")
    assert visible_lines(f"ValueError: {text}" if text else "ValueError")[0] in err.getvalue()


def test_several_errors_are_a_line_each_and_a_long_one_is_shortened(capsys: pytest.CaptureFixture[str]):
    errors = ConfigErrors()
    for name in ("a\nb", "c" * 5000):
        with errors.collect(name):
            raise ConfigError(f"{name}: is wrong; mend it")
    with pytest.raises(ConfigError) as found:
        errors.check()
    _report([], "config", found.value.problem, found.value.way_out)
    first, second, third = capsys.readouterr().err.splitlines()
    assert (first, second) == ("gatokit: 2 things are wrong:", "  a\\nb: is wrong; mend it")
    assert third == "  " + "c" * 1997 + "…"


@given(TEXTS)
@example(EVIL)
@example(LINES)
@example(EVERY)
def test_json_is_ascii_and_parses_back(text: str):
    out, err = printed(lambda output: output.result({text: [text, float("nan")]}), as_json=True)
    assert out.isascii()
    assert obeyed(out) == []
    assert out.count("\n") == 1
    assert json.loads(out) == {text: [text, None]}
    assert err == ""


@given(TEXTS)
@example(EVIL)
def test_progress_shows_it(text: str):
    from rich.console import Console

    written = io.StringIO()
    for shown, is_terminal in ((bars, True), (lines, False)):
        console = Console(file=written, force_terminal=is_terminal, color_system=None, width=400, legacy_windows=False)
        with shown(console) as progress:
            progress(f"{text}$", 1, 2)
    said = written.getvalue()
    assert f"{visible(text)}$: 1 of 2" in said
    assert f" {visible(text)}$ " in said  # of the bar
    assert set(obeyed(said)) <= {"\x1b", "\r"}  # those of the bar itself
    assert not [c for c in said.replace("\x1b", "").replace("\r", "") if c in obeyed(text)]


@given(TEXTS)
@example(EVIL)
@example(LINES)
@example(EVERY)
def test_a_card_shows_it_and_no_markup_of_it_counts(text: str):
    card = Card(title=text, summary=text, sections=(Section(text, (text, "n"), ((text, "1"),), frozenset({1})),))
    written = markdown(card)
    assert obeyed(written) == []
    assert written.count("\n") == 9
    unescaped = written
    for pair in ("\\\\", *(f"\\{c}" for c in "`*_[]|#~$")):
        unescaped = unescaped.replace(pair, "")
    structure = [line for line in unescaped.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in structure] == [3, 3, 3]
    assert not set("<>`*_[]~$") & set(unescaped)


@given(TEXTS)
@example(EVIL)
@example(LINES)
@example("=cmd|' /C calc'!A0")
@example('"already"')
def test_a_cell_of_a_list_is_no_formula_and_is_read_back(text: str):
    cell = csv_cell(text)
    assert obeyed(cell) == []
    assert "\n" not in cell
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert csv_text(cell) == text


@given(st.lists(IDS, min_size=1, unique=True))
@example([EVIL, LINES, "=1+1", "-5", '"x"', "plain"])
def test_a_list_of_the_explorer_is_read_back_by_a_build(ids: list[str]):
    import pyarrow as pa

    from gatokit.inspection.explorer.query import HEADER, _csv_lines

    rows = pa.record_batch({"episode_id": ids, "task": ids})
    written = (",".join(HEADER) + "\n").encode() + _csv_lines(rows, "d")
    text = written.decode()
    assert obeyed(text) == []
    assert text.count("\n") == 1 + len(ids)
    for row in list(csv.reader(io.StringIO(text)))[1:]:
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)
    listed = EpisodeList(written, "episodes.csv", "d")
    assert listed.find(ids, ids).all()
    listed.check_found("d")


def test_a_line_of_a_log_is_ascii(tmp_path: Path):
    _Log(tmp_path / "log").write("notice", text=EVIL + LINES + "\udcff")
    [line] = (tmp_path / "log").read_text().splitlines()
    assert line.isascii()
    assert obeyed(line) == []
    assert json.loads(line)["text"] == EVIL + LINES + "\udcff"
    assert ascii_json("\x7fé") == '"\\u007f\\u00e9"'


def test_a_name_of_a_file_in_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "a\nb\x1b[31m\u202e[red]"
    folder.mkdir()
    assert main(["inspect", str(folder), "--json"]) == 1
    captured = capsys.readouterr()
    assert obeyed(captured.err) == []
    assert captured.err.startswith(f"gatokit: {tmp_path}/a\\nb\\x1b[31m\\u202e[red] has no manifest.json: ")
    assert captured.err.count("\n") == 1
    assert captured.out.isascii()
    assert json.loads(captured.out)["error"]["message"].startswith(str(folder))


def test_what_libraries_log_is_shown_as_text():
    assert main(["--version"]) == 0
    record = logging.LogRecord("apache_beam", logging.ERROR, "f.py", 1, "failed: %s", (EVIL + LINES,), None)
    assert logging.lastResort is not None
    assert obeyed(logging.lastResort.format(record)) == []
    assert logging.lastResort.format(record).split("\n") == visible_lines(f"failed: {EVIL}{LINES}")


@pytest.fixture
def hostile(mixed: Path, tmp_path: Path) -> Path:
    """A build of somebody else, whose tasks, agents, licence, source and packages are these texts."""
    build = Path(shutil.copytree(mixed, tmp_path / "hostile"))
    names = {"reach": EVIL, "push": LINES, "a": EVERY, "b": LINES}
    for path in (build / "arm").glob("*.parquet"):
        table = pq.read_table(path)
        for name in ("task", "agent", "source_file"):
            if name in table.schema.names:
                at, column = table.schema.names.index(name), table[name].to_pylist()
                changed = [names.get(value, EVIL if name == "source_file" else value) for value in column]
                table = table.set_column(at, name, [changed])
        pq.write_table(table, path)
    described = json.loads((build / "arm" / "dataset.json").read_text())
    described["tasks"] = {names.get(task, task): entry for task, entry in described["tasks"].items()}
    (build / "arm" / "dataset.json").write_text(json.dumps(described))
    content = json.loads((build / "manifest.json").read_text())
    del content["digest"]
    content["packages"][EVIL] = LINES
    content["datasets"][0]["license"] = EVIL
    content["config"]["datasets"][0] |= {"source": EVIL, "license": LINES}
    content["config_digest"] = json_digest(content["config"])
    for entry in content["files"]:
        data = (build / entry["path"]).read_bytes()
        entry |= {"size": len(data), "blake2b": digest(data)}
    content["digest"] = json_digest(content)
    (build / "manifest.json").write_text(json.dumps(content))
    return build


def test_every_view_of_a_hostile_build_shows_it(
    hostile: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = pq.read_table(next((hostile / "arm").glob("*.index.parquet"))).to_pylist()
    id_ = next(row["episode_id"] for row in rows if row["kept"] and row["task"] in (EVIL, LINES))
    card = tmp_path / "CARD.md"
    for words in (
        [hostile],
        [hostile, "--dataset", "arm"],
        [hostile, "--task", EVIL],
        [hostile, "--task", LINES, "--dataset", "arm"],
        [hostile, "--episode", id_, "--dataset", "arm"],
        [hostile, "--at", "0.9"],
        [hostile, "--keep", "{best: 3}", "--task", EVIL],
        [hostile, "--against", mixed],
        [hostile, "--against", "0.5", "--dataset", "arm"],
        [hostile, "--card", card],
    ):
        for more in ([], ["--json"]):
            assert main(["inspect", *map(str, words), *more]) == 0, words
            out, err = capsys.readouterr()
            assert obeyed(out + err) == [], words
            assert out
            if more:
                assert out.isascii()
                json.loads(out)
    assert obeyed(card.read_text()) == []
    assert "TAB\\\\tNUL\\\\x00" in card.read_text()
    for words in ([hostile, "--task", EVIL + "?"], [hostile, "--dataset", LINES], [hostile, "--episode", EVIL]):
        assert main(["inspect", *map(str, words)]) == 2
        out, err = capsys.readouterr()
        assert (obeyed(err), err.count("\n"), out) == ([], 1, "")
    assert main(["verify", str(hostile)]) == 1
    out, err = capsys.readouterr()
    assert obeyed(out + err) == []
    assert EVIL[:3] not in out
    assert main(["publish", str(hostile), "--out", str(tmp_path / "out")]) == 0
    assert obeyed((tmp_path / "out" / "README.md").read_text()) == []


def test_a_report_of_a_hostile_build_shows_it(hostile: Path, tmp_path: Path):
    assert main(["inspect", str(hostile), "--html", str(tmp_path / "report.html")]) == 0
    html = (tmp_path / "report.html").read_text()
    data = json.loads(gzip.decompress(base64.b64decode(re.search(r'id="data">([^<]*)</script>', html)[1])))
    texts = list(texts_in(data))
    assert [text for text in texts if obeyed(text)] == []
    for text in (EVIL, LINES, EVERY):
        assert any("\n".join(visible_lines(text)) in found for found in texts), text
    assert obeyed(re.search(r"<title>.*</title>", html, re.DOTALL)[0]) == []


def test_the_explorer_of_a_hostile_build_shows_it(hostile: Path):
    directory = open_directory(hostile)
    datasets = list(directory.datasets.values())
    opened = Opened(directory)
    browse = Browse(datasets, Selection(directory.datasets), opened.show, lambda: None)
    drawn = [
        widget for part in (browse, browse.tasks, opened) for widget in vars(part).values() if type(widget) in DRAWN
    ]
    models = [widget.get_root() for widget in drawn]
    assert len(models) > len(DRAWN)
    browse.dataset.value = "arm"
    browse.task.value = EVIL
    asyncio.run(browse.refresh())
    browse._open(0)
    texts = [text for model in models for text in texts_in(model.data.data)]
    assert visible(EVIL) in texts
    assert visible(EVERY) in texts  # the agent
    assert [text for text in texts if obeyed(text)] == []
    assert set(map(visible, (EVIL, LINES))) < set(browse.task.options)
    assert [name for name in browse.task.options if obeyed(name)] == []
    document = Parts(data={"parts": [{"text": f"one\ntwo{EVIL}"}]}).get_root()
    assert document.data.data == {"parts": [{"text": f"one\ntwo{visible(EVIL)}"}]}
