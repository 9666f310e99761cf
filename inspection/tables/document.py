"""One document: its index row, and its texts and images in reading order."""

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.rows import EpisodeRow
from gatokit.inspection.read.stored import StoredDocument
from gatokit.inspection.read.values import json_value
from gatokit.inspection.tables.images import save_images
from gatokit.inspection.tables.output import Output
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import EncodedImage, TokenKind
from gatokit.schemas.words import shown
from gatokit.tokenizers.image_header import probe

FIRST_PARTS = 20
"""Texts and images of a document that are shown without ``--full``."""
TEXT_LINES = 8
"""Lines of a text that are shown without ``--full``."""

_INDENT = "    "
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show_document(output: Output, dataset: DatasetReader, row: EpisodeRow, full: bool, folder: Path | None) -> None:
    """Shows a document's row and its parts, shortened unless ``full``, and writes its images into ``folder``."""
    output.say(f"{row.episode_id}\n  {dataset.name}, {dataset.totals.kind}")
    result: dict[str, Any] = {"dataset": dataset.name, "document": row.columns(), "parts": None, "tokens": None}
    if row.shard is None:
        output.say(f"  {row.why_unstored}")
        output.result(result)
        return
    document = dataset.document(row)
    first, count = row.first_record or 0, len(document.records)
    records = f"record {first}" if count == 1 else f"records {first} to {first + count - 1}"
    output.say(f"  {row.split}, {shown(document.tokens)} tokens, {records} of\n  {dataset.path / row.shard}")
    if row.detail is not None:
        output.say(f"  {row.detail}")
    text, image = (int(np.count_nonzero(document.sequence.kinds == kind)) for kind in (TokenKind.TEXT, TokenKind.IMAGE))
    if output.as_json:
        result["parts"] = [part if isinstance(part, str) else _image_value(part) for part in document.parts]
        result["tokens"] = {"text": text, "image": image}
    else:
        _show_parts(output, document, full)
        output.say(_summary(document, text, image))
    if folder is not None:
        result["images"] = save_images(output, folder, document.images)
    output.result(result)


def _show_parts(output: Output, document: StoredDocument, full: bool) -> None:
    parts = document.parts
    for number, part in enumerate(parts if full else parts[:FIRST_PARTS], 1):
        if isinstance(part, EncodedImage):
            value = _image_value(part)
            pixels = value["fault"] if "fault" in value else f"RGB sha256 {value['sha256']}"
            size = f"{part.height} x {part.width} {value['codec']}, {len(part.data):,} bytes"
            output.say(f"\n{number}. image, {size}, {pixels}")
        else:
            output.say(f"\n{number}. text, {len(part):,} character{'s' * (len(part) != 1)}")
            _show_text(part, output.width, full)
    output.say("")
    if not full and len(parts) > FIRST_PARTS:
        output.say(f"… and {len(parts) - FIRST_PARTS:,} more parts; --full shows all")


def _show_text(text: str, width: int, full: bool) -> None:
    """Prints the text past the console, which would read markup and emoji in it; control characters become escapes."""
    if full:
        print(_escaped(text))
        return
    room = max(20, width - len(_INDENT))
    # Every line has at least one character, so a longer beginning would never be shown.
    lines = [
        line
        for paragraph in _escaped(text[: room * (TEXT_LINES + 1)]).split("\n")
        for line in textwrap.wrap(paragraph, room, replace_whitespace=False) or [""]
    ]
    for line in lines[:TEXT_LINES]:
        print(f"{_INDENT}{line}".rstrip())
    if len(lines) > TEXT_LINES or len(text) > room * (TEXT_LINES + 1):
        print(f"{_INDENT}… --full shows all of it")


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _image_value(image: EncodedImage) -> dict[str, Any]:
    """``{height, width, sha256}`` of an image's RGB bytes, its codec and size; ``fault`` if it does not decode."""
    stored: dict[str, Any] = {"height": image.height, "width": image.width, "codec": None, "bytes": len(image.data)}
    try:
        stored["codec"] = probe(image.data).codec
        return {**json_value(image), **stored}
    except RejectedError as error:
        return {**stored, "sha256": None, "fault": error.detail}


def _summary(document: StoredDocument, text: int, image: int) -> str:
    tokens, sizes = document.tokens, [len(record.sequence.tokens) for record in document.records]
    counts = [f"{text:,} of text"] if text else []
    if image:
        images = len(document.images)
        counts.append(f"{image:,} patch{'es' * (image > 1)} of {images:,} image{'s' * (images > 1)}")
    more = ", …" if len(sizes) > 8 else ""
    records = f"; {len(sizes):,} records of {', '.join(f'{size:,}' for size in sizes[:8])}{more}"
    return f"{tokens:,} token{'s' * (tokens > 1)}: {', '.join(counts)}{records if len(sizes) > 1 else ''}"
