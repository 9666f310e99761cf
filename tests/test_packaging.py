"""What is shipped, and what importing it brings along."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
)


def shipped() -> set[str]:
    """Every file that has to be in a wheel, as paths below ``gatokit``."""
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"schemas/record.proto", "schemas/record_pb2.pyi", "pipelines/find.py"} <= found
    assert {f"{folder}/py.typed" for folder in FOLDERS} <= found
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made from a copy so that the checkout stays as it is."""
    copy = tmp_path_factory.mktemp("copy") / "gatokit"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(out)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    [path] = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip makes of the source distribution, as a Beam worker does."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q", "-w", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(sdist)], check=True, capture_output=True)
    [path] = out.iterdir()
    return path


def test_wheel_holds_every_file_below_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    files = {name for name in names if ".dist-info/" not in name}
    assert files == {f"gatokit/{name}" for name in shipped()}
    assert {name.split("/")[0] for name in names} == {"gatokit", "gatokit-0.1.0.dist-info"}


def test_wheel_names_the_command_and_its_requirements(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    entry_points = archive.read("gatokit-0.1.0.dist-info/entry_points.txt").decode()
    assert entry_points == "[console_scripts]\ngatokit = gatokit.cli.main:main\n"
    metadata = archive.read("gatokit-0.1.0.dist-info/METADATA").decode()
    required = set(re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.M))
    assert {"numpy", "pyarrow", "pydantic", "sentencepiece", "array-record"} <= required
    assert not {"apache-beam", "tensorflow-datasets", "tensorflow-cpu", "jax", "envlogger"} & required
    extras = set(re.findall(r"^Provides-Extra: (\w+)$", metadata, re.M))
    assert {"build", "train", "tpu", "demo", "test"} <= extras


def test_sdist_holds_what_a_build_of_it_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert shipped() | {"setup.py", "pyproject.toml"} <= names


def test_installed_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import gatokit.schemas.record as record, gatokit.pipelines.find as find, gatokit.cli.main as main\n"
        "print(record.__file__, find.__file__, main.__file__, sep='\\n')"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    below = tmp_path / "site" / "gatokit"
    assert done.stdout.splitlines() == [
        f"{below}/schemas/record.py",
        f"{below}/pipelines/sources/find.py",
        f"{below}/cli/main.py",
    ]


def loaded(*modules: str) -> set[str]:
    """Top-level packages in memory after importing ``modules`` in a fresh interpreter."""
    program = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    names = json.loads(done.stdout)
    assert set(modules) <= set(names)
    return {name.split(".")[0] for name in names}


def test_pipelines_import_neither_tensorflow_nor_jax() -> None:
    packages = loaded("gatokit.pipelines.run", "gatokit.pipelines.beam.jobs")
    assert "apache_beam" in packages
    assert not packages & {"tensorflow", "jax", "torch"}


def test_what_reads_finished_datasets_imports_no_builder() -> None:
    below = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for folder in ("inspection", "tokenizers", "schemas")
        for path in sorted((ROOT / folder).glob("*.py"))
        if path.stem != "__init__"
    ]
    assert {"tokenizers.episode", "schemas.manifest"} <= set(below)
    packages = loaded("gatokit.inspection", *(f"gatokit.{name}" for name in below))
    assert not packages & {"apache_beam", "tensorflow", "tensorflow_datasets", "jax", "envlogger"}


def test_imports_run_one_way() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)
