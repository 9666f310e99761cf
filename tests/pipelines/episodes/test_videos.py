"""Videos of an episode become images of its steps: as TFDS stores frames, as plain pixels, and as files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import yaml

from gatokit.cli.main import main
from gatokit.inspection import open_directory
from gatokit.inspection.read.directory import DatasetReader
from gatokit.pipelines.run import build
from gatokit.schemas.errors import ConfigError
from gatokit.tokenizers.image_codec import decode
from tests.helpers.videos import numbered_frames, video_file

F = tfds.features
STEPS = {
    "observation": F.Tensor(shape=(2,), dtype=np.float32),
    "action": F.Tensor(shape=(2,), dtype=np.float32),
    **{name: F.Scalar(dtype=np.bool_) for name in ("is_first", "is_last")},
}
COUNT = 7
FRAMES = np.stack(numbered_frames(COUNT, 32, 48))
RULE = {"images": {"size": [32, 48], "codec": "png"}}
Build = Callable[..., DatasetReader]


def episode(**values: Any) -> dict[str, Any]:
    steps = []
    for step in range(COUNT):
        numbers = np.full(2, step / 10, np.float32)
        flags = {"is_first": step == 0, "is_last": step == COUNT - 1}
        steps.append({"observation": numbers, "action": numbers, **flags})
    return {"steps": steps, **values}


@pytest.fixture
def built(tmp_path: Path, write_tfds: Callable[..., Path]) -> Build:
    """``built(feature, values, rule)``: a build of episodes with the field ``view`` of these values."""

    def go(feature: Any, values: list[Any], rule: dict[str, Any], last_step: str = "real") -> DatasetReader:
        write_tfds(tmp_path / "set", STEPS, [episode(view=value) for value in values], metadata={"view": feature})
        dataset = {"name": "d", "kind": "episodes", "source": "set", "last_step": last_step, "keep": {"all": True}}
        dataset |= {"observe": ["view"], "fields": {"view": rule}}
        content = {"max_bad_fraction": 0.9, "holdout": 0, "datasets": [dataset]}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
        build(tmp_path / "c.yaml", tmp_path / "out")
        return open_directory(tmp_path / "out").datasets["d"]

    return go


def frames_of(reader: DatasetReader, number: int = 0) -> np.ndarray:
    stored = reader.episode(f"recorded-train.tfrecord-00000#{number}").decode()
    return np.stack([decode(image.data) for image in stored["observation/view"]])


KINDS = {
    "a Video": (F.Video(shape=(None, 32, 48, 3)), FRAMES, RULE),
    "a Video of unknown size": (F.Video(shape=(None, None, None, 3)), FRAMES, RULE),
    "a sequence of images": (F.Sequence(F.Image(shape=(32, 48, 3), encoding_format="png")), list(FRAMES), RULE),
    "pixels": (F.Tensor(shape=(None, 32, 48, 3), dtype=np.uint8), FRAMES, RULE),
    "packed pixels": (F.Tensor(shape=(None, 32, 48, 3), dtype=np.uint8, encoding="zlib"), FRAMES, RULE),
    "a file": (F.Text(), video_file(FRAMES), {"as": "image", **RULE}),
}


@pytest.mark.parametrize(("feature", "value", "rule"), KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("last_step", ["real", "padding"])
def test_each_step_has_its_frame(built: Build, feature: Any, value: Any, rule: dict[str, Any], last_step: str) -> None:
    frames = frames_of(built(feature, [value], rule, last_step))
    assert np.array_equal(frames, FRAMES[: COUNT - (last_step == "padding")])


def test_frames_are_resized_as_other_images(built: Build) -> None:
    rule = {"as": "image", "images": {"size": [16, 16], "codec": "png"}}
    frames = frames_of(built(F.Text(), [video_file(FRAMES)], rule))
    assert np.array_equal(frames, FRAMES[:, :16, :16])  # each frame has one colour


def test_depth_of_16_bits(built: Build) -> None:
    depth = np.arange(COUNT, dtype=np.uint16)[:, None, None, None] * 500 + np.zeros((COUNT, 32, 48, 1), np.uint16)
    feature = F.Video(shape=(None, 32, 48, 1), dtype=np.uint16)
    frames = frames_of(built(feature, [depth], {"as": "depth", "range": [0, 2550], **RULE}))
    assert frames[:, 5, 5, 0].tolist() == [0, 50, 100, 150, 200, 250, 255]


@pytest.mark.parametrize(
    ("feature", "value", "rule", "reason", "detail"),
    [
        (F.Video(shape=(None, 32, 48, 3)), FRAMES[1:], RULE, "malformed_steps", "view has 6 frames for 7 steps"),
        (
            *(F.Tensor(shape=(None, 32, 48, 3), dtype=np.uint8), np.concatenate([FRAMES, FRAMES]), RULE),
            *("malformed_steps", "view has more than 7 frames for 7 steps"),
        ),
        (
            *(F.Text(), video_file(FRAMES[1:]), {"as": "image", **RULE}),
            *("malformed_steps", "view has 6 frames for 7 steps"),
        ),
        (
            *(F.Text(), b"\0\0\0\x1cftypisom" + bytes(99), {"as": "image", **RULE}),
            *("bad_image", "view: the video does not decode; OpenCV may lack its codec"),
        ),
    ],
)
def test_a_video_that_does_not_fit_loses_its_episode_alone(
    built: Build, feature: Any, value: Any, rule: dict[str, Any], reason: str, detail: str
) -> None:
    good = video_file(FRAMES) if isinstance(value, bytes) else FRAMES
    reader = built(feature, [value, good], rule)
    rows = {row.episode_id: row for row in reader.rows()}
    bad = rows["recorded-train.tfrecord-00000#0"]
    assert (bad.kept, bad.reason, bad.detail) == (False, reason, detail)
    assert np.array_equal(frames_of(reader, 1), FRAMES)


def test_a_video_in_each_step_is_refused_by_name(tmp_path: Path, write_tfds: Callable[..., Path]) -> None:
    steps = {**STEPS, "clip": F.Video(shape=(None, 32, 48, 3))}
    row = episode()
    for step in row["steps"]:
        step["clip"] = FRAMES[:2]
    write_tfds(tmp_path / "set", steps, [row])
    dataset = {"name": "d", "kind": "episodes", "source": "set", "keep": {"all": True}, "observe": ["clip"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"datasets": [dataset]}))
    with pytest.raises(ConfigError, match=r"field clip is a Video, which has no tokens; give it \{as: skip\}"):
        build(tmp_path / "c.yaml", tmp_path / "out")


def test_describe_finds_videos_and_its_config_builds(tmp_path: Path, write_tfds: Callable[..., Path]) -> None:
    metadata = {
        "front": F.Video(shape=(None, 32, 48, 3)),
        "side": F.Text(),
        "pixels": F.Tensor(shape=(None, 32, 48, 3), dtype=np.uint8),
        "cut": F.Text(),
        "dark": F.Video(shape=(None, 32, 48, 3)),
        "goals": F.Sequence(F.Image(shape=(32, 48, 3))),
        "name": F.Text(),
    }
    values = {
        "front": FRAMES,
        "side": video_file(FRAMES, ".mp4", "mp4v"),
        "pixels": FRAMES,
        "cut": video_file(FRAMES[2:]),
        "dark": np.zeros_like(FRAMES),
        "goals": list(FRAMES[:2]),
    }
    write_tfds(
        tmp_path / "set", STEPS, [episode(**values, name=f"n{number}") for number in range(3)], metadata=metadata
    )
    assert main(["describe", str(tmp_path / "set"), "--write", str(tmp_path / "c.yaml")]) == 0
    [dataset] = yaml.safe_load((tmp_path / "c.yaml").read_text())["datasets"]
    assert dataset["observe"] == ["dark", "front", "pixels", "side"]
    assert {path: rule.get("as") for path, rule in dataset["fields"].items() if path != "action"} == {
        "dark": "skip",
        "side": "image",
    }
    build(tmp_path / "c.yaml", tmp_path / "out")
    stored = open_directory(tmp_path / "out").datasets["set"].episode("recorded-train.tfrecord-00000#0").decode()
    for name, error in (("front", 0), ("pixels", 0), ("side", 5)):
        frames = np.stack([decode(image.data) for image in stored[f"observation/{name}"]])
        assert np.abs(frames.astype(int) - FRAMES).max() <= error
    assert not any(path.endswith(("cut", "dark", "goals", "name")) for path in stored)
