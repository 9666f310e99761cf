"""Readers of bytes that anybody may have written. A target takes any bytes and raises where a reader misbehaves:
another error than its own, a place outside of its input, or another result than an independent reader has."""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from folder import build
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from gatokit.inspection.verify.index import read_index
from gatokit.loader.records import RecordView
from gatokit.pipelines.documents.text import TextLinesFile
from gatokit.pipelines.formats import tar, tfrecord
from gatokit.pipelines.formats.compressed import DecompressedStream, most_unpacked
from gatokit.schemas.config import BuildConfig, parse_mapping, validated
from gatokit.schemas.errors import GatokitError, RejectedError
from gatokit.schemas.manifest import DatasetFile, Manifest, json_digest
from gatokit.schemas.policy import PolicyFile
from gatokit.schemas.record import Record
from gatokit.schemas.run import RunConfig
from gatokit.schemas.run_directory import RunFile
from gatokit.schemas.untrusted import parse_json, validated_model
from gatokit.storage.files import Ranges
from gatokit.storage.index import read_tasks
from gatokit.tokenizers.document import describe
from gatokit.tokenizers.image_codec import probe
from gatokit.tokenizers.text import TextTokenizer


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


def manifest(data: bytes) -> None:
    """``manifest.json`` of a build, with a right digest where it has one."""
    for content in (data, _signed(data)):
        with contextlib.suppress(GatokitError):
            parsed = Manifest.parse(content, "manifest.json")
            again = Manifest.parse(parsed.to_bytes(), "manifest.json")
            assert again.model_copy(update={"digest": parsed.digest}) == parsed


def _signed(data: bytes) -> bytes:
    try:
        content = json.loads(data)
        content.pop("digest", None)
        return json.dumps({**content, "digest": json_digest(content)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return b""


def descriptions(data: bytes) -> None:
    """``dataset.json`` with its specs, ``policy.json`` with its config, and ``run.json``."""
    for name, model in (("dataset.json", DatasetFile), ("policy.json", PolicyFile), ("run.json", RunFile)):
        with contextlib.suppress(GatokitError):
            validated_model(model, parse_json(data, name), name)


def index(data: bytes) -> None:
    """An index and a table of tasks, as Parquet."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(data)
        file.flush()
        for read in (lambda path: read_index(path, {}), read_tasks):
            with contextlib.suppress(GatokitError, ValueError):
                read(Path(file.name))


def vocabulary(data: bytes) -> None:
    """A SentencePiece model, and what it makes of a text."""
    with contextlib.suppress(GatokitError):
        tokenizer = TextTokenizer(data)
        ids = tokenizer.encode("a text, ü \U0001f600\n")
        assert ids.size == 0 or int(ids.max()) < tokenizer.pieces
        tokenizer.decode(ids)


def config(data: bytes) -> None:
    """A build config and a run config."""
    with contextlib.suppress(GatokitError, UnicodeDecodeError):
        content = parse_mapping(data.decode(), "c.yaml", "keys")
        for model in (BuildConfig, RunConfig):
            with contextlib.suppress(GatokitError):
                validated(model, content, "c.yaml")


def compressed_file(data: bytes) -> None:
    """A compressed file: of its content, no more than allowed, and every damage at a place of the stream."""
    for suffix in (".gz", ".zst"):
        file = Ranges(lambda offset, length: data[offset : offset + length], len(data))
        stream = DecompressedStream(file, suffix, 200)
        content = io.BufferedReader(stream).read()
        assert len(content) <= most_unpacked(len(data), 200)
        places = [event if isinstance(event, int) else event.at for event in stream.events]
        assert places == sorted(places)
        assert all(0 <= place <= len(content) for place in places)


def json_lines(data: bytes) -> None:
    """Lines of JSON: every byte that is no newline or white space lies in one row."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(data)
        file.flush()
        source = TextLinesFile(path=file.name, name="a.jsonl", size=len(data), field="text")
        try:
            rows = list(source.scan(1 << 20))
        except GatokitError:
            return
        ends = [row.byte_range.offset + row.byte_range.length for row in rows]
        assert ends == sorted(ends)
        sound = [row.byte_range for row in rows if row.reason is None]
        assert len(list(source.read(sound))) == len(sound)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "folder": build,
    "manifest": manifest,
    "descriptions": descriptions,
    "index": index,
    "vocabulary": vocabulary,
    "config": config,
    "compressed": compressed_file,
    "json_lines": json_lines,
    "record": record,
    "example": tf_example_message,
    "tfrecord": tfrecord_file,
    "tar": tar_file,
    "header": picture_header,
}
