"""Writes stored pictures into files, as they are: the bytes of each are those of its record."""

from collections.abc import Sequence
from pathlib import Path

from gatokit.cli.console import Output
from gatokit.cli.files import write_whole
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_header import probe

_SUFFIXES = {"jpeg": "jpg", "png": "png"}


def write_pictures(folder: Path, pictures: Sequence[EncodedImage]) -> list[Path]:
    """Writes pictures as ``001.jpg``, ``002.png``, … into a folder, which is made; each appears whole or not at all.

    ConfigError where a file of such a name holds something else, or the folder cannot be written to. A picture that
    stands there already is left alone.
    """
    digits = max(3, len(str(len(pictures))))
    paths = [
        folder / f"{number:0{digits}}.{_SUFFIXES[probe(picture.data).codec]}"
        for number, picture in enumerate(pictures, 1)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, picture in zip(paths, pictures, strict=True):
            if path.exists() and path.read_bytes() != picture.data:
                raise ConfigError(f"--images {folder}: {path.name} stands there already; give another directory")
        for path, picture in zip(paths, pictures, strict=True):
            if not path.exists():
                write_whole(path, picture.data)
    except OSError as error:
        raise ConfigError(f"--images {folder}: cannot be written to: {error.strerror}") from None
    return paths


def show_written(output: Output, folder: Path, paths: Sequence[Path]) -> None:
    """Where the pictures are."""
    if not paths:
        output.say(f"no pictures to write to {folder}")
    elif len(paths) == 1:
        output.say(f"wrote {paths[0]}")
    else:
        output.say(f"wrote {len(paths):,} pictures to {folder}: {paths[0].name} to {paths[-1].name}")
