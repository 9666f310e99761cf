import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from gatokit.pipelines.formats import tfrecord as example

FLOATS = st.floats(width=32)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
LISTS = st.one_of(
    st.tuples(st.just("float"), st.lists(FLOATS, max_size=40)),
    st.tuples(st.just("int64"), st.lists(INTEGERS | st.integers(-3, 300), max_size=40)),
    st.tuples(st.just("bytes"), st.lists(st.binary(max_size=200), max_size=10)),
)
FEATURES = st.dictionaries(st.text(max_size=20), LISTS, max_size=6)
NUMBER = {"bytes": 1, "float": 2, "int64": 3}


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


# Fields that a later version of the message might have, one of each wire type.
UNKNOWN = st.sampled_from(
    [
        b"",
        varint(9 << 3) + varint(2**40),
        varint(10 << 3 | 1) + bytes(8),
        field(11, b"later"),
        varint(12 << 3 | 5) + b"1234",
        field(3000, b"\xff" * 130),
    ]
)


def value_list(kind: str, values: list, chunks: list[tuple[int, bool]], unknown: bytes) -> bytes:
    """The list message with its values in chunks of given lengths, packed or not, the rest packed."""
    out, at = unknown, 0
    if kind == "bytes":
        return out + b"".join(field(1, value) for value in values)
    tag = varint(1 << 3 | (5 if kind == "float" else 0))
    for length, packed in [*chunks, (len(values), True)]:
        part = values[at : at + length]
        at += length
        words = [np.float32(value).tobytes() if kind == "float" else varint(value) for value in part]
        out += field(1, b"".join(words)) if packed else b"".join(tag + word for word in words)
        out += unknown
    return out


def read(data: bytes) -> dict[str, tuple[str, list]]:
    """What Gatokit reads: every feature by whichever list it holds."""
    found: dict[str, tuple[str, list]] = {}
    data, spans = example.walk_example(data)
    for key, span in spans.items():
        for kind, reader in (("float", example.floats), ("int64", example.integers), ("bytes", example.byte_strings)):
            try:
                values = reader(data, span)
            except ValueError:
                continue
            if len(values):
                found[key] = (kind, list(values))
    return found


def parsed(data: bytes) -> dict[str, tuple[str, list]]:
    """What protobuf reads, empty lists left out."""
    found: dict[str, tuple[str, list]] = {}
    for key, feature in tf_example.Example.FromString(data).features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        if values:
            found[key] = (kind.removesuffix("_list"), values)
    return found


def same(ours: dict[str, tuple[str, list]], theirs: dict[str, tuple[str, list]]) -> bool:
    if ours.keys() != theirs.keys():
        return False
    for key, (kind, values) in theirs.items():
        if ours[key][0] != kind or len(ours[key][1]) != len(values):
            return False
        if kind == "float":
            if not np.array_equal(np.array(ours[key][1], "<f4"), np.array(values, "<f4"), equal_nan=True):
                return False
        elif ours[key][1] != values:
            return False
    return True


@given(FEATURES)
def test_messages_of_protobuf_are_read_as_protobuf_reads_them(features: dict) -> None:
    message = tf_example.Example()
    for key, (kind, values) in features.items():
        getattr(message.features.feature[key], f"{kind}_list").value.extend(values)
    data = message.SerializeToString()
    assert set(example.walk_example(data)[1]) == set(features)
    assert same(read(data), parsed(data))


@given(FEATURES, st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=5), UNKNOWN)
def test_unpacked_and_split_lists_and_unknown_fields_are_read_as_protobuf_reads_them(
    features: dict, chunks: list[tuple[int, bool]], unknown: bytes
) -> None:
    entries = b""
    for key, (kind, values) in features.items():
        feature = unknown + field(NUMBER[kind], value_list(kind, values, chunks, unknown)) + unknown
        # None inside of the entry: protobuf's upb drops an entry of a map with unknown fields, its C++ reads it.
        entries += field(1, field(1, key.encode()) + field(2, feature)) + unknown
    data = unknown + field(1, entries) + unknown
    assert same(read(data), parsed(data))


def test_literal_message() -> None:
    message = tf_example.Example()
    message.features.feature["steps/reward"].float_list.value.extend([0.5, -1.0])
    message.features.feature["steps/k"].int64_list.value.extend([0, -1, 300, 2**63 - 1, -(2**63)])
    message.features.feature["id"].bytes_list.value.extend([b"", b"\xff\x00"])
    data = message.SerializeToString()
    _, spans = example.walk_example(data)
    assert example.floats(data, spans["steps/reward"]).tolist() == [0.5, -1.0]
    assert example.integers(data, spans["steps/k"]).tolist() == [0, -1, 300, 2**63 - 1, -(2**63)]
    assert example.byte_strings(data, spans["id"]) == [b"", b"\xff\x00"]
    for number in (0, -1, 127, 128, 2**63 - 1, -(2**63)):
        one = field(3, value_list("int64", [number, 5], [], b""))
        assert example.first_integer(one, (0, len(one))) == number
    assert example.first_integer(b"\x1a\x00", (0, 2)) is None
    assert example.floats(data, spans["steps/reward"]).dtype == np.dtype("<f4")
    assert example.integers(data, spans["steps/k"]).dtype == np.int64


def test_messages_of_one_length_are_told_apart() -> None:
    def message(features: dict[str, list[int]]) -> bytes:
        lists = {key: field(3, value_list("int64", values, [], b"")) for key, values in features.items()}
        return field(1, b"".join(field(1, field(1, key.encode()) + field(2, list_)) for key, list_ in lists.items()))

    first = {"a": [1, 2], "b": [3]}
    other_values, other_keys, other_places = {"a": [5, 6], "b": [7]}, {"b": [1, 2], "a": [3]}, {"a": [1], "b": [2, 3]}
    expected = [first, other_values, other_keys, first, other_places, other_values]
    messages = [message(features) for features in expected]
    assert len({len(data) for data in messages}) == 1
    for features, data in zip(expected, messages, strict=True):
        found = example.walk_example(data)[1].items()
        assert {key: example.integers(data, span).tolist() for key, span in found} == features
    broken = bytearray(messages[-1])
    broken[1] += 1
    with pytest.raises(ValueError, match="reaches outside"):
        example.walk_example(bytes(broken))


def test_another_kind_of_list_is_an_error() -> None:
    message = tf_example.Example()
    message.features.feature["x"].float_list.value.extend([1.0])
    data = message.SerializeToString()
    span = example.walk_example(data)[1]["x"]
    for reader in (example.integers, example.byte_strings):
        with pytest.raises(ValueError, match="the feature holds a list of another type"):
            reader(data, span)


def small() -> bytes:
    message = tf_example.Example()
    message.features.feature["steps/a"].float_list.value.extend([1.0, 2.0, 3.0])
    message.features.feature["steps/b"].int64_list.value.extend([1, -1, 1000])
    message.features.feature["c"].bytes_list.value.extend([b"abc", b"x" * 200])
    return message.SerializeToString(deterministic=True)


def read_everything(data: bytes) -> None:
    data, spans = example.walk_example(data)
    for span in spans.values():
        for reader in (example.floats, example.integers, example.byte_strings):
            try:
                reader(data, span)
            except ValueError:
                continue


@given(st.data())
@settings(max_examples=500)
def test_mutated_bytes_raise_nothing_but_value_errors(data: st.DataObject) -> None:
    message = bytearray(small())
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(message) - 1), st.integers(0, 255)), min_size=1)):
        message[at] = byte
    message = message[: data.draw(st.integers(0, len(message)))]
    with contextlib.suppress(ValueError):
        read_everything(bytes(message))


def test_a_truncated_message_is_an_error_or_the_features_before_the_cut() -> None:
    whole = small()
    for size in range(1, len(whole)):
        with pytest.raises(ValueError):
            example.walk_example(whole[:size])
    assert example.walk_example(b"") == (b"", {})


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_random_bytes_raise_nothing_but_value_errors(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_everything(data)
