"""Observations of an environment become the tokens and images that a build makes of the same values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatokit.policy.step_codec import StepCodec, Task
from gatokit.schemas.errors import DataError
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, ImageSpec, TokenizerSettings
from gatokit.schemas.policy import Prompt
from gatokit.schemas.tokens import CONTINUOUS_OFFSET, TokenKind
from gatokit.tokenizers.text import TextTokenizer

SQUARE = ImageSpec(height=16, width=16)
ACTION = FieldSpec(path="action", kind="discrete", dtype="int64", num=3, offset=-1, source=("action_dict/gripper",))


def codec(text: TextTokenizer | None, *fields: dict[str, Any]) -> StepCodec:
    spec = EpisodeSpec.ordered([*(FieldSpec(**{"path": "observation/x", **field}) for field in fields), ACTION])
    prompt = Prompt.model_construct()
    return StepCodec(Task("d", "t", spec, 1.0, prompt), TokenizerSettings.of(0), text)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def text_tokenizer(vocabulary: Path) -> TextTokenizer:
    return TextTokenizer.load(vocabulary)


RNG = np.random.default_rng(0)
DEPTH = np.linspace(-1, 6, 256, dtype=np.float32).reshape(16, 16)
COLOURS = RNG.uniform(-0.1, 1.1, (3, 16, 16)).astype(np.float32)
RGBA = RNG.integers(0, 256, (16, 16, 4)).astype(np.uint8)


@pytest.mark.parametrize(
    ("field", "frame", "pixels"),
    [
        (
            {"dtype": "float32", "shape": (16, 16), "levels": (0.0, 5.0)},
            DEPTH,
            np.repeat(np.rint(np.clip(DEPTH.astype(np.float64) / 5, 0, 1) * 255)[..., None], 3, axis=2),
        ),
        (
            {"dtype": "float32", "shape": (3, 16, 16), "levels": (0.0, 1.0), "channels_first": True},
            COLOURS,
            np.rint(np.clip(np.moveaxis(COLOURS, 0, 2).astype(np.float64), 0, 1) * 255),
        ),
        ({"dtype": "uint8", "shape": (16, 16, 4)}, RGBA, RGBA[..., :3]),
    ],
)
def test_frames_of_every_form(field: dict[str, Any], frame: np.ndarray, pixels: np.ndarray) -> None:
    made = codec(None, {"kind": "image", "image": SQUARE, **field})
    [span] = made.encode([{"x": frame}], [True])
    assert np.array_equal(span.patches.pixels, pixels[None].astype(np.uint8))


def test_codes_of_text_and_text_once_an_episode(text_tokenizer: TextTokenizer) -> None:
    made = codec(text_tokenizer, {"kind": "text", "dtype": "str", "every": "episode"})
    codes = np.zeros(12, np.int32)
    codes[:6] = [*"né m".encode(), 33]
    spans = made.encode([{"x": codes}, {"x": codes}, {"x": "né m!"}], [True, False, True])
    texts = [text_tokenizer.decode(span.tokens[span.kinds == TokenKind.TEXT]) for span in spans]
    assert texts == ["né m!", "", "né m!"]
    with pytest.raises(DataError, match="d/t: an observation's field observation/x holds no codes of a text"):
        made.encode([{"x": np.array([-1])}], [True])


def test_ragged_values_are_filled_up() -> None:
    made = codec(None, {"kind": "continuous", "dtype": "float32", "shape": (3,), "max_length": 3})
    spans = made.encode([{"x": np.array([1.0], np.float32)}, {"x": np.zeros(0, np.float32)}], [True, False])
    assert [span.size for span in spans] == [4, 4]
    zero = CONTINUOUS_OFFSET + 512
    assert spans[0].tokens[1:3].tolist() == [zero, zero]
    assert spans[1].tokens[:3].tolist() == [zero] * 3
    with pytest.raises(DataError, match="observation/x has 4 values, not 3 at most"):
        made.encode([{"x": np.zeros(4, np.float32)}], [True])


def test_actions_are_in_the_units_of_the_data() -> None:
    made = codec(None, {"kind": "discrete", "dtype": "int64", "num": 5, "offset": 1500})
    [span] = made.encode([{"x": np.array(1503)}], [True])
    assert span.tokens.tolist()[0] == 3
    assert made.space.number.tolist() == [3]
    assert made.decode(np.array([[0], [1], [2]], np.uint16)).tolist() == [-1, 0, 1]
