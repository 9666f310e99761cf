"""Readers of bytes that anybody may have written. A target takes any bytes and raises where a reader misbehaves:
another error than its own, a place outside of its input, or another result than an independent reader has."""

import contextlib
from collections.abc import Callable

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from gatokit.loader.records import RecordView
from gatokit.pipelines.formats import tar, tfrecord
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.record import Record
from gatokit.storage.files import Ranges
from gatokit.tokenizers.document import describe
from gatokit.tokenizers.image_codec import probe


def record(data: bytes) -> None:
    """The record of a shard, as the inspector and as the trainer read it."""
    whole: Record | None = None
    with contextlib.suppress(ValueError):
        whole = Record.from_bytes(data)
    if whole is not None:
        again = Record.from_bytes(whole.to_bytes())
        assert again.sequence.tokens.tolist() == whole.sequence.tokens.tolist()
        assert (again.owner, again.chunk, again.chunks) == (whole.owner, whole.chunk, whole.chunks)
    try:
        view = RecordView(data)
        owner, begins = view.owner, view.step_begin
        pictures = view.images(0, len(view.tokens))
    except ValueError:
        assert whole is None
        return
    assert all(len(picture.data) <= len(data) for picture in pictures)
    if whole is not None:
        assert owner == whole.owner
        assert view.tokens.tolist() == whole.sequence.tokens.tolist()
        assert begins.tolist() == whole.sequence.step_begin.tolist()
        assert [picture.data for picture in pictures] == [placed.image.data for placed in whole.sequence.images]


def tf_example_message(data: bytes) -> None:
    """An episode's message: what the walk finds is what protobuf finds."""
    found: dict[str, list[bytes] | np.ndarray] = {}
    try:
        usual, spans = tfrecord.walk_example(data)
        for key, span in spans.items():
            assert 0 <= span[0] <= span[1] <= len(usual)
            for kind, read in (
                ("float", tfrecord.floats),
                ("int64", tfrecord.integers),
                ("bytes", tfrecord.byte_strings),
            ):
                try:
                    found[f"{kind} {key}"] = read(usual, span)
                except ValueError:
                    continue
        message = tf_example.Example.FromString(data)
    except (ValueError, DecodeError):
        return
    if message.SerializeToString(deterministic=True) != data:
        return
    for key, feature in message.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind is None:
            continue
        name = f"{kind.removesuffix('_list')} {key}"
        values = list(getattr(feature, kind).value)
        if kind == "bytes_list":
            assert found[name] == values
        else:
            np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(values, found[name].dtype))  # type: ignore[union-attr]


def tfrecord_file(data: bytes) -> None:
    """The records of a TFRecord file."""
    end, stops = 0, None
    try:
        for record in tfrecord.records(lambda offset, length: data[offset : offset + length], len(data), 1000):
            assert record.byte_range.offset == end
            end += tfrecord.HEADER + record.byte_range.length + tfrecord.FOOTER
            assert end <= len(data)
            assert record.value is None or len(record.value) == record.byte_range.length
    except tfrecord.DamagedLengthError as error:
        stops = error.offset
    assert end == len(data) if stops is None else end <= stops <= len(data)


def tar_file(data: bytes) -> None:
    """The members of a tar archive."""
    end = 0
    for item in tar.members(tar.Reader(Ranges(lambda offset, length: data[offset : offset + length], len(data)))):
        assert item.offset >= end
        end = item.end if isinstance(item, tar.Gap) else item.begin + item.size
        assert item.offset <= end <= len(data)


def picture_header(data: bytes) -> None:
    """The header of a PNG or JPEG."""
    describe(data)
    try:
        header = probe(data)
    except RejectedError:
        return
    assert header.height > 0
    assert header.width > 0


TARGETS: dict[str, Callable[[bytes], None]] = {
    "record": record,
    "example": tf_example_message,
    "tfrecord": tfrecord_file,
    "tar": tar_file,
    "header": picture_header,
}
