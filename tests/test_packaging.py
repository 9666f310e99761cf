"""What is shipped, and what importing it brings along."""

import email
import importlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gatokit

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
"""The folders that are installed; ``package`` as gatokit itself."""


def tracked(*below: str) -> set[str]:
    """The paths of the repository's files below folders."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in below
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def shipped() -> set[str]:
    """Every file that has to be in a wheel, as paths below ``gatokit``."""
    found = {path.removeprefix("package/") for path in tracked(*FOLDERS)}
    assert {"__init__.py", "__main__.py", "py.typed", "cli/main.py", "schemas/record.proto"} <= found
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made from a copy so that the checkout stays as it is."""
    copy = tmp_path_factory.mktemp("copy") / "gatokit"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy)
    for folder in (*FOLDERS, "benchmarks", "deploy", "docs", "examples", "tests"):
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
    assert {name.split("/")[0] for name in names} == {"gatokit", f"gatokit-{gatokit.__version__}.dist-info"}


def test_wheel_names_the_command_and_its_requirements(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    entry_points = archive.read(f"gatokit-{gatokit.__version__}.dist-info/entry_points.txt").decode()
    assert entry_points == "[console_scripts]\ngatokit = gatokit.cli.main:main\n"
    metadata = archive.read(f"gatokit-{gatokit.__version__}.dist-info/METADATA").decode()
    required = set(re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.M))
    assert {"numpy", "pyarrow", "pydantic", "sentencepiece", "array-record"} <= required
    assert not {"apache-beam", "tensorflow-datasets", "tensorflow-cpu", "jax", "envlogger"} & required
    extras = set(re.findall(r"^Provides-Extra: (\w+)$", metadata, re.M))
    assert {"build", "train", "tpu", "demo", "environments", "envlogger", "test"} <= extras
    needed = re.findall(r"^Requires-Dist: ([\w-]+).*extra == .environments.", metadata, re.M)
    assert {"metaworld", "minigrid", "ale-py", "dm-control", "gymnasium"} == set(needed)


def test_the_metadata_says_what_a_stranger_asks(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    folder = f"gatokit-{gatokit.__version__}.dist-info"
    metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
    assert metadata["Version"] == gatokit.__version__
    assert metadata["License"] == "Apache-2.0"
    assert metadata["Summary"]
    assert metadata["Keywords"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# Gatokit\n")
    named = {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)}
    assert named < set(metadata.get_all("Classifier", []))
    assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_sdist_holds_what_people_and_builds_of_it_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = {"setup.py", "pyproject.toml", "requirements.lock", "Makefile", "LICENSE", "README.md", "CHANGELOG.md"}
    assert files | {"CONTRIBUTING.md", "CITATION.cff"} <= names
    assert tracked(*FOLDERS, "benchmarks", "deploy", "docs", "examples", "tests") <= names


def test_the_lock_has_every_package_of_the_extras_at_a_version_that_they_allow(wheel: Path) -> None:
    locked: dict[str, list[str]] = {}
    for line in re.findall(r"^(\S.*?) \\$", (ROOT / "requirements.lock").read_text(), re.M):
        item = Requirement(line)
        locked.setdefault(canonicalize_name(item.name), []).append(str(item.specifier).removeprefix("=="))
    metadata = zipfile.ZipFile(wheel).read(f"gatokit-{gatokit.__version__}.dist-info/METADATA").decode()
    for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M):
        item = Requirement(line)
        if re.search(r"extra == .(tpu|examples).", line):
            continue
        assert locked[canonicalize_name(item.name)], line
        for version in locked[canonicalize_name(item.name)]:
            assert item.specifier.contains(version, prereleases=True), (line, version)
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_installed_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import gatokit, gatokit.schemas.record as record, gatokit.cli.main as main\n"
        "print(gatokit.__file__, record.__file__, main.__file__, sep='\\n')"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    below = tmp_path / "site" / "gatokit"
    assert done.stdout.splitlines() == [
        f"{below}/__init__.py",
        f"{below}/schemas/record.py",
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


def test_the_examples_of_contributing_fit_the_files_that_they_change() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^```diff\n(\S+)\n(.*?)^```", text, re.S | re.M)
    assert len(blocks) > 10
    for path, block in blocks:
        lines = (ROOT / path).read_text().splitlines()
        for line in block.splitlines():
            assert line.startswith("+") or line[1:] in lines, (path, line)
    for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M):
        for module, names in re.findall(r"^from (gatokit\S*) import ([^(]*?)$", block, re.M):
            found = importlib.import_module(module)
            assert all(hasattr(found, name.strip()) for name in names.split(",")), module


LOCKS = (
    "requirements.lock",
    "requirements-gpu.lock",
    "requirements-tpu.lock",
    "deploy/requirements.txt",
    "tests/fuzz/requirements.lock",
)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_hashes(lock: str) -> None:
    lines = (ROOT / lock).read_text().splitlines()
    packages = [number for number, line in enumerate(lines) if re.match(r"\w", line)]
    assert packages
    for begin, end in zip(packages, [*packages[1:], len(lines)], strict=True):
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^\\]+)? \\", lines[begin]), lines[begin]
        hashes = lines[begin + 1 : end]
        assert hashes, lines[begin]
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes), lines[begin]
    assert not any(line.startswith((" -", "-")) for line in lines)


def test_locks_of_the_same_package_have_the_same_hashes() -> None:
    def blocks(lock: str) -> set[str]:
        packages = re.split(r"\n(?=\w)", (ROOT / lock).read_text().rstrip("\n"))[1:]
        return {re.sub(" ; .*", "", package) for package in packages}

    everything = blocks("requirements.lock")
    assert len(everything) > 200
    assert blocks("deploy/requirements.txt") <= everything
    for lock, more in (("gpu", r"nvidia-.*-cu12|jax-cuda12-.*"), ("tpu", r"libtpu")):
        rest = {block.partition("==")[0] for block in blocks(f"requirements-{lock}.lock") - everything}
        assert rest
        assert not [name for name in rest if not re.fullmatch(more, name)]


def test_nothing_is_installed_without_hashes() -> None:
    """Every pip and uv of make, of continuous integration and of the images: from a lock, or gatokit itself."""
    for file in ("Makefile", ".ci/run", "deploy/Dockerfile", "deploy/template.Dockerfile", "deploy/cloudbuild.yaml"):
        text = (ROOT / file).read_text().replace("\\\n", " ")
        text = text.replace("$(LOCKED)", "--no-deps --require-hashes -r").replace("$(UV_INSTALL)", "uv pip install")
        for command in re.findall(r"(?:pip|\$\(PIP\)) install\b(?! -q --system)([^;&}\n]*)", text):
            is_locked = re.search(r"--no-deps --require-hashes -r \S+\.(lock|txt)\s*$", command)
            is_gatokit = re.search(r"--no-deps --no-build-isolation .*\.\s*$", command)
            assert is_locked or is_gatokit, (file, command)
    assert (ROOT / "Makefile").read_text().count("$(LOCKED) requirements.lock") == 2


def test_images_are_made_only_of_bases_with_a_digest() -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    good = {"Dockerfile": f"apache/beam_python3.11_sdk:2.77.0@{digest}", "template.Dockerfile": f"gcr.io/x@{digest}"}
    for file, image in good.items():
        text = (ROOT / "deploy" / file).read_text()
        name = {"Dockerfile": "BASE", "template.Dockerfile": "LAUNCHER"}[file]
        [check] = re.findall(r"^RUN (case .*?esac)$", text, re.M | re.S)
        for given, status in ((image, 0), ("", 2), (image.partition("@")[0], 2), (image[:-1], 2), (f"{image}0", 2)):
            done = subprocess.run(["sh", "-c", check], env={name: given}, capture_output=True, text=True)
            assert done.returncode == status, (file, given)
            assert ("by its digest" in done.stderr) == bool(status)
    for file in (ROOT / "deploy").glob("*Dockerfile"):
        for base in re.findall(r"^FROM (\S+)", file.read_text(), re.M):
            assert base.startswith("${"), base


def test_lower_bounds_of_what_reads_foreign_bytes_exclude_versions_with_known_holes(wheel: Path) -> None:
    metadata = zipfile.ZipFile(wheel).read(f"gatokit-{gatokit.__version__}.dist-info/METADATA").decode()
    asked: dict[str, list[Requirement]] = {}
    for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M):
        asked.setdefault(Requirement(line).name, []).append(Requirement(line))
    for name, hole in {
        "pillow": "12.1.1",
        "protobuf": "6.31.0",
        "pyarrow": "23.0.0",
        "sentencepiece": "0.2.0",
        "bokeh": "3.8.1",
        "tornado": "6.4.2",
    }.items():
        assert asked[name]
        assert not any(item.specifier.contains(hole) for item in asked[name]), name
