"""Every type of field that TFDS records, through a build and back."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import sentencepiece
import tensorflow_datasets as tfds

from gatokit.inspection import open_directory
from gatokit.pipelines.run import build
from gatokit.schemas.errors import DataError
from gatokit.tokenizers.image_codec import decode

F = tfds.features
FLAGS = {name: F.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")}
STEPS = 6


def companded(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log(np.abs(values) * 100 + 1) / np.log(25601.0)


@pytest.fixture
def build_one(tmp_path: Path, write_tfds: Callable[..., Path], vocabulary: Path) -> Callable[..., Any]:
    """Records one task of two equal episodes, builds it; the decoded values of the first."""

    def go(
        fields: dict[str, Any],
        values: dict[str, Any],
        rules: str = "{}",
        extra: str = "",
        *,
        metadata: dict[str, tuple[Any, Any]] | None = None,
        keys: str = "",
    ) -> dict[str, Any]:
        steps = [
            {
                **{key: at(value, number) for key, value in values.items()},
                "reward": float(number),
                "is_first": number == 0,
                "is_last": number == STEPS,
                "is_terminal": number == STEPS,
            }
            for number in range(STEPS + 1)
        ]
        features = {**fields, **FLAGS, "reward": F.Scalar(dtype=np.float64)}
        of_episode = metadata or {}
        episode = {"steps": steps, **{key: value for key, (_, value) in of_episode.items()}}
        kinds = {key: feature for key, (feature, _) in of_episode.items()}
        write_tfds(tmp_path / "data" / "t", features, [episode] * 2, metadata=kinds)
        config = tmp_path / "c.yaml"
        config.write_text(
            f"vocabulary: {vocabulary}\nchunk_tokens: 16\n{extra}\ndatasets:\n"
            f"  - {{name: d, kind: episodes, source: data/*, last_step: padding, fields: {rules}{keys}}}\n"
        )
        build(config, tmp_path / "out")
        reader = open_directory(tmp_path / "out").datasets["d"]
        stored = reader.episode("t/recorded-train.tfrecord-00000#0")
        assert stored.reward.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        assert stored.discount is None
        assert stored.row.episode_return == 15.0
        return stored.decode()

    return go


def at(value: Any, step: int) -> Any:
    """The value of a step: of nested dictionaries, arrays (S + 1, …) and lists."""
    if isinstance(value, dict):
        return {key: at(item, step) for key, item in value.items()}
    return value[step]


RNG = np.random.default_rng(3)
ACTION = RNG.uniform(-1, 1, (STEPS + 1, 2)).astype(np.float32)


def close(decoded: np.ndarray, recorded: np.ndarray) -> None:
    wanted = recorded[:STEPS].astype(np.float64)
    assert decoded.shape == wanted.shape
    assert np.abs(companded(decoded) - np.clip(companded(wanted), -1, 1)).max() <= 1 / 1024 + 1e-12


def test_bare_tensors(build_one):
    state = (RNG.normal(size=(STEPS + 1, 2, 3)) * 50).astype(np.float32)
    values = build_one(
        {"observation": F.Tensor(shape=(2, 3), dtype=np.float32), "action": F.Tensor(shape=(2,), dtype=np.float32)},
        {"observation": state, "action": ACTION},
    )
    assert list(values) == ["observation", "action"]
    close(values["observation"], state)
    assert np.abs(values["action"] - ACTION[:STEPS]).max() <= 1 / 1024


def test_numbers_of_every_type(build_one):
    wide = {
        "double": RNG.normal(size=(STEPS + 1, 3)),
        "half": RNG.normal(size=(STEPS + 1,)).astype(np.float16),
        "raw": RNG.normal(size=(STEPS + 1, 4)).astype(np.float32),
        "packed": RNG.normal(size=(STEPS + 1, 4)),
        "flag": RNG.integers(0, 2, STEPS + 1).astype(bool),
        "flags": RNG.integers(0, 2, (STEPS + 1, 3)).astype(bool),
        "byte": RNG.integers(0, 256, (STEPS + 1, 5)).astype(np.uint8),
        "word": RNG.integers(0, 1024, (STEPS + 1, 2)).astype(np.int16),
        "long": RNG.integers(0, 1024, STEPS + 1),
        "label": RNG.integers(0, 7, STEPS + 1),
        "angle": RNG.integers(-900, 900, (STEPS + 1, 2)).astype(np.int32),
    }
    features = {
        "double": F.Tensor(shape=(3,), dtype=np.float64),
        "half": F.Scalar(dtype=np.float16),
        "raw": F.Tensor(shape=(4,), dtype=np.float32, encoding="bytes"),
        "packed": F.Tensor(shape=(4,), dtype=np.float64, encoding="zlib"),
        "flag": F.Scalar(dtype=np.bool_),
        "flags": F.Tensor(shape=(3,), dtype=np.bool_, encoding="bytes"),
        "byte": F.Tensor(shape=(5,), dtype=np.uint8),
        "word": F.Tensor(shape=(2,), dtype=np.int16),
        "long": F.Scalar(dtype=np.int64),
        "label": F.ClassLabel(num_classes=7),
        "angle": F.Tensor(shape=(2,), dtype=np.int32),
    }
    assert zlib.ZLIB_VERSION
    values = build_one(
        {"observation": features, "action": F.Tensor(shape=(2,), dtype=np.float32)},
        {"observation": wide, "action": ACTION},
        rules="{observation/angle: {as: continuous}}",
    )
    assert list(values) == [*(f"observation/{name}" for name in sorted(wide)), "action"]
    for name in ("double", "half", "raw", "packed", "angle"):
        close(values[f"observation/{name}"], wide[name].astype(np.float32) if name == "double" else wide[name])
    for name in ("flag", "flags", "byte", "word", "long", "label"):
        decoded = values[f"observation/{name}"]
        assert decoded.dtype == (np.bool_ if name.startswith("flag") else np.int64)
        assert np.array_equal(decoded, wide[name][:STEPS])


def test_nested_observations_and_actions_and_texts(build_one, vocabulary):
    model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    names = ["open the door", "", "naïve café ☕", "a\tb", "x" * 50, "open the door", "last"]
    texts = [f"step {number}" for number in range(STEPS + 1)]
    grip = RNG.integers(0, 3, STEPS + 1)
    fields = {
        "observation": {
            "b": {"name": F.Text(), "z": F.Scalar(dtype=np.float32)},
            "a": {"note": F.Tensor(shape=(), dtype=np.object_)},
        },
        "action": {"grip": F.Scalar(dtype=np.int64), "arm": {"x": F.Tensor(shape=(2,), dtype=np.float32)}},
    }
    z = RNG.normal(size=STEPS + 1).astype(np.float32)
    values = build_one(
        fields,
        {
            "observation": {"b": {"name": names, "z": z}, "a": {"note": [text.encode() for text in texts]}},
            "action": {"grip": grip, "arm": {"x": ACTION * 3}},
        },
        rules="{action/arm: {range: [[-3, 3], [-4, 4]]}}",
        extra="discrete_offset: 33024",
    )
    assert list(values) == [
        "observation/a/note",
        "observation/b/name",
        "observation/b/z",
        "action/arm/x",
        "action/grip",
    ]
    assert values["observation/b/name"] == [model.decode(model.encode(name)) for name in names[:STEPS]]
    assert values["observation/a/note"] == [model.decode(model.encode(text)) for text in texts[:STEPS]]
    close(values["observation/b/z"], z)
    off = np.abs(values["action/arm/x"] - (ACTION * 3)[:STEPS])
    assert (off <= np.array([3, 4]) / 1024 + 1e-12).all()
    assert np.array_equal(values["action/grip"], grip[:STEPS])


def test_images_of_every_form(build_one):
    pixels = RNG.integers(0, 256, (STEPS + 1, 32, 48, 3)).astype(np.uint8)
    gray = RNG.integers(0, 256, (STEPS + 1, 16, 16, 1)).astype(np.uint8)
    encoded = [cv2.imencode(".png", frame[..., ::-1])[1].tobytes() for frame in pixels]
    odd = RNG.integers(0, 256, (STEPS + 1, 30, 50, 3)).astype(np.uint8)
    values = build_one(
        {
            "observation": {
                "png": F.Image(shape=(32, 48, 3), encoding_format="png"),
                "jpeg": F.Image(shape=(32, 48, 3), encoding_format="jpeg"),
                "gray": F.Image(shape=(16, 16, 1)),
                "tensor": F.Tensor(shape=(32, 48, 3), dtype=np.uint8),
                "string": F.Tensor(shape=(), dtype=np.object_),
                "odd": F.Image(shape=(30, 50, 3)),
                "any": F.Image(shape=(None, None, 3)),
            },
            "action": F.Tensor(shape=(2,), dtype=np.float32),
        },
        {
            "observation": {
                "png": pixels,
                "jpeg": pixels,
                "gray": gray,
                "tensor": pixels,
                "string": encoded,
                "odd": odd,
                "any": [odd[0], *pixels[1:]],
            },
            "action": ACTION,
        },
        rules="{observation/string: {as: image, images: {size: [32, 48]}}, observation/odd: {images: {size: [32, 48]}},"
        " observation/any: {images: {size: [16, 16], codec: jpeg, quality: 80}}}",
    )
    for name in ("png", "tensor", "string"):
        assert np.array_equal(np.stack([decode(image.data) for image in values[f"observation/{name}"]]), pixels[:STEPS])
    assert [image.data for image in values["observation/string"]] == encoded[:STEPS]
    assert all(image.data.startswith(b"\xff\xd8") for image in values["observation/jpeg"])
    assert np.array_equal(decode(values["observation/gray"][2].data), np.repeat(gray[2], 3, axis=2))
    for number, image in enumerate(values["observation/odd"]):
        assert np.array_equal(decode(image.data), cv2.resize(odd[number], (48, 32), interpolation=cv2.INTER_AREA))
    small = cv2.resize(odd[0], (16, 16), interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, 80]
    assert values["observation/any"][0].data == cv2.imencode(".jpg", small[..., ::-1], options)[1].tobytes()


def pixels_of(images: list[Any]) -> np.ndarray:
    """uint8 (S, H, W): one channel of gray images."""
    return np.stack([decode(image.data)[..., 0] for image in images])


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The 8-bit pixels of values, one by one."""
    flat = [
        0 if np.isnan(value) else round(min(255.0, max(0.0, 255.0 * (float(value) - low) / (high - low))))
        for value in values.ravel()
    ]
    return np.array(flat, np.uint8).reshape(values.shape)


def test_depths_and_pictures_of_floats(build_one):
    depth = RNG.uniform(-0.5, 6, (STEPS + 1, 16, 32)).astype(np.float32)
    depth[2, :3, :3], depth[3, 0, :2] = np.nan, [np.inf, -np.inf]
    millimetres = RNG.integers(0, 65_536, (STEPS + 1, 16, 32, 1)).astype(np.uint16)
    colours = RNG.uniform(-0.2, 1.2, (STEPS + 1, 3, 16, 32)).astype(np.float32)
    bytes_of_16 = [cv2.imencode(".png", frame)[1].tobytes() for frame in millimetres]
    alpha = RNG.integers(0, 256, (STEPS + 1, 16, 32, 4)).astype(np.uint8)
    values = build_one(
        {
            "observation": {
                "depth": F.Tensor(shape=(16, 32), dtype=np.float32),
                "depth_image": F.Image(shape=(16, 32, 1), dtype=np.float32),
                "millimetres": F.Image(shape=(16, 32, 1), dtype=np.uint16, encoding_format="png"),
                "file": F.Tensor(shape=(), dtype=np.object_),
                "colours": F.Tensor(shape=(3, 16, 32), dtype=np.float32),
                "bytes": F.Tensor(shape=(1, 16, 32), dtype=np.uint8),
                "rgba": F.Image(shape=(16, 32, 4), encoding_format="png"),
                "rgba_numbers": F.Tensor(shape=(16, 32, 4), dtype=np.uint8),
                "mask": F.Tensor(shape=(16, 32), dtype=np.bool_),
            },
            "action": F.Tensor(shape=(2,), dtype=np.float32),
        },
        {
            "observation": {
                "depth": depth,
                "depth_image": depth[..., None],
                "millimetres": millimetres,
                "file": bytes_of_16,
                "colours": colours,
                "bytes": millimetres[..., 0][:, None].astype(np.uint8),
                "rgba": alpha,
                "rgba_numbers": alpha,
                "mask": depth > 3,
            },
            "action": ACTION,
        },
        rules="{observation/depth: {as: depth, range: [0.25, 5]}"
        ", observation/depth_image: {as: depth, range: [0.25, 5]}"
        ", observation/millimetres: {as: depth, range: [100, 50000]}, observation/bytes: {as: image}"
        ", observation/file: {as: depth, range: [100, 50000], images: {size: [16, 32]}}"
        ", observation/colours: {as: image}, observation/rgba_numbers: {as: image}, observation/mask: {as: image}}",
    )
    for name in ("depth", "depth_image"):
        assert np.array_equal(pixels_of(values[f"observation/{name}"]), scaled(depth[:STEPS], 0.25, 5))
    for name in ("millimetres", "file"):
        assert np.array_equal(pixels_of(values[f"observation/{name}"]), scaled(millimetres[:STEPS, ..., 0], 100, 50000))
    wanted = scaled(np.moveaxis(colours[:STEPS], 1, 3), 0, 1)
    assert np.array_equal(np.stack([decode(image.data) for image in values["observation/colours"]]), wanted)
    assert np.array_equal(pixels_of(values["observation/bytes"]), millimetres[:STEPS, ..., 0].astype(np.uint8))
    for name in ("rgba", "rgba_numbers"):
        images = [decode(image.data) for image in values[f"observation/{name}"]]
        assert np.array_equal(np.stack(images), alpha[:STEPS, ..., :3])
    assert np.array_equal(pixels_of(values["observation/mask"]), np.where(depth[:STEPS] > 3, 255, 0))


def test_fields_beside_the_observation(build_one, vocabulary):
    model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    first = ["", "pick up the red cup", "", "", "", "pick up the red cup", ""]
    second = ["open the drawer"] * 6 + ["never seen"]
    codes = np.zeros((STEPS + 1, 24), np.int32)
    for step in range(STEPS + 1):
        data = f"schieb Würfel {step}".encode()
        codes[step, : len(data)] = list(data)
    points = [np.arange(2.0 * step, dtype=np.float32).reshape(-1, 2) for step in (1, 0, 2, 3, 1, 1, 9)]
    velocity = RNG.uniform(-2, 2, (STEPS + 1, 7))
    goal = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    values = build_one(
        {
            "observation": {
                "codes": F.Tensor(shape=(24,), dtype=np.int32),
                "gripper": F.Scalar(dtype=np.int64),
                "points": F.Sequence(F.Tensor(shape=(2,), dtype=np.float32)),
            },
            "action": F.Tensor(shape=(2,), dtype=np.float32),
            "action_dict": {"joint_velocity": F.Tensor(shape=(7,), dtype=np.float64), "other": F.Scalar(np.int64)},
            "language_instruction": F.Text(),
            "language_instruction_2": F.Text(),
        },
        {
            "observation": {"codes": codes, "gripper": [-1, 0, 1, 1, 0, -1, 0], "points": points},
            "action": ACTION,
            "action_dict": {"joint_velocity": velocity, "other": [0] * 7},
            "language_instruction": first,
            "language_instruction_2": second,
        },
        rules="{observation/codes: {as: text}, observation/gripper: {offset: -1, num: 3}, task_name: {every: episode}"
        ", observation/points: {max_length: 4}, action_dict: {range: [-2, 2]}}",
        metadata={
            "task_name": (F.Text(), "kitchen"),
            "goal": (F.Image(shape=(16, 16, 3)), goal),
            "pose": (F.Tensor(shape=(2,), dtype=np.float32), np.array([0.5, -0.5], np.float32)),
        },
        keys=", action: action_dict/joint_velocity"
        ", observe: [[language_instruction, language_instruction_2], task_name, goal, pose]",
    )
    assert list(values) == [
        *("observation/codes", "observation/goal", "observation/gripper", "observation/language_instruction"),
        *("observation/points", "observation/pose", "observation/task_name", "action"),
    ]
    assert values["observation/codes"] == [model.decode(model.encode(f"schieb Würfel {step}")) for step in range(STEPS)]
    assert values["observation/gripper"].tolist() == [-1, 0, 1, 1, 0, -1]
    assert values["observation/language_instruction"] == [a or b for a, b in zip(first, second, strict=True)][:STEPS]
    assert values["observation/task_name"] == ["kitchen", "", "", "", "", ""]
    assert all(np.array_equal(decode(image.data), goal) for image in values["observation/goal"])
    close(values["observation/pose"], np.tile(np.array([0.5, -0.5], np.float32), (STEPS + 1, 1)))
    filled = np.zeros((STEPS + 1, 4, 2))
    for step in range(STEPS):
        filled[step, : len(points[step])] = points[step]
    close(values["observation/points"], filled)
    assert np.abs(values["action"] - velocity[:STEPS].astype(np.float32)).max() <= 2 / 1024 + 1e-12


@pytest.mark.parametrize(
    ("field", "values", "rule", "reason", "detail"),
    [
        (F.Sequence(np.float32), [[0.0]] * 3 + [[1.0] * 3] + [[0.0]] * 3, "max_length: 2", "wrong_shape",
         "observation/x has 3 values at step 3, more than max_length 2"),
        (F.Text(), ["a", "", "a", "b", "a", "a", "a"], "every: episode", "malformed_steps",
         "observation/x has another text at step 3, not one an episode"),
        (F.Tensor(shape=(2,), dtype=np.int32), [[65, 0], [-1, 0]] + [[66, 0]] * 5, "as: text", "not_utf8",
         "observation/x is not valid UTF-8 at step 1"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_reject_the_episode(build_one, field, values, rule, reason, detail):
    with pytest.raises(DataError) as caught:
        build_one(
            {"observation": {"x": field}, "action": F.Tensor(shape=(2,), dtype=np.float32)},
            {"observation": {"x": values}, "action": ACTION},
            rules=f"{{observation/x: {{{rule}}}}}",
        )
    assert f"2 {reason} (first" in str(caught.value)
    assert detail in str(caught.value)
