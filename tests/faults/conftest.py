"""Commands in processes of their own, with faults put into the libraries that they use."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

HANG_SECONDS = 300
"""A command that takes longer is taken to hang; none of these takes a tenth of it."""
ONCE = '''
import os, signal, sys
WORKER = any("multiprocessing.forkserver" in word for word in sys.orig_argv)
CHILD = "gatokit.pipelines.beam.crash_isolation" in sys.orig_argv
def once():
    """Whether this is the first process that asks."""
    try:
        os.close(os.open({mark!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
'''
"""``WORKER`` holds in the process that workers are forked from, and so in them."""


@dataclass(frozen=True)
class Done:
    """What a command did and said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on standard output."""
        assert self.status == 0, self.err
        return dict(json.loads(self.out))

    @property
    def sentence(self) -> str:
        """The one sentence of a command that failed."""
        assert self.status == 1, self.err
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("gatokit: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("gatokit: ")


def unignored() -> None:
    """Of a shell without job control, what it starts in the background inherits that SIGINT is ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., AbstractContextManager[subprocess.Popen[str]]]:
    """``command(*words, fault=CODE)``: begins a command, and ends it where it has not ended; ``fault`` is Python that
    every process of it runs first."""

    @contextmanager
    def begin(*words: object, fault: str = "") -> Iterator[subprocess.Popen[str]]:
        folder = tmp_path / "fault"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(ONCE.format(mark=str(tmp_path / "mark")) + fault)
        program = [Path(sys.executable).parent / "gatokit", *words]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        with subprocess.Popen(
            list(map(str, program)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=unignored,
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    return begin


@pytest.fixture
def gatokit(command: Callable[..., AbstractContextManager[subprocess.Popen[str]]]) -> Callable[..., Done]:
    """``gatokit(*words, fault=CODE)``: runs a command; ``fault`` as in ``command``."""

    def run(*words: object, fault: str = "") -> Done:
        with command(*words, fault=fault) as process:
            out, err = process.communicate(timeout=HANG_SECONDS)
        return Done(process.returncode, out, err)

    return run


@pytest.fixture
def texts(tmp_path: Path, vocabulary: Path) -> Path:
    """A config over texts that make a dozen shards."""
    (tmp_path / "texts").mkdir()
    for number in range(10):
        lines = [json.dumps({"text": f"file {number}, line {line}: {'some words ' * 10}"}) for line in range(12)]
        (tmp_path / "texts" / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    path = tmp_path / "texts.yaml"
    path.write_text(
        f"vocabulary: {vocabulary}\nshard_bytes: 2000\ndatasets:\n"
        "  - {name: t, kind: text, source: 'texts/*.jsonl'}\n"
    )
    return path


def picture(number: int) -> bytes:
    """A PNG that must be decoded to be stored, and that no other number has."""
    pixels = np.full((40, 50, 3), number, np.uint8)
    pixels[:, :, 0] = np.arange(50)
    return bytes(cv2.imencode(".png", pixels)[1])


@pytest.fixture
def captions(tmp_path: Path, vocabulary: Path) -> Path:
    """A config over 24 captioned pictures, in some shards."""
    folder = tmp_path / "images"
    folder.mkdir()
    images, annotations = [], []
    for number in range(24):
        (folder / f"{number}.png").write_bytes(picture(number))
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations.append({"id": number, "image_id": number, "caption": f"picture {number}"})
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    path = tmp_path / "captions.yaml"
    path.write_text(
        f"vocabulary: {vocabulary}\nshard_bytes: 4096\ndatasets:\n"
        "  - {name: c, kind: image_text, format: coco, source: captions.json, image_dir: images}\n"
    )
    return path


def contents(directory: Path) -> dict[str, str]:
    """Digest of every file but the log."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "build.log.jsonl" and ".scan" not in path.parts
    }


@pytest.fixture(name="contents")
def contents_(tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    """``contents(directory)``: the digest of every file but the log."""
    return contents
