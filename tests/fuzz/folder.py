"""A small build that a stranger changed: bytes decide in which of its files, where and how.

JSON and Parquet are changed in their values, so that what is wrong lies deeper than a checksum; the manifest is signed
again, for its digest has no key.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.loader.mixture import open_mixture
from gatokit.loader.windows import Windows
from gatokit.pipelines.shards.ownership import collect
from gatokit.schemas.errors import GatokitError
from gatokit.schemas.manifest import MANIFEST, json_digest
from gatokit.schemas.run import RunConfig

ARCHIVE = Path(__file__).parent / "build.tar.gz"
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1 << 31, (1 << 63) - 1, 1 << 63, 0.5, 1e308, [], {}, [[]], {"a": 1}),
    *(
        "",
        "..",
        "../../outside/secret",
        "/etc/passwd",
        "a\0b",
        "\x1b[31m\u202e",
        "x" * 3000,
        "gs://b/x",
        "train",
        "é/ü",
    ),
)
"""What a value is replaced by."""
TYPES = (pa.string(), pa.int64(), pa.int8(), pa.float64(), pa.bool_(), pa.binary(), pa.list_(pa.int64()), pa.null())


class Choices:
    """Numbers that bytes decide; 0 when they end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, most: int) -> int:
        """A number in [0, ``most``)."""
        part = self._data[self._at : self._at + 2]
        self._at += 2
        return int.from_bytes(part, "little") % most


def build(data: bytes) -> None:
    """Whatever was changed, verification, inspection, training input and the collection of garbage end in a result or
    in an error of gatokit's, and what lies beside the folder stays as it is."""
    root = Path(tempfile.mkdtemp(prefix="gatokit-fuzz-"))
    try:
        (root / "outside").mkdir()
        (root / "outside" / "secret").write_bytes(b"secret")
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(root, filter="data")
        folder = root / "built"
        _change(folder, Choices(data))
        for use in (verify, _inspect, _draw, collect):
            try:
                use(folder)
            except GatokitError as error:
                _check_text(str(error))
        assert sorted(path.name for path in root.iterdir()) == ["built", "outside"]
        assert [path.read_bytes() for path in (root / "outside").iterdir()] == [b"secret"]
    finally:
        shutil.rmtree(root)


def _check_text(message: str) -> None:
    assert "\x1b" not in message, message
    assert len(message) < 5000, message


def _inspect(folder: Path) -> None:
    directory = open_directory(folder)
    for dataset in directory.datasets.values():
        _ = dataset.tasks, dataset.task_totals, dataset.expert_returns, dataset.columns
        if dataset.holds_documents:
            for document in dataset.documents():
                _ = document.parts
        for task in () if dataset.holds_documents else dataset.task_names:
            for episode in dataset.read(dataset.episodes(task=task)):
                episode.decode()


def _draw(folder: Path) -> None:
    config = RunConfig.model_validate({"model": "tiny", "context": 64, "batch": 4, "seed": 0})
    windows = Windows(open_mixture([folder]), config)
    windows.batch(0, range(4))


# --- changes -------------------------------------------------------------------------------------------------------


def _change(folder: Path, choices: Choices) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(1 + choices.below(3)):
        path = files[choices.below(len(files))]
        kind = choices.below(8)
        if not path.is_file() or path.is_symlink():
            continue
        if kind == 0:
            _other_kind(path, choices)
        elif kind == 1:
            _change_bytes(path, choices)
        elif path.suffix == ".json":
            with contextlib.suppress(ValueError):  # it was changed before
                tree = json.loads(path.read_bytes())
                _change_tree(tree, choices)
                path.write_text(json.dumps(tree))
        elif path.suffix == ".parquet":
            _change_table(path, choices)
        else:
            _change_bytes(path, choices)
    if choices.below(4):
        _sign(folder)


def _sign(folder: Path) -> None:
    """Sizes and digests of the files as they are now, as far as the manifest can still be read."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        return
    try:
        content = json.loads(path.read_bytes())
        for entry in content["files"]:
            named = folder / entry["path"]
            if named.is_file() and not named.is_symlink():
                data = named.read_bytes()
                entry["size"], entry["blake2b"] = len(data), hashlib.blake2b(data, digest_size=32).hexdigest()
        content.pop("digest", None)
        content["digest"] = json_digest(content)
    except (ValueError, KeyError, TypeError, OSError):
        return
    path.write_text(json.dumps(content))


def _other_kind(path: Path, choices: Choices) -> None:
    path.unlink()
    kind = choices.below(5)
    if kind == 0:
        path.symlink_to("../../outside/secret")
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(path.name)


def _change_bytes(path: Path, choices: Choices) -> None:
    data = bytearray(path.read_bytes())
    begin = choices.below(1 << 16) * max(1, len(data) >> 16)
    kind, count = choices.below(4), 1 + choices.below(64)
    if kind == 0:
        data[begin : begin + count] = bytes(choices.below(256) for _ in range(count))
    elif kind == 1:
        del data[begin:]
    elif kind == 2:
        del data[begin : begin + count]
    else:
        data[begin:begin] = bytes(count)
    path.write_bytes(data)


def _change_tree(tree: Any, choices: Choices) -> None:
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(tree)
    if not places:
        return
    (holder, key), kind = places[choices.below(len(places))], choices.below(4)
    if kind == 0:
        other, other_key = places[choices.below(len(places))]
        holder[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 1:
        del holder[key]
    elif kind == 2 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = VALUES[choices.below(len(VALUES))]


def _change_table(path: Path, choices: Choices) -> None:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid:
        return
    metadata = table.schema.metadata
    at = choices.below(max(1, table.num_columns))
    name, kind = table.schema.names[at], choices.below(7)
    try:
        if kind == 0:
            table = table.drop_columns([name])
        elif kind == 1:
            table = table.rename_columns({name: table.schema.names[choices.below(table.num_columns)]})
        elif kind == 2:
            table = table.set_column(at, name, table[name].cast(TYPES[choices.below(len(TYPES))]))
        elif kind == 3:
            rows = pa.array([choices.below(max(1, table.num_rows)) for _ in range(choices.below(8))], pa.int64())
            table = table.take(rows)
        elif kind == 4 and metadata:
            keys = sorted(metadata)
            metadata = {**metadata, keys[choices.below(len(keys))]: str(VALUES[choices.below(len(VALUES))]).encode()}
        else:
            values = table[name].to_pylist()
            values[choices.below(max(1, len(values)))] = VALUES[choices.below(len(VALUES))]
            table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
        pq.write_table(table.replace_schema_metadata(metadata), path)
    except (pa.ArrowException, TypeError, IndexError, OverflowError, UnicodeEncodeError):
        return
