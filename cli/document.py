"""What ``gatokit inspect --document`` shows: an index row, and texts and pictures in reading order."""

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.cli.console import Output
from gatokit.cli.drops import why_unstored
from gatokit.cli.pictures import show_written, write_pictures
from gatokit.inspection import DatasetReader, EpisodeRow, StoredDocument
from gatokit.inspection.read.values import json_value
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import EncodedImage, TokenKind
from gatokit.schemas.words import shown
from gatokit.tokenizers.image_header import probe

FIRST_PARTS = 20
"""Texts and pictures of a document that are shown without ``--full``."""
TEXT_LINES = 8
"""Lines of a text that are shown without ``--full``."""

_INDENT = "    "
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show_document(output: Output, dataset: DatasetReader, row: EpisodeRow, full: bool, folder: Path | None) -> None:
    """A document's row and its parts, shortened unless ``full``; its pictures go into ``folder``."""
    output.say(f"{row.episode_id}\n  {dataset.name}, {dataset.totals.kind}")
    result: dict[str, Any] = {"dataset": dataset.name, "document": row.columns(), "parts": None, "tokens": None}
    if row.shard is None:
        output.say(f"  {why_unstored(row)}")
        output.result(result)
        return
    document = dataset.document(row)
    first, records = row.first_record or 0, len(document.records)
    where = f"record {first}" if records == 1 else f"records {first} to {first + records - 1}"
    output.say(f"  {row.split}, {shown(document.tokens)} tokens, {where} of\n  {dataset.path / row.shard}")
    if row.detail is not None:
        output.say(f"  {row.detail}")
    text, image = (int(np.count_nonzero(document.sequence.kinds == kind)) for kind in (TokenKind.TEXT, TokenKind.IMAGE))
    if output.as_json:
        result["parts"] = [_json_part(part) for part in document.parts]
        result["tokens"] = {"text": text, "image": image}
    else:
        _show_parts(output, document, full)
        output.say(_summary(document, text, image))
    if folder is not None:
        paths = write_pictures(folder, document.images)
        show_written(output, folder, paths)
        result["images"] = [str(path) for path in paths]
    output.result(result)


def _show_parts(output: Output, document: StoredDocument, full: bool) -> None:
    parts = document.parts
    for number, part in enumerate(parts if full else parts[:FIRST_PARTS], 1):
        if isinstance(part, EncodedImage):
            output.say(f"\n{number}. {_picture(part)}")
        else:
            output.say(f"\n{number}. text, {len(part):,} character{'s' * (len(part) != 1)}")
            _show_text(part, output.width, full)
    output.say("")
    if not full and len(parts) > FIRST_PARTS:
        output.say(f"… and {len(parts) - FIRST_PARTS:,} more parts; --full shows all")


def _show_text(text: str, width: int, full: bool) -> None:
    """Prints it past the console, which would read markup and emoji into it; control characters show as escapes."""
    if full:
        print(_visible(text))
        return
    room = max(20, width - len(_INDENT))
    # A line has at least one character: more than this is never shown.
    lines = [
        line
        for paragraph in _visible(text[: room * (TEXT_LINES + 1)]).split("\n")
        for line in textwrap.wrap(paragraph, room, replace_whitespace=False) or [""]
    ]
    for line in lines[:TEXT_LINES]:
        print(f"{_INDENT}{line}".rstrip())
    if len(lines) > TEXT_LINES or len(text) > room * (TEXT_LINES + 1):
        print(f"{_INDENT}… --full shows all of it")


def _visible(text: str) -> str:
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _picture(image: EncodedImage) -> str:
    value = _json_picture(image)
    pixels = value["fault"] if "fault" in value else f"RGB sha256 {value['sha256']}"
    return f"picture, {image.height} x {image.width} {value['codec']}, {len(image.data):,} bytes, {pixels}"


def _json_part(part: str | EncodedImage) -> Any:
    return part if isinstance(part, str) else _json_picture(part)


def _json_picture(image: EncodedImage) -> dict[str, Any]:
    """``{height, width, sha256}`` of a picture's RGB bytes, its codec and size; ``fault`` where it does not decode."""
    stored: dict[str, Any] = {"height": image.height, "width": image.width, "codec": None, "bytes": len(image.data)}
    try:
        stored["codec"] = probe(image.data).codec
        return {**json_value(image), **stored}
    except RejectedError as error:
        return {**stored, "sha256": None, "fault": error.detail}


def _summary(document: StoredDocument, text: int, image: int) -> str:
    counts = [f"{text:,} of text"] if text else []
    if image:
        pictures = len(document.images)
        counts.append(f"{image:,} patch{'es' * (image > 1)} of {pictures:,} picture{'s' * (pictures > 1)}")
    sizes = ", ".join(f"{len(record.sequence.tokens):,}" for record in document.records[:8])
    more = ", …" if len(document.records) > 8 else ""
    records = f"; {len(document.records):,} records of {sizes}{more}" if len(document.records) > 1 else ""
    return f"{document.tokens:,} token{'s' * (document.tokens > 1)}: {', '.join(counts)}{records}"
