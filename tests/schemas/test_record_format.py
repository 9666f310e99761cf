"""The bytes of a record: they never drift, they come back, and damage is named."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gatokit.schemas.record import Record
from gatokit.schemas.record_pb2 import DESCRIPTOR
from gatokit.schemas.record_pb2 import Record as RecordMessage
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence

# Worked out by hand from the protobuf wire format, field by field.
GOLDEN = bytes.fromhex(
    "0801"  # version 1
    "1203612330"  # owner "a#0"
    "1801"  # chunk 1
    "2002"  # of 2
    "28ac02"  # first step 300
    "320c303132333435363738396162"  # spec "0123456789ab"
    "3a08ffff008105000a00"  # tokens 65535, 33024, 5, 10
    "420402050607"  # kinds image, separator, discrete action, continuous action
    "4a080000ffffffffffff"  # positions 0, none, none, none
    "52080000000003000000"  # steps begin at 0 and 3
    "5a10000000000000f83f000000000000e0bf"  # rewards 1.5, -0.5
    "6210000000000000f03f0000000000000000"  # discounts 1, 0
    "6a020106"  # flags first; last and terminal
    "7208"  # an image of eight bytes:
    "0a02504e10101810"  # data "PN", height 16, width 16, at token 0
)


def small(**changes: Any) -> Record:
    """The record of the golden bytes."""
    sequence = {
        "tokens": np.array([65535, 33024, 5, 10], np.uint16),
        "kinds": np.array([2, 5, 6, 7], np.uint8),
        "positions": np.array([0, 65535, 65535, 65535], np.uint16),
        "step_begin": np.array([0, 3], np.uint32),
        "images": [PlacedImage(0, EncodedImage(b"PN", 16, 16))],
        "text_tokens": None,
    }
    rest = {
        "owner": "a#0",
        "chunk": 1,
        "chunks": 2,
        "first_step": 300,
        "spec": "0123456789ab",
        "reward": np.array([1.5, -0.5]),
        "discount": np.array([1.0, 0.0]),
        "flags": np.array([1, 6], np.uint8),
    }
    sequence |= {name: changes.pop(name) for name in list(changes) if name in sequence}
    return Record(sequence=TokenSequence(**sequence), **(rest | changes))


def assert_equal(one: Record, other: Record) -> None:
    for name in ("owner", "chunk", "chunks", "first_step", "spec"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("tokens", "kinds", "positions", "step_begin"):
        left, right = getattr(one.sequence, name), getattr(other.sequence, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, name)
    counts, expected = one.sequence.text_tokens, other.sequence.text_tokens
    assert (counts is None) == (expected is None)
    if counts is not None and expected is not None:
        assert counts.dtype == expected.dtype
        np.testing.assert_array_equal(counts, expected)
    assert one.sequence.images == other.sequence.images
    np.testing.assert_array_equal(one.reward, other.reward)
    np.testing.assert_array_equal(one.flags, other.flags)
    assert (one.discount is None) == (other.discount is None)
    if one.discount is not None:
        np.testing.assert_array_equal(one.discount, other.discount)


def test_bytes_are_the_golden_ones() -> None:
    assert small().to_bytes() == GOLDEN


def test_a_chunk_can_be_divided_again() -> None:
    first, second = map(Record.from_bytes, small().divided([0, 1]))
    assert [(part.chunk, part.chunks, part.first_step) for part in (first, second)] == [(1, 3, 300), (2, 3, 301)]
    assert [part.sequence.tokens.tolist() for part in (first, second)] == [[65535, 33024, 5], [10]]
    assert [part.sequence.step_begin.tolist() for part in (first, second)] == [[0], [0]]
    assert [len(part.sequence.images) for part in (first, second)] == [1, 0]
    assert [part.discount.tolist() for part in (first, second)] == [[1.0], [0.0]]  # type: ignore[union-attr]


def test_golden_bytes_are_read() -> None:
    assert_equal(Record.from_bytes(GOLDEN), small())


def test_counts_of_text_tokens_are_bytes_too() -> None:
    record = small(text_tokens=np.array([[1, 0], [2, 258]], np.uint32))
    data = GOLDEN + bytes.fromhex("7a1001000000000000000200000002010000")
    assert record.to_bytes() == data
    assert_equal(Record.from_bytes(data), record)


@st.composite
def written_records(draw: st.DrawFn) -> Record:
    lengths = draw(st.lists(st.integers(1, 9), max_size=6))
    steps = len(lengths)
    tokens = sum(lengths) or draw(st.integers(1, 20))
    images, free = [], 0
    while free < tokens and draw(st.booleans()):
        token = draw(st.integers(free, tokens - 1))
        columns = draw(st.integers(1, tokens - token))
        images.append(PlacedImage(token, EncodedImage(draw(st.binary(min_size=1, max_size=9)), 16, 16 * columns)))
        free = token + columns
    return Record(
        owner=draw(st.text(max_size=9)),
        chunk=(chunk := draw(st.integers(0, 2**32 - 2))),
        chunks=draw(st.integers(chunk + 1, 2**32 - 1)),
        first_step=draw(st.integers(0, 2**64 - 1)),
        spec=draw(st.text("0123456789abcdef", max_size=12)),
        sequence=TokenSequence(
            tokens=draw(hnp.arrays(np.uint16, tokens)),
            kinds=draw(hnp.arrays(np.uint8, tokens, elements=st.integers(1, 7))),
            positions=draw(hnp.arrays(np.uint16, tokens)),
            step_begin=np.cumsum([0, *lengths[:-1]], dtype=np.uint32)[:steps],
            images=images,
            text_tokens=draw(hnp.arrays(np.uint32, (steps, 2))) if steps and draw(st.booleans()) else None,
        ),
        reward=draw(hnp.arrays(np.float64, steps)),
        discount=draw(hnp.arrays(np.float64, steps)) if steps and draw(st.booleans()) else None,
        flags=draw(hnp.arrays(np.uint8, steps, elements=st.integers(0, 7))),
    )


@settings(max_examples=100)
@given(written_records())
def test_round_trip(record: Record) -> None:
    data = record.to_bytes()
    assert_equal(Record.from_bytes(data), record)
    assert Record.from_bytes(data).to_bytes() == data


@settings(max_examples=100)
@given(st.data())
def test_damage_is_a_value_error_or_another_record(data: st.DataObject) -> None:
    damaged = bytearray(GOLDEN)
    damaged[data.draw(st.integers(0, len(GOLDEN) - 1))] ^= data.draw(st.integers(1, 255))
    outcome: bytes | str
    try:
        outcome = Record.from_bytes(bytes(damaged)).to_bytes()
    except ValueError as error:
        outcome = str(error)
    assert outcome != GOLDEN
    assert isinstance(outcome, bytes) or outcome.startswith("the record")


def test_a_cut_record_is_no_message() -> None:
    with pytest.raises(ValueError, match=r"^the record is no Gatokit record message$"):
        Record.from_bytes(GOLDEN[:-1])


def test_a_newer_version_is_refused() -> None:
    newer = b"\x08\x02" + GOLDEN[2:] + b"\xa2\x06\x01?"  # and a field 100 that nobody knows yet
    said = "the record has format version 2 and this gatokit reads up to 1: install a newer gatokit"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        Record.from_bytes(newer)


def test_a_message_without_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the record has no format version$"):
        Record.from_bytes(GOLDEN[2:])


LENGTHS = "the record's tokens, kinds and positions differ in length or are empty"
PER_STEP = "the record's steps, rewards, discounts and flags differ in number"
BEGINS = "the record's steps do not begin in increasing order at its first token"
PLACES = "the record's images overlap or reach beyond its tokens"
SIZES = "the record has an image of {} without data or no multiple of 16"


def image(token: int, height: int = 16, width: int = 16, data: bytes = b"PN") -> PlacedImage:
    return PlacedImage(token, EncodedImage(data, height, width))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.zeros(3, np.uint16)}, LENGTHS),
        ({"kinds": np.ones(5, np.uint8)}, LENGTHS),
        ({"positions": np.zeros(3, np.uint16)}, LENGTHS),
        ({name: np.zeros(0, int) for name in ("tokens", "kinds", "positions")}, LENGTHS),
        ({"reward": np.zeros(1)}, PER_STEP),
        ({"discount": np.zeros(3)}, PER_STEP),
        ({"flags": np.zeros(1, np.uint8)}, PER_STEP),
        ({"step_begin": np.zeros(0, np.uint32)}, PER_STEP),
        ({"step_begin": np.array([1, 3])}, BEGINS),
        ({"step_begin": np.array([0, 0])}, BEGINS),
        (
            {"step_begin": np.array([0, 3, 2])}
            | {name: np.zeros(3, np.uint8) for name in ("reward", "discount", "flags")},
            BEGINS,
        ),
        ({"step_begin": np.array([0, 4])}, "the record's last step begins behind its last token"),
        ({"chunk": 2}, "the record says it is chunk 2 of 2"),
        ({"chunk": 0, "chunks": 0}, "the record says it is chunk 0 of 0"),
        ({"images": [image(0, 16, 32), image(1)]}, PLACES),
        ({"images": [image(2), image(0)]}, PLACES),
        ({"images": [image(4)]}, PLACES),
        ({"images": [image(2, 16, 48)]}, PLACES),
        ({"images": [image(0, 17, 16)]}, SIZES.format("17x16")),
        ({"images": [image(0, 16, 8)]}, SIZES.format("16x8")),
        ({"images": [image(0, data=b"")]}, SIZES.format("16x16")),
    ],
)
def test_inconsistencies_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Record.from_bytes(small(**changes).to_bytes())


@pytest.mark.parametrize(
    ("field", "size"),
    [("tokens", 2), ("positions", 2), ("step_begin", 4), ("reward", 8), ("discount", 8), ("text_tokens", 4)],
)
def test_a_torn_array_is_refused_by_name(field: str, size: int) -> None:
    message = RecordMessage.FromString(GOLDEN)
    setattr(message, field, b"123")
    said = f"the record's {field} have 3 bytes, no multiple of {size}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        Record.from_bytes(message.SerializeToString())


@pytest.mark.parametrize("counts", [np.zeros((1, 3)), np.zeros((3, 1))])
def test_counts_of_texts_that_fit_no_steps_are_refused(counts: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^the record counts the tokens of 3 texts for 2 steps$"):
        Record.from_bytes(small(text_tokens=counts).to_bytes())


def test_generated_code_agrees_with_the_proto(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "schemas" / "record.proto"
    out = tmp_path / "descriptor"
    # A process of its own: the compiler's copy of protobuf may not stand beside another library's.
    arguments = ["-m", "grpc_tools.protoc", f"-I{source.parent}", f"--descriptor_set_out={out}", source.name]
    subprocess.run([sys.executable, *arguments], check=True)
    [compiled] = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    generated = descriptor_pb2.FileDescriptorProto.FromString(DESCRIPTOR.serialized_pb)
    for message in compiled.message_type:
        for field in message.field:
            field.ClearField("json_name")  # derived, and the generated code leaves it out
    assert [message.name for message in compiled.message_type] == ["Image", "Record"]
    assert compiled == generated
