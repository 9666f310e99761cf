"""Searches for bytes on which a reader misbehaves, guided by coverage; needs ``pip install atheris``.

    python tests/fuzz/run.py tar 600        # seconds

Starts from ``tests/fuzz/corpus``. What reaches new lines is left in ``tests/fuzz/found/corpus-TARGET``, what makes a
target fail in ``tests/fuzz/found``.
"""

import sys
import zipfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
LONGEST = {"vocabulary": 1 << 15, "index": 1 << 14, "folder": 128}
"""Bytes of an input."""


def main() -> None:
    """Runs one target."""
    name, seconds = sys.argv[1], sys.argv[2]
    with atheris.instrument_imports(include=["gatokit"]):
        sys.path.insert(0, str(HERE))
        from targets import TARGETS
    corpus, found, seen = HERE / "corpus" / name, HERE / "found", HERE / "found" / f"corpus-{name}"
    seen.mkdir(parents=True, exist_ok=True)
    kept = HERE / "corpus" / f"{name}.zip"
    if kept.exists():
        with zipfile.ZipFile(kept) as archive:
            archive.extractall(seen)
    options = [
        f"-max_len={LONGEST.get(name, 8192)}",
        f"-max_total_time={seconds}",
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(seen), str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
