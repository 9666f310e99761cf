"""From a source's fields to a spec: what is taken without being told, and what is refused."""

from collections.abc import Iterable
from typing import Any

import pytest
import yaml

from gatokit.pipelines.episodes.reader import SourceDirectory, SourceFeatures, SourceField
from gatokit.pipelines.episodes.spec import episode_specs, field_notices, field_uses, rule_of
from gatokit.schemas.config_episodes import EpisodesConfig
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, ImageSpec

ACTION = SourceField(path="action", dtype="float32", shape=(4,))
STATE = SourceField(path="observation/state", dtype="float32", shape=(3,))


def config(**changes: Any) -> EpisodesConfig:
    return EpisodesConfig.model_validate({"name": "a", "kind": "episodes", "source": "s", **changes})


def spec_of(*fields: SourceField, **changes: Any) -> EpisodeSpec:
    [spec] = episode_specs([directory(fields)], config(**changes), "datasets[0]")
    return spec


def directory(steps: Iterable[SourceField], metadata: Iterable[SourceField] = ()) -> SourceDirectory:
    return SourceDirectory("/data/reach", "reach", SourceFeatures(steps=tuple(steps), metadata=tuple(metadata)), ())


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
            {"as": "text"},
            "observation/x is a Video, which has no tokens" + SKIP,
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
        (
            source("uint8", 4, 16, 16),
            {"as": "image"},
            "observation/x of dtype uint8 and shape [4, 16, 16] cannot be image" + SKIP,
        ),
        (
            source("uint16", 16, 16, 1, form="image"),
            {},
            "observation/x of dtype uint16 and shape [16, 16, 1] is no picture of 8-bit values; "
            "give it {as: depth, range: [0, 10000]} if these are depths in millimetres under datasets[0].fields",
        ),
        (
            source("float32", 20, 20),
            {"as": "depth"},
            "observation/x as depth needs the depths that become black and white and has frames of 20x20, no multiple "
            "of 16; give it {range: [0, 10], images: {size: [16, 16]}} if these are metres under datasets[0].fields",
        ),
        (
            source("float32", 16, 16, 3),
            {"as": "depth", "range": [0, 1]},
            "observation/x of dtype float32 and shape [16, 16, 3] is no picture of one depth a pixel" + SKIP,
        ),
        (
            source("int64"),
            {"every": "episode"},
            "observation/x is no text and takes no every; remove every under datasets[0].fields",
        ),
        (
            source("float32"),
            {"offset": -1},
            "observation/x of dtype float32 as continuous takes no offset; remove offset under datasets[0].fields",
        ),
        (
            source("float32", 3),
            {"max_length": 4},
            "observation/x has values of one length in every step and takes no max_length; "
            "remove max_length under datasets[0].fields",
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
    directories = [
        directory([STATE, ACTION, SourceField(path="reward", dtype="float32")]),
        directory([SourceField(path="observation/other", dtype="float32"), ACTION]),
    ]
    rules: dict[str, Any] = {"observation": {}, "observation/other": {}, "action": {}}
    assert len(episode_specs(directories, config(fields=rules), "datasets[3]")) == 2
    for path, meant in (
        ("observation/sta", "did you mean 'observation/state'? "),
        ("action/x", "did you mean 'action'? "),
        ("observation/state/deeper", "did you mean 'observation/state'? "),
    ):
        with pytest.raises(ConfigError) as caught:
            episode_specs(directories, config(fields={path: {}}), "datasets[3]")
        assert str(caught.value) == (
            f"datasets[3].fields: the source has no field {path!r}; "
            f"{meant}its fields are action, observation/other, observation/state"
        )


RGB = SourceField(path="observation/rgb", dtype="uint8", shape=(32, 48, 3), form="image")
INSTRUCTION = SourceField(path="language_instruction", dtype="str", form="string", type_name="Text")
TASK = SourceField(path="episode_metadata/task", dtype="str", form="string", type_name="Text")
VELOCITY = SourceField(path="action_dict/joint_velocity", dtype="float64", shape=(7,))
GRIPPER = SourceField(path="action_dict/gripper", dtype="float64", shape=(1,))
REWARD = SourceField(path="reward", dtype="float32")


def paths_of(*steps: SourceField, metadata: tuple[SourceField, ...] = (), **changes: Any) -> dict[str, Any]:
    """The path of every field of the spec, and where it is read from."""
    [spec] = episode_specs([directory(steps, metadata)], config(**changes), "datasets[0]")
    return {field.path: field.source for field in spec.fields}


@pytest.mark.parametrize(
    ("observe", "expected"),
    [
        (["language_instruction"], {"observation/language_instruction": ("language_instruction",)}),
        (["episode_metadata/task"], {"observation/episode_metadata/task": ("episode_metadata/task",)}),
        (["task"], {"observation/episode_metadata/task": ("episode_metadata/task",)}),
        (
            [["language_instruction", "task"]],
            {"observation/language_instruction": ("language_instruction", "episode_metadata/task")},
        ),
        (["action_dict"], {f"observation/{item.path}": (item.path,) for item in (GRIPPER, VELOCITY)}),
        (["reward", "observation/state"], {"observation/reward": ("reward",)}),
    ],
)
def test_what_is_observed_beside_the_observation(observe: list[Any], expected: dict[str, Any]) -> None:
    steps = (STATE, ACTION, INSTRUCTION, GRIPPER, VELOCITY, REWARD)
    assert paths_of(*steps, metadata=(TASK,), observe=observe) == {
        **expected,
        "observation/state": None,
        "action": None,
    }


def test_a_field_of_the_observation_that_stands_in_for_another_has_no_tokens_of_its_own() -> None:
    text = INSTRUCTION.model_copy(update={"path": "observation/instruction"})
    paths = paths_of(STATE, ACTION, INSTRUCTION, text, observe=[["language_instruction", "observation/instruction"]])
    assert paths["observation/language_instruction"] == ("language_instruction", "observation/instruction")
    assert "observation/instruction" not in paths


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("action_dict/joint_velocity", {"action": ("action_dict/joint_velocity",)}),
        ("action_dict", {"action/gripper": (GRIPPER.path,), "action/joint_velocity": (VELOCITY.path,)}),
        (
            ["action", "action_dict/joint_velocity"],
            {"action/action": ("action",), "action/joint_velocity": (VELOCITY.path,)},
        ),
        ("observation/state", {"action": ("observation/state",)}),
    ],
)
def test_what_the_action_is(action: Any, expected: dict[str, Any]) -> None:
    observation = {} if action == "observation/state" else {"observation/state": None}
    other = {"observation/rgb": None}
    assert paths_of(STATE, RGB, ACTION, GRIPPER, VELOCITY, action=action) == other | observation | expected


def test_actions_of_one_name_keep_their_whole_paths() -> None:
    fields = [SourceField(path=f"{arm}/joints", dtype="float32", shape=(7,)) for arm in ("left", "right")]
    assert list(paths_of(STATE, *fields, action=["left/joints", "right/joints"])) == [
        "observation/state",
        "action/left/joints",
        "action/right/joints",
    ]


def test_a_rule_goes_by_the_path_that_the_source_gives() -> None:
    rules = {"action_dict": {"range": [-2, 2]}, "language_instruction": {"every": "episode"}}
    spec = spec_of(
        *(STATE, INSTRUCTION, VELOCITY), action=VELOCITY.path, observe=["language_instruction"], fields=rules
    )
    assert [field.every for field in spec.observation] == ["episode", "step"]
    assert spec.action[0].range == ((-2.0, 2.0),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observe": ["language_instructions"]},
            "datasets[0].observe: the source has no field 'language_instructions'; "
            "did you mean 'language_instruction'? its fields are action, action_dict/joint_velocity, "
            "episode_metadata/task, language_instruction, observation/state",
        ),
        (
            {"observe": ["goal", ["actoin"]], "action": "x", "fields": {"y": {}}},
            "datasets[0].fields: the source has no field 'y'; datasets[0].observe: the source has no field 'goal'; "
            "datasets[0].observe: the source has no field 'actoin'; datasets[0].action: the source has no field 'x'; "
            "did you mean 'action'? its fields are action, action_dict/joint_velocity, episode_metadata/task, "
            "language_instruction, observation/state",
        ),
        (
            {"fields": {"language_instruction": {"as": "text"}}},
            "datasets[0].fields: language_instruction is neither observation nor action, so its rule would do nothing; "
            "write observe: [language_instruction] or action: language_instruction under datasets[0]",
        ),
        (
            {"observe": ["action"]},
            "datasets[0].observe: action is the action, which is to be predicted; remove it",
        ),
        (
            {"fields": {"action": {"as": "skip"}}},
            "/data/reach: no action field is left to tokenize; see datasets[0].fields, or choose datasets[0].action "
            "from language_instruction, action_dict/joint_velocity",
        ),
        (
            {"observe": [["observation/state", "language_instruction"]]},
            "/data/reach: field observation/state is to be replaced where it is empty, which texts alone can be; "
            "name one field under datasets[0].fields",
        ),
    ],
)
def test_names_that_do_not_do(changes: dict[str, Any], message: str) -> None:
    found = directory([STATE, ACTION, INSTRUCTION, VELOCITY, REWARD], [TASK])
    with pytest.raises(ConfigError) as caught:
        episode_specs([found], config(**changes), "datasets[0]")
    assert str(caught.value) == message


def test_the_keys_of_a_group_hold_for_the_fields_that_they_suit() -> None:
    fields = [
        SourceField(path="action/move", dtype="float32", shape=(2,)),
        SourceField(path="action/open", dtype="bool"),
        SourceField(path="action/mode", dtype="int64"),
        SourceField(path="observation/small", dtype="uint8", shape=(20, 20, 3)),
        STATE,
    ]
    rules = {
        "action": {"range": [-2, 2], "clip": True, "offset": -1},
        "observation": {"images": {"size": [16, 16]}, "max_length": 3, "every": "episode"},
    }
    spec = spec_of(*fields, fields=rules)
    assert {field.path: (field.range, field.clip, field.offset, field.num) for field in spec.action} == {
        "action/mode": (None, False, -1, None),
        "action/move": (((-2.0, 2.0),), True, 0, None),
        "action/open": (None, False, 0, 2),
    }
    assert [(field.tokens, field.every, field.max_length) for field in spec.observation] == [
        (1, "step", None),
        (3, "step", None),
    ]


def test_all_complaints_about_a_source_stand_in_one_message() -> None:
    cameras = [RGB.model_copy(update={"path": f"observation/{name}", "shape": (240, 424, 3)}) for name in "abcd"]
    depth = SourceField(path="observation/depth 0", dtype="uint16", shape=(480, 640, 1), form="image")
    other = SourceField(path="observation/e", dtype="float32", shape=(3,))
    rules = {"observation/e": {"range": [0, 1]}, "observation/a": {"images": {"codec": "jpeg"}}}
    with pytest.raises(ConfigError) as caught:
        spec_of(*cameras, depth, other, ACTION, fields=rules)
    problem, way_out = caught.value.problem, caught.value.way_out
    assert problem == (
        "/data/reach: 6 fields cannot become tokens:"
        + "".join(f"\n  observation/{name} has frames of 240x424, no multiple of 16" for name in "abcd")
        + "\n  observation/depth 0 of dtype uint16 and shape [480, 640, 1] is no picture of 8-bit values"
        "\n  observation/e is no continuous action and takes no range"
    )
    assert way_out is not None
    block = way_out.removeprefix("under datasets[0] this would do:\n")
    assert yaml.safe_load(block) == {
        "fields": {
            "observation/a": {"images": {"codec": "jpeg", "size": [240, 416]}},
            **{f"observation/{name}": {"images": {"size": [240, 416]}} for name in "bcd"},
            "observation/depth 0": {"as": "depth", "range": [0, 10_000]},
        }
    }
    assert block.endswith("\n    # observation/e: remove range")
    fields = {**yaml.safe_load(block)["fields"], "observation/e": {}}
    assert len(spec_of(*cameras, depth, other, ACTION, fields=fields).observation) == 6


@pytest.mark.parametrize(
    ("rule", "field", "expected"),
    [
        (
            {"as": "depth", "range": [0.1, 5]},
            source("float32", 32, 48),
            {"dtype": "float32", "shape": (32, 48), "levels": (0.1, 5.0)},
        ),
        (
            {"as": "depth", "range": [0, 4000]},
            source("uint16", 32, 48, 1, form="image"),
            {"dtype": "uint16", "shape": (32, 48, 1), "levels": (0.0, 4000.0)},
        ),
        ({"as": "image"}, source("float32", 32, 48, 3), {"dtype": "float32", "shape": (32, 48, 3), "levels": (0, 1)}),
        (
            {"as": "image", "range": [0, 255]},
            source("float32", 32, 48, 3),
            {"dtype": "float32", "shape": (32, 48, 3), "levels": (0, 255)},
        ),
        (
            {"as": "image"},
            source("uint8", 3, 32, 48),
            {"dtype": "uint8", "shape": (3, 32, 48), "channels_first": True},
        ),
        (
            {"as": "image"},
            source("float32", 1, 32, 48),
            {"dtype": "float32", "shape": (1, 32, 48), "levels": (0, 1), "channels_first": True},
        ),
        ({"as": "image"}, source("uint8", 32, 48, 4), {"dtype": "uint8", "shape": (32, 48, 4)}),
        ({}, source("uint8", 32, 48, 4, form="image"), {"dtype": "uint8", "shape": (32, 48, 4)}),
        ({"as": "image"}, source("bool", 32, 48), {"dtype": "bool", "shape": (32, 48), "levels": (0, 1)}),
        ({"as": "image"}, source("int32", 32, 48), {"dtype": "int32", "shape": (32, 48), "levels": (0, 255)}),
    ],
)
def test_pictures_of_other_forms(rule: dict[str, Any], field: SourceField, expected: dict[str, Any]) -> None:
    spec = spec_of(field, ACTION, fields={"observation/x": rule} if rule else {})
    assert spec.observation == (FieldSpec(path="observation/x", kind="image", image=image_spec(32, 48), **expected),)


def test_codes_offsets_and_ragged_values() -> None:
    fields = [
        SourceField(path="observation/codes", dtype="int32", shape=(512,)),
        SourceField(path="observation/gripper", dtype="int64", num=None),
        SourceField(path="observation/points", dtype="float32", shape=(None, 3), form="ragged", counted=True),
    ]
    rules = {
        "observation/codes": {"as": "text"},
        "observation/gripper": {"offset": -1, "num": 3},
        "observation/points": {"max_length": 5},
    }
    assert spec_of(*fields, ACTION, fields=rules).observation == (
        FieldSpec(path="observation/codes", kind="text", dtype="str"),
        FieldSpec(path="observation/gripper", kind="discrete", dtype="int64", num=3, offset=-1),
        FieldSpec(path="observation/points", kind="continuous", dtype="float32", shape=(5, 3), max_length=5),
    )


def test_what_becomes_of_every_field() -> None:
    video = SourceField(path="observation/video", dtype="", form="unreadable", type_name="Video")
    ragged = SourceField(path="observation/words", dtype="int64", shape=(None,), form="ragged", counted=True)
    features = directory([ACTION, INSTRUCTION, RGB, STATE, video, ragged, REWARD, VELOCITY], [TASK]).features
    uses = field_uses(
        features, config(observe=[["language_instruction", "task"]], fields={VELOCITY.path: {"as": "skip"}})
    )
    assert [(use.source.path, use.belongs_to, use.spec and use.spec.tokens, use.why, use.way_out) for use in uses] == [
        ("action", "step", 4, "", ""),
        ("language_instruction", "step", None, "", ""),
        ("observation/rgb", "step", 6, "", ""),
        ("observation/state", "step", 3, "", ""),
        ("observation/video", "step", None, "is a Video, which has no tokens", "give it {as: skip}"),
        (
            "observation/words",
            "step",
            None,
            "has another number of values in every step (shape [None])",
            "give it {max_length: N}, the most values of a step",
        ),
        ("reward", "step", None, "read as reward", ""),
        ("action_dict/joint_velocity", "step", None, "skipped by the config", ""),
        ("episode_metadata/task", "episode", None, "stands in for language_instruction where that is empty", ""),
    ]
    assert not any(use.is_error for use in uses)


def test_what_the_user_is_told() -> None:
    fields = [
        *(STATE, ACTION, INSTRUCTION, REWARD),
        SourceField(path="observation/video", dtype="", form="unreadable", type_name="Video"),
        *(SourceField(path=f"observation/depth_{number}", dtype="float32", shape=(40, 50)) for number in (1, 2)),
        SourceField(path="observation/embedding", dtype="float32", shape=(512,)),
        SourceField(path="observation/frames", dtype="uint8", shape=(84, 84, 4)),
        SourceField(path="observation/codes", dtype="int32", shape=(512,)),
    ]
    assert field_notices([directory(fields)], config()) == [
        "a: fields of the steps without tokens, for they are neither observation nor action: language_instruction; "
        "`observe: [PATH]` makes one a part of the observation, `action: PATH` the action",
        "a: observation/video is left out, for it is a Video, which has no tokens; give it {as: skip}",
        "a: observation/depth_1, observation/depth_2: 2,000 tokens a step each; each number is a token: give it "
        "{as: depth, range: [0, 10], images: {size: [32, 48]}} if it is a picture of depths in metres, "
        "{as: image, images: {size: [32, 48]}} if it is a picture, or {as: skip} to leave it out",
        "a: observation/embedding: 512 tokens a step; each number is a token: give it {as: skip} to leave it out",
        "a: observation/frames: 28,224 tokens a step; each number is a token: give it "
        "{as: image, images: {size: [80, 80]}} if it is a picture whose fourth channel is alpha, which is dropped, "
        "or {as: skip} to leave it out",
        "a: observation/codes: 512 tokens a step; each number is a token: give it {as: text} if they are codes of "
        "characters, or {as: skip} to leave it out",
        "a: a step has 33,256 tokens without its texts, so that two steps do not fit into a window of 1,024",
    ]
    assert field_notices([directory([STATE, ACTION, REWARD])], config()) == []
    pictures = [
        SourceField(path="observation/depth", dtype="float32", shape=(16, 16)),
        SourceField(path="observation/rgba", dtype="uint8", shape=(16, 16, 4), form="image"),
    ]
    rules = {"observation/depth": {"as": "depth", "range": [0.25, 5]}}
    assert field_notices([directory([*pictures, ACTION])], config(fields=rules)) == [
        "a: observation/depth: stored in 8 bits, 0.25 and below as black, 5 and above as white",
        "a: observation/rgba: the fourth channel, alpha, is dropped",
    ]
