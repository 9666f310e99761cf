"""Searches for bytes on which a reader misbehaves, guided by coverage; needs ``pip install atheris``.

    python tests/fuzz/run.py tar 600        # seconds

Starts from, and adds to, ``tests/fuzz/corpus/TARGET``. What makes a target fail is left in ``tests/fuzz/found``.
"""

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent


def main() -> None:
    """Runs one target."""
    name, seconds = sys.argv[1], sys.argv[2]
    with atheris.instrument_imports(include=["gatokit"]):
        sys.path.insert(0, str(HERE))
        from targets import TARGETS
    corpus, found, seen = HERE / "corpus" / name, HERE / "found", HERE / "found" / f"corpus-{name}"
    seen.mkdir(parents=True, exist_ok=True)
    options = [
        "-max_len=8192",
        f"-max_total_time={seconds}",
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(seen), str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
