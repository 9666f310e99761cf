"""A spec's id and order never change, and neither do the reserved token ids."""

import itertools
import json
from typing import Any

import pytest

from gatokit.schemas.index import BAD_REASONS, INDEX, REASONS, RULE_REASONS, TASKS
from gatokit.schemas.manifest import (
    EpisodeSpec,
    FieldSpec,
    ImageSpec,
    TokenizerSettings,
    canonical_json,
    digest,
    json_digest,
)
from gatokit.schemas.tokens import IMAGE_ID, TokenKind

FIELDS = [
    FieldSpec(
        path="observation/camera",
        kind="image",
        dtype="uint8",
        shape=(60, 84, 3),
        image=ImageSpec(height=64, width=80, codec="png"),
    ),
    FieldSpec(path="observation/mission", kind="text", dtype="str"),
    FieldSpec(path="observation/state", kind="continuous", dtype="float32", shape=(2, 3)),
    FieldSpec(path="action", kind="continuous", dtype="float64", shape=(4,), range=((-1.0, 1.0),)),
]


def field(path: str) -> FieldSpec:
    return FieldSpec(path=path, kind="discrete", dtype="int64")


def test_id_of_a_literal_spec() -> None:
    assert EpisodeSpec(fields=tuple(FIELDS)).id == "7f5c055edde1"


def test_id_does_not_depend_on_the_order_in_which_fields_are_given() -> None:
    ids = {EpisodeSpec.ordered(list(order)).id for order in itertools.permutations(FIELDS)}
    assert ids == {"7f5c055edde1"}


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"image": ImageSpec(height=64, width=96, codec="png")}),
        (0, {"image": ImageSpec(height=64, width=80, codec="jpeg")}),
        (0, {"image": ImageSpec(height=64, width=80, codec="png", quality=90)}),
        (2, {"shape": (3, 2)}),
        (2, {"dtype": "float64"}),
        (2, {"path": "observation/states"}),
        (3, {"range": ((-1.0, 2.0),)}),
        (3, {"kind": "discrete", "range": None, "num": 4}),
    ],
)
def test_id_depends_on_everything_that_decides_tokens(number: int, change: dict[str, object]) -> None:
    fields = list(FIELDS)
    fields[number] = fields[number].model_copy(update=change)
    assert EpisodeSpec(fields=tuple(fields)).id != EpisodeSpec(fields=tuple(FIELDS)).id


def test_id_survives_json() -> None:
    spec = EpisodeSpec(fields=tuple(FIELDS))
    again = EpisodeSpec.model_validate(json.loads(spec.model_dump_json()))
    assert again == spec
    assert again.id == "7f5c055edde1"


def test_fields_are_ordered_by_components_and_actions_come_last() -> None:
    paths = ["action/b", "observation/a-b", "observation/a/b", "action", "observation/a", "observation/Z", "action/a"]
    paths += ["observation/é", "observation/a/b/c", "observation/a0"]
    spec = EpisodeSpec.ordered([field(path) for path in paths])
    assert [item.path for item in spec.fields] == [
        "observation/Z",
        "observation/a",
        "observation/a/b",
        "observation/a/b/c",
        "observation/a-b",  # as whole strings this would stand before observation/a/b
        "observation/a0",
        "observation/é",
        "action",
        "action/a",
        "action/b",
    ]
    assert [item.path for item in spec.action] == ["action", "action/a", "action/b"]
    assert len(spec.observation) == 7


def test_a_field_whose_name_begins_like_action_is_an_observation() -> None:
    assert not field("observation/action").is_action
    assert field("action/x").is_action


def test_tokens_of_each_field() -> None:
    assert [item.tokens for item in FIELDS] == [4 * 5, None, 6, 4]
    assert field("action").tokens == 1


def test_canonical_json() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == b'{"a":"\xc3\xa9","b":[1,2.5,null]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_digest_is_blake2b() -> None:
    # The value of RFC 7693's reference implementation for "abc" with 16 bytes of output.
    assert digest(b"abc", 16) == "cf4ab791c62b8d2b2109c90275287816"
    assert len(digest(b"abc")) == 64
    assert json_digest({"b": 1, "a": 2}) == digest(b'{"a":2,"b":1}')


@pytest.mark.parametrize(("offset", "separator"), [(0, 33024), (33024, 34048)])
def test_separator_is_the_last_id(offset: int, separator: int) -> None:
    settings = TokenizerSettings.of(offset)
    assert (settings.separator, settings.vocabulary_size) == (separator, separator + 1)
    assert settings.vocabulary_size < IMAGE_ID


def test_another_discrete_offset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^discrete_offset must be 0 or 33024, not 32000$"):
        TokenizerSettings.of(32000)


def test_kinds_are_those_of_the_record_format() -> None:
    assert {kind.name: kind.value for kind in TokenKind} == {
        "TEXT": 1,
        "IMAGE": 2,
        "DISCRETE": 3,
        "CONTINUOUS": 4,
        "SEPARATOR": 5,
        "DISCRETE_ACTION": 6,
        "CONTINUOUS_ACTION": 7,
    }


def test_columns_of_the_index() -> None:
    assert {f"{column.name}: {column.type}" for column in INDEX} == {
        "episode_id: string",
        "task: string",
        "agent: string",
        "spec: string",
        "order: double",
        "split: string",
        "steps: int64",
        "return: double",
        "kept: bool",
        "reason: string",
        "detail: string",
        "lost: int64",
        "tokens: int64",
        "part: int32",
        "first_record: int64",
        "record_tokens: list<item: int32>",
        "source_file: string",
        "source_position: int64",
    }
    assert INDEX.metadata == TASKS.metadata == {b"gatokit.index": b"2"}


def test_a_reason_is_of_one_kind() -> None:
    assert not RULE_REASONS.keys() & BAD_REASONS.keys()
    assert {"below_threshold", "too_short", "not_finite", "corrupt_record"} <= REASONS.keys()


NEW: dict[str, Any] = {
    "source": ("a", "b/c"),
    "every": "episode",
    "offset": -1,
    "clip": True,
    "levels": (0.0, 5.0),
    "channels_first": True,
    "max_length": 8,
}


@pytest.mark.parametrize("name", NEW)
def test_an_attribute_stands_in_the_json_only_if_it_is_not_the_default(name: str) -> None:
    plain = field("observation/a")
    other = plain.model_copy(update={name: NEW[name]})
    assert set(plain.model_dump()) == {"path", "kind", "dtype", "shape", "range", "num", "image"}
    assert set(other.model_dump()) == {*plain.model_dump(), name}
    assert FieldSpec.model_validate_json(other.model_dump_json()) == other
    assert EpisodeSpec(fields=(plain,)).id != EpisodeSpec(fields=(other,)).id
