import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.formats import json_arrays
from gatokit.pipelines.formats.json_arrays import JsonArraysError, read_arrays

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def read(text: str | bytes, *names: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    lists: dict[str, list[Any]] = {name: [] for name in names}
    data = text.encode() if isinstance(text, str) else text
    return read_arrays(io.BytesIO(data), {name: lists[name].append for name in names}), lists


@settings(max_examples=300)
@given(value=st.dictionaries(st.text(), JSON, max_size=5), chunk=st.integers(1, 40), indent=st.none() | st.just(1))
def test_values_are_those_of_json_wherever_the_text_is_cut(
    value: dict[str, Any], chunk: int, indent: int | None
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=chunk % 2 == 0)
    arrays = {key: inner for key, inner in value.items() if isinstance(inner, list)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "CHUNK", chunk)
        rest, lists = read(text, *arrays)
    assert lists == arrays
    assert rest == {key: inner for key, inner in value.items() if key not in arrays}


def test_a_file_in_full() -> None:
    text = '\ufeff{"info": {"year": 2014}, "images": [{"id": 1}, {"id": 2}], "other": [1, [2]], "none": [ ], "n": 1e3}'
    rest, lists = read(text, "images", "none")
    assert rest == {"info": {"year": 2014}, "n": 1000.0}
    assert lists == {"images": [{"id": 1}, {"id": 2}], "none": []}


def test_bytes_that_are_no_utf8_cost_only_their_own_text() -> None:
    assert read(b'{"a": ["\xff", "b"]}', "a")[1] == {"a": ["\udcff", "b"]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is damaged at character 0: the text ends early"),
        ("[1]", "is damaged at character 0: '{' is missing"),
        ('{"a": [1, 2', "is damaged at character 11: the text ends early"),
        ('{"a": [1 2]}', "is damaged at character 9: ']' is missing"),
        ('{"a": [1,]}', "is damaged at character 9: Expecting value"),
        ('{"a": [1]} x', "is damaged at character 11: more follows the end of the object"),
        ("{1: [1]}", "is damaged at character 2: a key is no string"),
        ('{"b": [1]}', "has no list 'a'"),
        ('{"a": 1}', "has no list 'a'"),
        ('{"a": [' + "[" * 100_000, "is damaged at character 7: values are nested too deeply"),
    ],
)
def test_what_is_no_such_object(text: str, sentence: str) -> None:
    with pytest.raises(JsonArraysError) as caught:
        read(text, "a")
    assert str(caught.value) == sentence


def test_an_element_without_end_is_not_read_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_arrays, "LONGEST", 10_000)
    with pytest.raises(JsonArraysError, match="Unterminated string"):
        read('{"a": ["' + "x" * 5_000_000, "a")
