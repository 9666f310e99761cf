"""A config is either wholly right or refused with one sentence that names file, field and value."""

import re
from pathlib import Path

import pytest

from gatokit.schemas.config import BuildConfig, read_config
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.errors import ConfigError

DATASET = "{name: a, kind: episodes, source: data/*"


def written(directory: Path, text: str) -> Path:
    path = directory / "build.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def top(line: str) -> str:
    """A config that is right but for ``line`` at its top."""
    return f"vocabulary: v.model\ndatasets: [{DATASET}}}]\n{line}\n"


def inside(line: str) -> str:
    """A config that is right but for ``line`` in its dataset."""
    return f"vocabulary: v.model\ndatasets:\n- {DATASET}, {line}}}\n"


def refused(directory: Path, text: str, message: str) -> None:
    path = written(directory, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value) == f"{path}{message}"
    assert caught.value.exit_status == 2


def only(directory: Path, line: str) -> BuildConfig:
    return read_config(written(directory, inside(line)))


def test_the_smallest_config_and_its_defaults(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, top("")))
    assert config.model_dump(by_alias=True, exclude_none=True) == {
        "vocabulary": "v.model",
        "discrete_offset": 0,
        "chunk_tokens": 4096,
        "shard_bytes": 268435456,
        "max_episode_bytes": 1073741824,
        "max_bad_fraction": 0.01,
        "free_bad_rows": 10,
        "max_lost_bytes": 0.0,
        "max_bad_images": 0.5,
        "max_unknown_pieces": 0.001,
        "holdout": 0.01,
        "seed": 0,
        "datasets": (
            {
                "name": "a",
                "kind": "episodes",
                "source": "data/*",
                "task": {"from": "directory"},
                "merge": False,
                "keep": {
                    "min_return": 0.8,
                    "streams": "agent",
                },
                "fields": {},
                "images": {"quality": 95},
                "weight": 1.0,
            },
        ),
    }


FULL = """
vocabulary: v.model
discrete_offset: 33024
chunk_tokens: 16
shard_bytes: 1024
max_episode_bytes: 1
max_bad_fraction: 1
free_bad_rows: 0
max_lost_bytes: 0.25
max_bad_images: 1
max_unknown_pieces: 1e-2
holdout: 0
seed: -3
datasets:
  - name: A.b_c-9
    kind: episodes
    source: "data [1]/ü b/*"
    task: {metadata: env}
    agent: {metadata: agent_id}
    order: {metadata: episode_index}
    id: {metadata: uuid}
    splits: [train, test]
    merge: true
    keep: {min_return: 0, streams: task, random_return: {reach: -1.5, push: 2}}
    fields:
      observation/debug: {as: skip}
      action: {as: continuous, range: [[-2, 2], [0, 1e-3]]}
      action/gripper: {as: discrete, num: 1024}
      observation/camera: {images: {size: [16, 32], codec: jpeg, quality: 1}}
    hz: 20
    license: CC-BY-4.0
    images: {size: [64, 80], codec: png, quality: 100}
    weight: 1e-3
  - {name: b, kind: episodes, source: /abs, task: {constant: one}, keep: {success: done}}
  - {name: c, kind: episodes, source: c, keep: {all: true}}
"""


def test_every_key_is_read(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, FULL))
    first, second, third = config.datasets
    assert (config.discrete_offset, config.chunk_tokens, config.shard_bytes, config.seed) == (33024, 16, 1024, -3)
    assert (config.max_episode_bytes, config.max_bad_fraction, config.holdout) == (1, 1.0, 0.0)
    assert (config.free_bad_rows, config.max_lost_bytes) == (0, 0.25)
    assert (config.max_bad_images, config.max_unknown_pieces) == (1.0, 0.01)
    assert (first.name, first.source) == ("A.b_c-9", "data [1]/ü b/*")
    assert (first.task.metadata, second.task.constant, third.task.source) == ("env", "one", "directory")
    assert first.agent is not None
    assert first.order is not None
    assert first.id is not None
    assert (first.agent.metadata, first.order.metadata, first.id.metadata) == ("agent_id", "episode_index", "uuid")
    assert (first.splits.train, first.splits.held_out, first.merge, first.hz, first.weight) == (
        ("train", "test"),
        None,
        True,
        20.0,
        0.001,
    )
    assert first.keep == Keep(min_return=0, streams="task", random_return={"reach": -1.5, "push": 2.0})
    assert (second.keep.success.key, third.keep.all, third.keep.min_return) == ("done", True, None)
    assert first.fields["observation/debug"].kind == "skip"
    assert first.fields["action"].pairs == ((-2.0, 2.0), (0.0, 0.001))
    assert first.fields["action/gripper"].num == 1024
    camera = first.fields["observation/camera"].images
    assert camera is not None
    assert (camera.size, camera.codec, camera.quality) == ((16, 32), "jpeg", 1)
    assert (first.images.size, first.images.codec, first.images.quality) == ((64, 80), "png", 100)


def test_one_range_is_one_pair(tmp_path: Path) -> None:
    config = only(tmp_path, "fields: {action: {range: [-2, 2]}, action/x: {as: continuous}}")
    assert config.datasets[0].fields["action"].pairs == ((-2.0, 2.0),)
    assert config.datasets[0].fields["action/x"].pairs is None


def test_one_random_return_for_all_tasks(tmp_path: Path) -> None:
    assert only(tmp_path, "keep: {min_return: 1, random_return: -2}").datasets[0].keep.random_return == -2.0


def test_yaml_merge_keys_and_anchors(tmp_path: Path) -> None:
    text = (
        "vocabulary: v\ndatasets:\n- {name: a, kind: episodes, source: a, images: &i {size: [16, 16], codec: png}}\n"
        "- {name: b, kind: episodes, source: b, images: {<<: *i, codec: jpeg}}\n"
    )
    images = read_config(written(tmp_path, text)).datasets[1].images
    assert (images.size, images.codec) == ((16, 16), "jpeg")


ONE_OF_TASK = "give exactly one of {metadata: …}, {field: …}, {path: …}, {from: …}, {constant: …}"
RULE_OF_KEEP = (
    "give {all: true}, or one or more of {min_return: …}, {return: …}, {success: …}, {where: …}, {episodes: …}, "
    "{best: …}, {sample: …}"
)
ENDS = "must be [low, high], two finite numbers, of which one may be null"
AMOUNT = "must be a whole number of episodes a task, or a share of them between 0 and 1"
RANGE = (
    "must be [low, high], two finite numbers, or a list of one such pair a component, "
    "or data, or {quantiles: [low, high]}"
)
RANDOM = "must be a finite number, or such a number for each task, {TASK: NUMBER}"
SIZE = "must be [height, width] in pixels, two whole numbers"
NEAREST = "height and width must be multiples of 16; the nearest are"
UNKNOWN = "unknown key; remove it or check its spelling"
MAPPING = "must be a mapping with the keys vocabulary and datasets"
NAME = "must be letters, digits, '_', '.' and '-', and begin with a letter or digit"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("vocab: 3", "vocab: unknown key; did you mean 'vocabulary'?"),
        ("foo: 3", f"foo: {UNKNOWN}"),
        ("discrete_offset: 1024", "discrete_offset: must be 0 or 33024 (got 1024)"),
        ("chunk_tokens: 0", "chunk_tokens: must be greater than or equal to 1 (got 0)"),
        ("chunk_tokens: 16777217", "chunk_tokens: must be less than or equal to 16777216 (got 16777217)"),
        ("chunk_tokens: 1.5", "chunk_tokens: must be a whole number (got 1.5)"),
        ("chunk_tokens: true", "chunk_tokens: must be a whole number (got True)"),
        ("chunk_tokens: many", "chunk_tokens: must be a whole number (got 'many')"),
        ("shard_bytes: 1023", "shard_bytes: must be greater than or equal to 1024 (got 1023)"),
        ("max_episode_bytes: 0", "max_episode_bytes: must be greater than or equal to 1 (got 0)"),
        ("max_bad_fraction: 1.1", "max_bad_fraction: must be less than or equal to 1 (got 1.1)"),
        ("max_bad_fraction: -0.1", "max_bad_fraction: must be greater than or equal to 0 (got -0.1)"),
        ("free_bad_rows: -1", "free_bad_rows: must be greater than or equal to 0 (got -1)"),
        ("max_lost_bytes: 2", "max_lost_bytes: must be less than or equal to 1 (got 2)"),
        ("max_bad_fraction: .nan", "max_bad_fraction: must be a finite number (got nan)"),
        ("holdout: 1", "holdout: must be less than 1 (got 1)"),
        ("holdout: -0.1", "holdout: must be greater than or equal to 0 (got -0.1)"),
        ("holdout: true", "holdout: must be a number (got True)"),
        ("holdout: [1]", "holdout: must be a number (got [1])"),
        ("seed: x", "seed: must be a whole number (got 'x')"),
        ("seed: null", "seed: must be a whole number (got None)"),
        ("7: 8", "[7]: must be a string; quote it (got 7)"),
    ],
)
def test_rules_of_the_build(tmp_path: Path, line: str, message: str) -> None:
    refused(tmp_path, top(line), f": {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("foo: 1", f".foo: {UNKNOWN}"),
        ("feilds: {}", ".feilds: unknown key; did you mean 'fields'?"),
        ("task: x", f".task: {ONE_OF_TASK} (got 'x')"),
        ("task: {}", f".task: {ONE_OF_TASK} (got {{}})"),
        ("task: {metadata: null}", f".task: {ONE_OF_TASK} (got {{'metadata': None}})"),
        (
            "task: {from: directory, constant: x}",
            f".task: {ONE_OF_TASK} (got {{'from': 'directory', 'constant': 'x'}})",
        ),
        ("task: {from: file}", ".task.from: must be 'directory' (got 'file')"),
        ("task: {from: directory, x: 1}", f".task.x: {UNKNOWN}"),
        ("task: {constant: 3}", ".task.constant: must be a string; quote it (got 3)"),
        ("task: {constant: ''}", ".task.constant: must not be empty (got '')"),
        ("agent: agent_id", f".agent: {ONE_OF_TASK} (got 'agent_id')"),
        ("agent: {}", f".agent: {ONE_OF_TASK} (got {{}})"),
        ("order: {metadata: 3}", ".order.metadata: must be a string; quote it (got 3)"),
        ("order: {metadata: m, x: 1}", f".order.x: {UNKNOWN}"),
        ("id: {metadata: ''}", ".id.metadata: must not be empty (got '')"),
        ("splits: [1]", ".splits.train[0]: must be a string; quote it (got 1)"),
        ("splits: []", ".splits.train: must not be empty (got [])"),
        ("splits: [a, b, a]", ".splits: name each split once (got {'train': ['a', 'b', 'a']})"),
        ("merge: maybe", ".merge: must be true or false (got 'maybe')"),
        ("merge: 1", ".merge: must be true or false (got 1)"),
        ("keep: 0.8", f".keep: {RULE_OF_KEEP} (got 0.8)"),
        ("keep: {}", f".keep: {RULE_OF_KEEP} (got {{}})"),
        ("keep: {min_return: null}", f".keep: {RULE_OF_KEEP} (got {{'min_return': None}})"),
        ("keep: {streams: task}", f".keep: {RULE_OF_KEEP} (got {{'streams': 'task'}})"),
        (
            "keep: {min_return: 1, all: true}",
            ".keep: all keeps everything, and min_return does not; remove one (got {'min_return': 1, 'all': True})",
        ),
        ("keep: {min_return: 1.5}", ".keep.min_return: must be less than or equal to 1 (got 1.5)"),
        ("keep: {min_return: -1}", ".keep.min_return: must be greater than or equal to 0 (got -1)"),
        ("keep: {min_return: .nan}", ".keep.min_return: must be a finite number (got nan)"),
        ("keep: {min_return: true}", ".keep.min_return: must be a number (got True)"),
        ("keep: {min_return: 1, streams: x}", ".keep.streams: must be 'agent' or 'task' (got 'x')"),
        ("keep: {min_return: 1, x: 1}", f".keep.x: {UNKNOWN}"),
        ("keep: {best: 1, sampel: 1}", ".keep.sampel: unknown key; did you mean 'sample'?"),
        ("keep: {all: false}", ".keep.all: must be True (got False)"),
        (
            "keep: {success: 3}",
            ".keep.success: give exactly one of {key: …}, {metadata: …}, {field: …}, {last_reward: …} (got 3)",
        ),
        (
            "keep: {all: true, streams: task}",
            ".keep: streams belongs to min_return; remove it (got {'all': True, 'streams': 'task'})",
        ),
        ("keep: {best: 2, seed: 0}", ".keep: seed belongs to sample; remove it (got {'best': 2, 'seed': 0})"),
        ("keep: {best: 2, digest: a}", ".keep: digest belongs to episodes; remove it (got {'best': 2, 'digest': 'a'})"),
        ("keep: {episodes: a, digest: a}", ".keep.digest: must be 64 hexadecimal digits in lower case (got 'a')"),
        ("keep: {best: 0}", ".keep.best: must be at least 1 episode a task (got 0)"),
        ("keep: {best: -0.5}", f".keep.best: {AMOUNT} (got -0.5)"),
        ("keep: {best: 1.0}", f".keep.best: {AMOUNT} (got 1.0)"),
        ("keep: {best: true}", f".keep.best: {AMOUNT} (got True)"),
        ("keep: {sample: .nan}", f".keep.sample: {AMOUNT} (got nan)"),
        ("keep: {sample: half}", f".keep.sample: {AMOUNT} (got 'half')"),
        ("keep: {sample: 0.5, seed: 1.5}", ".keep.seed: must be a whole number (got 1.5)"),
        (
            "keep: {return: 3}",
            ".keep.return: must be [low, high], two finite numbers, of which one may be null (got 3)",
        ),
        (
            "keep: {return: [1, .inf]}",
            ".keep.return: must be [low, high], two finite numbers, of which one may be null (got [1, inf])",
        ),
        (
            "keep: {return: [null, null]}",
            ".keep.return: must have an end; give {all: true} to keep every return (got [None, None])",
        ),
        ("keep: {return: [2, 1]}", ".keep.return: low must not be above high (got [2, 1])"),
        (
            "keep: {where: return > task}",
            ".keep.where: compares return, a number, with task, a string, by > (got 'return > task')",
        ),
        ("keep: {where: ''}", ".keep.where: must not be empty (got '')"),
        ("keep: {episodes: [a]}", ".keep.episodes: must be a string (got ['a'])"),
        ("keep: {min_return: 1, random_return: x}", f".keep.random_return: {RANDOM} (got 'x')"),
        ("keep: {min_return: 1, random_return: .inf}", f".keep.random_return: {RANDOM} (got inf)"),
        ("keep: {min_return: 1, random_return: [1]}", f".keep.random_return: {RANDOM} (got [1])"),
        ("keep: {min_return: 1, random_return: {a: x}}", f".keep.random_return: {RANDOM} (got {{'a': 'x'}})"),
        ("keep: {min_return: 1, random_return: {3: 1}}", f".keep.random_return: {RANDOM} (got {{3: 1}})"),
        ("fields: [a]", ".fields: must be a mapping (got ['a'])"),
        ("fields: {action: skip}", ".fields.action: must be a mapping (got 'skip')"),
        ("fields: {action: {x: 1}}", f".fields.action.x: {UNKNOWN}"),
        ("fields: {action: {rang: 1}}", ".fields.action.rang: unknown key; did you mean 'range'?"),
        (
            "fields: {observation/x: {as: box}}",
            ".fields.observation/x.as: must be 'skip', 'text', 'image', 'depth', 'discrete' or 'continuous' "
            "(got 'box')",
        ),
        ("fields: {action: {range: 3}}", f".fields.action.range: {RANGE} (got 3)"),
        ("fields: {action: {range: []}}", f".fields.action.range: {RANGE} (got [])"),
        ("fields: {action: {range: [1]}}", f".fields.action.range: {RANGE} (got [1])"),
        ("fields: {action: {range: [1, 2, 3]}}", f".fields.action.range: {RANGE} (got [1, 2, 3])"),
        ("fields: {action: {range: [a, b]}}", f".fields.action.range: {RANGE} (got ['a', 'b'])"),
        ("fields: {action: {range: [[0, 1], 2]}}", f".fields.action.range: {RANGE} (got [[0, 1], 2])"),
        ("fields: {action: {range: [0, .inf]}}", f".fields.action.range: {RANGE} (got [0, inf])"),
        (
            "fields: {action: {range: [1, -1]}}",
            ".fields.action.range: low must be below high, not [1, -1] (got [1, -1])",
        ),
        (
            "fields: {action: {range: [[0, 1], [3, 3]]}}",
            ".fields.action.range: low must be below high, not [3, 3] (got [[0, 1], [3, 3]])",
        ),
        ("fields: {action: {num: 0}}", ".fields.action.num: must be greater than or equal to 1 (got 0)"),
        ("fields: {action: {num: 1025}}", ".fields.action.num: must be less than or equal to 1024 (got 1025)"),
        ("fields: {action: {num: x}}", ".fields.action.num: must be a whole number (got 'x')"),
        (
            "fields: {observation: {images: {size: [60, 80]}}}",
            f".fields.observation.images.size: {NEAREST} [64, 80] (got [60, 80])",
        ),
        ("images: 64", ".images: must be a mapping (got 64)"),
        ("images: {x: 1}", f".images.x: {UNKNOWN}"),
        ("images: {size: 64}", f".images.size: {SIZE} (got 64)"),
        ("images: {size: [64]}", f".images.size: {SIZE} (got [64])"),
        ("images: {size: [64, 64, 3]}", f".images.size: {SIZE} (got [64, 64, 3])"),
        ("images: {size: [64.5, 64]}", f".images.size: {SIZE} (got [64.5, 64])"),
        ("images: {size: [84, 84]}", f".images.size: {NEAREST} [80, 80] (got [84, 84])"),
        ("images: {size: [0, 16]}", f".images.size: {NEAREST} [16, 16] (got [0, 16])"),
        ("images: {size: [-16, 16]}", f".images.size: {NEAREST} [16, 16] (got [-16, 16])"),
        ("images: {codec: webp}", ".images.codec: must be 'png' or 'jpeg' (got 'webp')"),
        ("images: {quality: 0}", ".images.quality: must be greater than or equal to 1 (got 0)"),
        ("images: {quality: 101}", ".images.quality: must be less than or equal to 100 (got 101)"),
        ("hz: 0", ".hz: must be greater than 0 (got 0)"),
        ("hz: .inf", ".hz: must be a finite number (got inf)"),
        ("license: 3", ".license: must be a string; quote it (got 3)"),
        ("weight: 0", ".weight: must be greater than 0 (got 0)"),
        ("weight: heavy", ".weight: must be a number (got 'heavy')"),
        ("weight: true", ".weight: must be a number (got True)"),
        ("x: 1, y: 2", f".x: {UNKNOWN}; datasets[0].y: {UNKNOWN}"),
        ("x: 1, y: 2, z: 3, hz: 0", ".hz: must be greater than 0 (got 0); datasets[0].x: " + UNKNOWN + "; and 2 more"),
    ],
)
def test_rules_of_a_dataset(tmp_path: Path, line: str, message: str) -> None:
    refused(tmp_path, inside(line), f": datasets[0]{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", MAPPING),
        ("- 1", MAPPING),
        ("hello", MAPPING),
        ("vocabulary: v", "datasets: this key is required"),
        ("datasets: []", "datasets: must not be empty (got [])"),
        (f"vocabulary: 3\ndatasets: [{DATASET}}}]", "vocabulary: must be a string; quote it (got 3)"),
        (f"vocabulary: ''\ndatasets: [{DATASET}}}]", "vocabulary: must not be empty (got '')"),
        ("vocabulary: v\ndatasets:", "datasets: must be a list (got None)"),
        ("vocabulary: v\ndatasets: []", "datasets: must not be empty (got [])"),
        ("vocabulary: v\ndatasets: {name: a}", "datasets: must be a list (got {'name': 'a'})"),
        ("vocabulary: v\ndatasets: [a]", "datasets[0]: must be a mapping (got 'a')"),
        (
            "vocabulary: v\ndatasets: [{}]",
            "datasets[0].kind: this key is required",
        ),
        (
            "vocabulary: v\ndatasets: [{name: a, kind: movies, source: s}]",
            "datasets[0].kind: must be 'episodes', 'text', 'image_text', 'image_question_answer', 'interleaved' "
            "(got 'movies')",
        ),
        (
            "vocabulary: v\ndatasets: [{name: a, kind: episodes, source: ''}]",
            "datasets[0].source: must not be empty (got '')",
        ),
        (
            f"vocabulary: v\ndatasets: [{DATASET}}}, {DATASET}}}]",
            "datasets[1].name: datasets[0] has the name 'a' already; choose another",
        ),
        *(
            (f"vocabulary: v\ndatasets: [{{name: '{name}', kind: episodes, source: s}}]", message)
            for name, message in [
                ("", f"datasets[0].name: {NAME} (got '')"),
                ("a/b", f"datasets[0].name: {NAME} (got 'a/b')"),
                (".a", f"datasets[0].name: {NAME} (got '.a')"),
                ("a b", f"datasets[0].name: {NAME} (got 'a b')"),
                ("é", f"datasets[0].name: {NAME} (got 'é')"),
                (
                    "manifest.json",
                    "datasets[0].name: the build writes a file 'manifest.json' of its own; choose another name",
                ),
            ]
        ),
    ],
)
def test_rules_of_the_whole(tmp_path: Path, text: str, message: str) -> None:
    refused(tmp_path, text, f": {message}")


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    refused(tmp_path, inside(f"hz: {'x' * 99}"), ": datasets[0].hz: must be a number (got '" + "x" * 56 + "...)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vocabulary: v\nvocabulary: w\n", ", line 2: the key 'vocabulary' stands twice; remove one"),
        ("vocabulary: v\n'vocabulary': w\n", ", line 2: the key 'vocabulary' stands twice; remove one"),
        (inside("keep: {all: true,\n all: true}"), ", line 4: the key 'all' stands twice; remove one"),
        (
            "vocabulary: !!python/object/apply:os.system [exit]\n",
            ", line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; write a plain value",
        ),
        (
            "a: 1\nvocabulary: !!python/name:os.system\n",
            ", line 2: the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed; write a plain value",
        ),
        ("vocabulary: !mine v\n", ", line 1: the tag '!mine' is not allowed; write a plain value"),
        (
            "vocabulary: [v\ndatasets: x\n",
            ", line 2: this is not valid YAML: while parsing a flow sequence, expected ',' or ']', but got ':'",
        ),
        (
            "vocabulary: v\n\tdatasets: x\n",
            ", line 2: this is not valid YAML: while scanning for the next token, "
            "found character '\\t' that cannot start any token",
        ),
        (
            "vocabulary: v\n---\nvocabulary: w\n",
            ", line 2: this is not valid YAML: expected a single document in the stream, but found another document",
        ),
        (
            "vocabulary: \x01\n",
            ": this is not valid YAML: unacceptable character #x0001: special characters are not allowed",
        ),
        ("vocabulary: 2020-99-99\n", ": this is not valid YAML: month must be in 1..12"),
        ("vocabulary: *other\n", ", line 1: this is not valid YAML: found undefined alias 'other'"),
        ("? [a]\n: 1\n", ", line 1: found unhashable key"),
    ],
)
def test_what_is_no_plain_yaml(tmp_path: Path, text: str, message: str) -> None:
    refused(tmp_path, text, message)


def test_endless_nesting_is_no_traceback(tmp_path: Path) -> None:
    path = written(tmp_path, "vocabulary: " + "[" * 3000)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: this is not valid YAML: maximum recursion depth")):
        read_config(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in [
        (tmp_path / "none.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (written(tmp_path, "") / "below", "Not a directory"),
    ]:
        said = f"{path}: cannot read the config: {reason}; give the path of a YAML file"
        with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
            read_config(path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "build.yaml"
    path.write_bytes(b"vocabulary: \xff\n")
    said = f"{path}: the config is not UTF-8 text: 'utf-8' codec can't decode byte 0xff in position 12: "
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        read_config(path)
