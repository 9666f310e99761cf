"""Input that wants to do harm: it ends as a row with a reason, a refusal, or as the text that it is."""

import ast
import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.documents.reader import plan_documents
from gatokit.pipelines.run import build
from gatokit.schemas.config import TextConfig, read_config
from gatokit.schemas.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "schemas",
    "tokenizers",
    "storage",
    "pipelines",
    "inspection",
    "loader",
    "trainer",
    "policy",
    "evaluation",
    "environments",
    "cli",
    "examples",
)
PNG = cv2.imencode(".png", np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))[1].tobytes()
MARKUP = (
    "<script>alert('x')</script>",
    "</td><img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp; [red]not red[/red]",
    "{{7*7}} ${HOME} `id` $(id) %s %n",
    "' OR 1=1; DROP TABLE t; --",
)


def written_config(tmp_path: Path, vocabulary: Path, dataset: str, config: str = "") -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(f"vocabulary: {vocabulary}\n{config}\ndatasets:\n  - {{name: d, {dataset}}}\n")
    return path


# --- code in data ------------------------------------------------------------------------------------------------


def test_nothing_is_unpickled_evaluated_or_loaded_as_unsafe_yaml():
    """By name, in every module that is shipped: what could run code that stands in data."""
    banned = {"eval", "exec", "__import__"}
    modules = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    found = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                found += [where for name in node.names if name.name.split(".")[0] in modules]
            elif isinstance(node, ast.ImportFrom):
                found += [where] if (node.module or "").split(".")[0] in modules else []
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                safe = "Loader" in words.get("Loader", ast.unparse(node.args[1]) if len(node.args) > 1 else "")
                if (
                    name in banned
                    or words.get("allow_pickle", "False") != "False"
                    or words.get("shell", "False") != "False"
                    or (name in ("yaml.load", "yaml.load_all") and not safe)
                    or name in ("yaml.unsafe_load", "yaml.full_load", "os.system", "torch.load")
                ):
                    found.append(where)
    assert found == []


def test_the_yaml_loader_is_a_safe_one():
    import yaml

    from gatokit.schemas import config

    assert issubclass(config._Loader, yaml.SafeLoader) or issubclass(config._Loader, yaml.CSafeLoader)


def test_a_config_that_would_run_code_runs_none(tmp_path):
    mark = tmp_path / "ran"
    for tag in (
        "!!python/object/apply:os.system",
        "!!python/object/new:os.system",
        "!!python/object/apply:subprocess.run",
    ):
        path = tmp_path / "c.yaml"
        path.write_text(f"vocabulary: {tag} ['touch {mark}']\n")
        with pytest.raises(ConfigError, match="is not allowed; write a plain value"):
            read_config(path)
    assert not mark.exists()


def test_a_billion_laughs_are_refused_or_small(tmp_path):
    """Anchors share what they name; what would unfold to much is refused before anything walks over it."""
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "c.yaml"
    path.write_text("\n".join(lines) + "\nvocabulary: x\n")
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="line 1: aliases unfold to more than 1,000,000"):
            read_config(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# --- bombs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gz", pytest.param("zst", marks=pytest.mark.slow)])
def test_a_compressed_line_that_never_ends_is_a_row_in_bounded_memory(suffix, tmp_path, vocabulary):
    size = 512 << 20
    if suffix == "gz":
        data = gzip.compress(b'{"text": "good"}\n' + b'{"text": "' + bytes(size) + b'"}\n{"text": "too"}\n', 1)
    else:
        data = zstandard.compress(b'{"text": "good"}\n' + b'{"text": "' + bytes(size) + b'"}\n{"text": "too"}\n')
    path = tmp_path / f"t.jsonl.{suffix}"
    path.write_bytes(data)
    assert len(data) * 100 < size
    config = written_config(tmp_path, vocabulary, f"kind: text, source: t.jsonl.{suffix}", "max_episode_bytes: 65536")
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=f"t.jsonl.{suffix}: unpacks to more than [0-9,]+ bytes; max_unpacked of the"
        ):
            build(config, tmp_path / "out")
        [dataset] = read_config(config).datasets
        assert isinstance(dataset, TextConfig)
        allowed = dataset.model_copy(update={"max_unpacked": 1 << 16})
        [file] = plan_documents(allowed, "datasets[0]", tmp_path).files
        assert [found.reason for found in file.scan(65536)] == [None, "too_large", None]
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()
    config.write_text(config.read_text().replace("{name: d,", "{name: d, max_unpacked: 65536,"))
    build(config, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    assert open_directory(tmp_path / "out").manifest.datasets[0].kept == 2


# --- names in archives and lists -----------------------------------------------------------------------------------


def test_names_in_a_tar_lead_nowhere(tmp_path, vocabulary):
    """Nothing is ever unpacked to a disk; a link in an archive is no file."""
    names = ["../../slip", "/etc/slip", "..", "a/../../slip", "C:\\slip", "~/slip", "slip\n", "%2e%2e/slip"]
    path = tmp_path / "archive" / "t.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number, name in enumerate(names):
            for suffix, data in (("png", PNG[:-12] + PNG[-12:]), ("txt", f"caption {number}".encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        secret = tmp_path / "secret.png"
        secret.write_bytes(PNG)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"link{kind.decode()}.png")
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
            text = tarfile.TarInfo(f"link{kind.decode()}.txt")
            text.size = 7
            archive.addfile(text, io.BytesIO(b"caption"))
    before = set(tmp_path.rglob("*"))
    dataset = "kind: image_text, format: webdataset, source: archive/*.tar, drop_duplicates: false"
    config = written_config(tmp_path, vocabulary, dataset)
    build(config, tmp_path / "out")
    assert {item for item in tmp_path.rglob("*") if (tmp_path / "out") not in (item, *item.parents)} == before | {
        config
    }
    assert not list(tmp_path.parent.glob("slip*"))
    assert verify(tmp_path / "out") == []
    [split] = open_directory(tmp_path / "out").manifest.datasets[0].splits
    rows = pq.read_table(tmp_path / "out" / "d" / split.index).to_pylist()
    assert {row["episode_id"].partition("#")[2]: row["kept"] for row in rows if row["kept"]}.keys() >= {"../../slip"}
    assert not [row for row in rows if row["kept"] and "link" in row["episode_id"]]


# --- text that looks like something else -----------------------------------------------------------------------------


def test_markup_in_captions_is_text(tmp_path, vocabulary, capsys):
    from gatokit.cli.main import main

    (tmp_path / "p.png").write_bytes(PNG)
    images = [{"id": 1, "file_name": "p.png"}]
    annotations = [{"id": n, "image_id": 1, "caption": caption} for n, caption in enumerate(MARKUP)]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    config = written_config(tmp_path, vocabulary, "kind: image_text, format: coco, source: c.json, image_dir: .")
    build(config, tmp_path / "out")
    documents = {item.id: item.parts[1] for item in open_directory(tmp_path / "out").datasets["d"].documents()}
    assert documents == {f"c.json#{number}": caption for number, caption in enumerate(MARKUP)}
    for number, caption in enumerate(MARKUP):
        assert main(["inspect", str(tmp_path / "out"), "--document", f"c.json#{number}"]) == 0
        shown = capsys.readouterr().out
        assert caption in shown


# --- lengths that lie --------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def test_records_whose_lengths_lie_are_errors_and_take_no_memory():
    from gatokit.schemas.record import Record

    tracemalloc.start()
    try:
        for field in range(1, 17):
            for length in (4, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1):
                with pytest.raises(ValueError, match="the record"):
                    Record.from_bytes(varint(field << 3 | 2) + varint(length) + b"\x01\x02\x03")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
