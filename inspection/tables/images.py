"""Writes stored images into files, as they are: the bytes of each are those of its record."""

from collections.abc import Sequence
from pathlib import Path

from gatokit.inspection.tables.output import Output
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.tokens import EncodedImage
from gatokit.storage.files import write_atomically
from gatokit.tokenizers.image_header import probe

_SUFFIXES = {"jpeg": "jpg", "png": "png"}


def save_images(output: Output, folder: Path, images: Sequence[EncodedImage]) -> list[str]:
    """Writes images as ``001.jpg``, ``002.png``, … into a folder, which is made, and says where they are. Each file
    appears complete or not at all; a file that has the image already is left alone. Returns the paths.

    Raises ConfigError if a file of such a name holds something else, or the folder cannot be written to.
    """
    digits = max(3, len(str(len(images))))
    paths = [
        folder / f"{number:0{digits}}.{_SUFFIXES[probe(image.data).codec]}" for number, image in enumerate(images, 1)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, image in zip(paths, images, strict=True):
            if path.exists() and path.read_bytes() != image.data:
                raise ConfigError(
                    f"--images {folder}: {path.name} exists already and is another file; give another directory"
                )
        for path, image in zip(paths, images, strict=True):
            if not path.exists():
                write_atomically(path.absolute(), image.data)
    except OSError as error:
        raise ConfigError(f"--images {folder}: cannot be written to: {error.strerror}") from None
    if not paths:
        output.say(f"no images to write to {folder}")
    elif len(paths) == 1:
        output.say(f"wrote {paths[0]}")
    else:
        output.say(f"wrote {len(paths):,} images to {folder}: {paths[0].name} to {paths[-1].name}")
    return [str(path) for path in paths]
