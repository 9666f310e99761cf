"""The versions that data depend on: of packages, of what decodes and encodes pictures, and of this package's code."""

import functools
import hashlib
import importlib.metadata
import re
from pathlib import Path

_PACKAGES = (
    "gatokit",
    "apache-beam",
    "array-record",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "protobuf",
    "pyarrow",
    "sentencepiece",
)
_CODE = ("schemas", "tokenizers", "pipelines/stages.py", "pipelines/formats", "pipelines/shards/writer.py")
"""What reads, tokenizes and writes data of every kind: files and folders of this package."""
_CODECS = ("ZLib", "JPEG", "WEBP", "PNG", "TIFF")
"""Libraries that OpenCV names beside its own version."""


def packages() -> dict[str, str]:
    """The packages whose versions the bytes of a shard may depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


@functools.cache
def codecs() -> dict[str, str]:
    """The libraries that decode, resize and encode pictures, with their versions."""
    import cv2
    import PIL

    built = cv2.getBuildInformation()
    versions = {"opencv": cv2.__version__, "pillow": PIL.__version__}
    for name in _CODECS:
        found = re.search(rf"^\s*{name}:.*\(ver ([^)]*)\)", built, re.MULTILINE)
        if found is not None:
            versions[name.lower()] = found[1]
    return versions


@functools.cache
def code_digest(kind: str) -> str:
    """Sixteen hexadecimal digits over the source code that scans and tokenizes datasets of a kind, ``episodes`` or
    ``documents``."""
    package = Path(__file__).resolve().parent.parent
    content = hashlib.blake2b(digest_size=8)
    for name in (*_CODE, f"pipelines/{kind}"):
        found = [package / name] if name.endswith(".py") else sorted((package / name).glob("*.py"))
        for path in found:
            source = path.read_bytes()
            content.update(f"{path.relative_to(package)}\0{len(source)}\0".encode() + source)
    return content.hexdigest()
