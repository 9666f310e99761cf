"""From a source's fields to a spec: what is taken without being told, and what is refused."""

from typing import Any

import pytest

from gatokit.pipelines.episodes.reader import SourceFeatures, SourceField, check_rules, episode_spec, rule_of
from gatokit.schemas.config_episodes import EpisodesConfig
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, ImageSpec

ACTION = SourceField(path="action", dtype="float32", shape=(4,))
STATE = SourceField(path="observation/state", dtype="float32", shape=(3,))


def config(**changes: Any) -> EpisodesConfig:
    return EpisodesConfig.model_validate({"name": "a", "kind": "episodes", "source": "s", **changes})


def spec_of(*fields: SourceField, **changes: Any) -> EpisodeSpec:
    features = SourceFeatures(steps=fields, metadata=())
    return episode_spec(features, config(**changes), "datasets[0]", "/data/reach")


def source(dtype: str, *shape: int | None, **rest: Any) -> SourceField:
    return SourceField(path="observation/x", dtype=dtype, shape=shape, **rest)


def image_spec(height: int, width: int, **rest: Any) -> ImageSpec:
    return ImageSpec(height=height, width=width, **rest)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (source("float32", 3), {"kind": "continuous", "dtype": "float32", "shape": (3,)}),
        (source("float64"), {"kind": "continuous", "dtype": "float64"}),
        (source("float16", 2, 3), {"kind": "continuous", "dtype": "float16", "shape": (2, 3)}),
        (source("int64"), {"kind": "discrete", "dtype": "int64"}),
        (source("int32", 7, num=5), {"kind": "discrete", "dtype": "int32", "shape": (7,), "num": 5}),
        (source("uint8", 9, 9), {"kind": "discrete", "dtype": "uint8", "shape": (9, 9)}),
        (source("uint8", 9, 9, 2), {"kind": "discrete", "dtype": "uint8", "shape": (9, 9, 2)}),
        (source("bool", 2), {"kind": "discrete", "dtype": "bool", "shape": (2,), "num": 2}),
        (source("str", form="string", type_name="Text"), {"kind": "text", "dtype": "str"}),
        (
            source("uint8", 32, 48, 3),
            {"kind": "image", "dtype": "uint8", "shape": (32, 48, 3), "image": image_spec(32, 48)},
        ),
        (
            source("uint8", 16, 16, 1, form="image"),
            {"kind": "image", "dtype": "uint8", "shape": (16, 16, 1), "image": image_spec(16, 16)},
        ),
    ],
)
def test_what_a_field_becomes_without_a_rule(field: SourceField, expected: dict[str, Any]) -> None:
    spec = spec_of(field, ACTION)
    assert spec.observation == (FieldSpec(path="observation/x", **expected),)


def test_actions() -> None:
    fields = [
        STATE,
        SourceField(path="action/move", dtype="float64", shape=(2,)),
        SourceField(path="action/button", dtype="int64", num=4),
        SourceField(path="action/open", dtype="bool"),
        SourceField(path="action/other", dtype="int32"),
    ]
    assert spec_of(*fields).action == (
        FieldSpec(path="action/button", kind="discrete", dtype="int64", num=4),
        FieldSpec(path="action/move", kind="continuous", dtype="float64", shape=(2,), range=((-1.0, 1.0),)),
        FieldSpec(path="action/open", kind="discrete", dtype="bool", num=2),
        FieldSpec(path="action/other", kind="discrete", dtype="int32"),
    )


def test_only_observations_and_actions_become_tokens_in_their_order() -> None:
    others = [SourceField(path=path, dtype="float32") for path in ("reward", "discount", "is_last", "actions")]
    nested = SourceField(path="observation/a/b", dtype="float32")
    flat = SourceField(path="observation/a-b", dtype="float32")
    spec = spec_of(*others, ACTION, STATE, flat, nested)
    assert [field.path for field in spec.fields] == [
        "observation/a/b",
        "observation/a-b",
        "observation/state",
        "action",
    ]


@pytest.mark.parametrize(
    ("rule", "field", "expected"),
    [
        ({"as": "discrete"}, source("uint8", 16, 16, 3), {"kind": "discrete", "dtype": "uint8", "shape": (16, 16, 3)}),
        (
            {"as": "discrete", "num": 12},
            source("uint8", 7, 7, 3),
            {"kind": "discrete", "dtype": "uint8", "shape": (7, 7, 3), "num": 12},
        ),
        ({"num": 12}, source("int64", num=99), {"kind": "discrete", "dtype": "int64", "num": 12}),
        ({"as": "continuous"}, source("int64", 2), {"kind": "continuous", "dtype": "int64", "shape": (2,)}),
        (
            {"images": {"size": [32, 48], "codec": "jpeg", "quality": 80}},
            source("uint8", 84, 84, 3),
            {
                "kind": "image",
                "dtype": "uint8",
                "shape": (84, 84, 3),
                "image": image_spec(32, 48, codec="jpeg", quality=80),
            },
        ),
        (
            {"as": "image", "images": {"size": [32, 48]}},
            source("str", form="string"),
            {"kind": "image", "dtype": "uint8", "image": image_spec(32, 48)},
        ),
    ],
)
def test_what_a_rule_makes_of_a_field(rule: dict[str, Any], field: SourceField, expected: dict[str, Any]) -> None:
    spec = spec_of(field, ACTION, fields={"observation/x": rule})
    assert spec.observation == (FieldSpec(path="observation/x", **expected),)


def test_the_range_of_an_action() -> None:
    one = spec_of(STATE, ACTION, fields={"action": {"range": [-2, 2]}})
    each = spec_of(STATE, ACTION, fields={"action": {"range": [[-1, 1], [0, 1], [0, 2], [0, 3]]}})
    assert one.action[0].range == ((-2.0, 2.0),)
    assert each.action[0].range == ((-1.0, 1.0), (0.0, 1.0), (0.0, 2.0), (0.0, 3.0))


def test_images_of_the_dataset_hold_for_every_image_without_its_own() -> None:
    wide = SourceField(path="observation/wide", dtype="uint8", shape=(30, 60, 3))
    rules = {"observation/wide": {"images": {"size": [16, 32]}}}
    spec = spec_of(source("uint8", 84, 84, 3), wide, ACTION, images={"size": [64, 80], "codec": "png"}, fields=rules)
    assert [field.image for field in spec.observation] == [image_spec(16, 32), image_spec(64, 80, codec="png")]


def test_a_rule_holds_below_its_path_and_the_closest_one_wins() -> None:
    dataset = config(fields={"observation": {"as": "skip"}, "observation/a": {"as": "discrete"}})
    kinds = {
        path: rule_of(dataset, path).kind for path in ("observation/b", "observation/a/c", "observation/ab", "action")
    }
    assert kinds == {"observation/b": "skip", "observation/a/c": "discrete", "observation/ab": "skip", "action": None}


def test_skipped_fields_are_absent_whatever_they_are() -> None:
    video = SourceField(path="observation/video", dtype="", form="unreadable", type_name="Video")
    spec = spec_of(video, STATE, ACTION, fields={"observation/video": {"as": "skip"}})
    assert [field.path for field in spec.fields] == ["observation/state", "action"]


SKIP = "; give it {as: skip} under datasets[0].fields"


@pytest.mark.parametrize(
    ("field", "rule", "message"),
    [
        (
            source("", form="unreadable", type_name="Video"),
            {},
            "observation/x is a Video, which has no tokens" + SKIP,
        ),
        (
            source("str", 3, form="string"),
            {},
            "observation/x of dtype str and shape [3] cannot be text" + SKIP,
        ),
        (
            source("float32"),
            {"as": "discrete"},
            "observation/x of dtype float32 and shape [] cannot be discrete" + SKIP,
        ),
        (
            source("bool", 2),
            {"as": "continuous"},
            "observation/x of dtype bool and shape [2] cannot be continuous" + SKIP,
        ),
        (source("float32", 3), {"as": "text"}, "observation/x of dtype float32 and shape [3] cannot be text" + SKIP),
        (source("float32", 3), {"as": "image"}, "observation/x of dtype float32 and shape [3] cannot be image" + SKIP),
        (
            source("str", form="string"),
            {"as": "continuous"},
            "observation/x of dtype str and shape [] cannot be continuous" + SKIP,
        ),
        (source("complex64"), {}, "observation/x of dtype complex64 and shape [] cannot be discrete" + SKIP),
        (source("float32", 3, 0), {}, "observation/x is empty: its shape is [3, 0]" + SKIP),
        (
            source("uint8", 16, 16, 4),
            {"as": "image"},
            "observation/x of dtype uint8 and shape [16, 16, 4] is no image of one or three 8-bit channels" + SKIP,
        ),
        (
            source("uint16", 16, 16, 1, form="image"),
            {},
            "observation/x of dtype uint16 and shape [16, 16, 1] is no image of one or three 8-bit channels" + SKIP,
        ),
        (
            source("uint8", None, None, 3, form="image"),
            {},
            "observation/x has frames of unknown size; give it {images: {size: [H, W]}} under datasets[0].fields",
        ),
        (
            source("str", form="string"),
            {"as": "image"},
            "observation/x has frames of unknown size; give it {images: {size: [H, W]}} under datasets[0].fields",
        ),
        (
            source("uint8", 84, 90, 3, form="image"),
            {},
            "observation/x has frames of 84x90, no multiple of 16; "
            "give it {images: {size: [80, 96]}} under datasets[0].fields",
        ),
        (
            source("uint8", 7, 7, 3),
            {},
            "observation/x has frames of 7x7, no multiple of 16; "
            "give it {images: {size: [16, 16]}}, or {as: discrete} if it is no image, under datasets[0].fields",
        ),
        (
            source("float32", 3),
            {"range": [0, 1]},
            "observation/x is no continuous action and takes no range; remove range under datasets[0].fields",
        ),
        (
            source("float32", 3),
            {"num": 4},
            "observation/x of dtype float32 as continuous takes no num; remove num under datasets[0].fields",
        ),
        (
            source("float32", 3),
            {"images": {"codec": "png"}},
            "observation/x is continuous and takes no images; remove images under datasets[0].fields",
        ),
    ],
)
def test_what_an_observation_cannot_be(field: SourceField, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(field, ACTION, fields={"observation/x": rule})
    assert str(caught.value) == f"/data/reach: field {message}"


@pytest.mark.parametrize(
    ("field", "rule", "message"),
    [
        (
            SourceField(path="action", dtype="str", form="string"),
            {},
            "action is a text, and actions are discrete or continuous; give it {as: skip}",
        ),
        (
            SourceField(path="action", dtype="uint8", shape=(16, 16, 3)),
            {},
            "action is an image, and actions are discrete or continuous; give it {as: skip}",
        ),
        (
            SourceField(path="action", dtype="int64"),
            {"range": [0, 1]},
            "action is no continuous action and takes no range; remove range",
        ),
        (
            ACTION,
            {"range": [[0, 1], [0, 1]]},
            "action has 4 components and range has 2 pairs; give one or as many",
        ),
        (ACTION, {"num": 4}, "action of dtype float32 as continuous takes no num; remove num"),
    ],
)
def test_what_an_action_cannot_be(field: SourceField, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(STATE, field, fields={"action": rule})
    assert str(caught.value) == f"/data/reach: field {message} under datasets[0].fields"


@pytest.mark.parametrize(
    ("fields", "role"),
    [((ACTION,), "observation"), ((STATE,), "action"), ((), "observation")],
)
def test_a_spec_has_an_observation_and_an_action(fields: tuple[SourceField, ...], role: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(*fields)
    assert str(caught.value) == f"/data/reach: no {role} field is left to tokenize; see datasets[0].fields"


def test_positions_of_a_step_can_be_counted() -> None:
    large = SourceField(path="observation/x", dtype="float32", shape=(65_531,))
    assert [field.tokens for field in spec_of(large, STATE, ACTION).observation] == [3, 65_531]
    larger = SourceField(path="observation/x", dtype="float32", shape=(65_532,))
    with pytest.raises(ConfigError) as caught:
        spec_of(larger, STATE, ACTION)
    assert str(caught.value) == (
        "/data/reach: a step's observation has 65535 tokens, more than 65534; "
        "skip a field or give smaller images.size under datasets[0]"
    )


def test_a_rule_for_a_field_that_no_source_has() -> None:
    sources = [
        SourceFeatures(steps=(STATE, ACTION, SourceField(path="reward", dtype="float32")), metadata=()),
        SourceFeatures(steps=(SourceField(path="observation/other", dtype="float32"), ACTION), metadata=()),
    ]
    check_rules(config(fields={"observation": {}, "observation/other": {}, "action": {}}), sources, "datasets[3]")
    for path, meant in (
        ("observation/sta", "did you mean 'observation/state'? "),
        ("action/x", "did you mean 'action'? "),
        ("observation/state/deeper", "did you mean 'observation/state'? "),
    ):
        with pytest.raises(ConfigError) as caught:
            check_rules(config(fields={path: {}}), sources, "datasets[3]")
        assert str(caught.value) == (
            f"datasets[3].fields: the source has no field {path!r}; "
            f"{meant}its fields are action, observation/other, observation/state"
        )
