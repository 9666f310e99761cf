import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatokit.pipelines.formats import json_lines
from gatokit.pipelines.formats.json_lines import read_object
from gatokit.schemas.errors import DataError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


def read(folder: Path, text: str | bytes, *lists: str, values: tuple[str, ...] = ()) -> dict[str, Any]:
    (folder / "a.json").write_bytes(text.encode() if isinstance(text, str) else text)
    return read_object(str(folder / "a.json"), "a.json", lists, only_abc, values=values, hint="give another")


def only_abc(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key in "abc"}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.dictionaries(st.text().filter("list".__ne__), JSON, max_size=5),
    ascii=st.booleans(),
    indent=st.none() | st.just(1),
)
def test_values_are_those_of_json(tmp_path: Path, value: dict[str, Any], ascii: bool, indent: int | None) -> None:
    value = {"list": [], **value}
    text = json.dumps(value, indent=indent, ensure_ascii=ascii)
    lists = [key for key, inner in value.items() if isinstance(inner, list)]
    others = tuple(value.keys() - lists)
    assert list(read(tmp_path, text.encode("utf-8", "surrogatepass"), *lists, values=others)) == list(value)
    assert read(tmp_path, text, *lists, values=others) == value


def test_a_file_in_full(tmp_path: Path) -> None:
    text = '\ufeff{"n": 1e3, "list": [{"a": 1, "d": 2}, {"b": {"d": 3, "c": 4}}], "d": [1, [2]], "none": [ ]}'
    assert list(read(tmp_path, text, "none", "list", values=("n", "m")).items()) == [
        ("n", 1000.0),
        ("list", [{"a": 1}, {"b": {"c": 4}}]),
        ("none", []),
    ]


def test_bytes_that_are_no_utf8_cost_only_their_own_text(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"a": ["\xff", "b"]}', "a") == {"a": ["\udcff", "b"]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is damaged at character 0: the text ends early"),
        ("[1]", "holds no JSON object but a list"),
        ('{"a": [1, 2', "is damaged at character 11: the text ends early"),
        ('{"a": [1 2]}', "is damaged at character 9: Expecting ',' delimiter"),
        ('{"a": [1]} x', "is damaged at character 11: Extra data"),
        ("{1: [1]}", "is damaged at character 1: Expecting property name enclosed in double quotes"),
        ('{"b": [1]}', "has no list 'a'"),
        ('{"a": 1}', "has no list 'a'"),
        ('{"a": [' + "[" * 100_000, "is damaged: values are nested too deeply"),
        ('{"a": [' + "1" * 5000 + "]}", "is damaged: Exceeds the limit (4300 digits) for integer string conversion"),
        ('{"a": ["' + "x" * 5_000_000, "is damaged at character 7: Unterminated string starting at"),
    ],
)
def test_what_is_no_such_object(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, text, "a")
    assert str(caught.value).startswith(f"a.json: {sentence}")
    assert str(caught.value).endswith("; give another")


def test_a_file_above_the_bound_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "LARGEST_OBJECT", 100)
    with pytest.raises(DataError, match=r"a\.json: has 101 bytes, more than the 2 GiB that .*; give another"):
        read(tmp_path, '{"a": []}' + " " * 92, "a")
    assert read(tmp_path, '{"a": []}' + " " * 91, "a") == {"a": []}


def test_fields_that_nobody_reads_take_no_memory(tmp_path: Path) -> None:
    entry = json.dumps({"a": 1, "segmentation": list(range(100))})
    text = '{"list": [' + ", ".join([entry] * 10_000) + "]}"
    tracemalloc.start()
    try:
        assert read(tmp_path, text, "list")["list"] == [{"a": 1}] * 10_000
        assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    finally:
        tracemalloc.stop()
