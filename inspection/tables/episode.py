"""One episode or document: its index row, and its decoded time steps, or its texts and images in reading order."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import EpisodeRow
from gatokit.inspection.read.stored import Step, StoredDocument
from gatokit.inspection.read.values import brief, flag_names, json_value
from gatokit.inspection.tables.output import Output, show_table, titled
from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.tokens import EncodedImage, TokenKind
from gatokit.schemas.words import counted, shown, visible_lines
from gatokit.storage.files import write_atomically
from gatokit.storage.ownership import check_output
from gatokit.tokenizers.image_codec import probe

FIRST_STEPS = 5
"""Time steps of an episode that are shown by default."""
FIRST_PARTS = 20
"""Texts and images of a document that are shown without ``--full``."""
TEXT_LINES = 8
"""Lines of a text that are shown without ``--full``."""

_NARROWEST_CELL = 14
_WIDEST_CELL = 48
_INDENT = "    "
_SUFFIXES = {"jpeg": "jpg", "png": "png"}


def show_episode(
    output: Output, dataset: DatasetReader, row: EpisodeRow, chosen: tuple[int, int | None] | None, folder: Path | None
) -> None:
    """Shows an episode's row and decoded steps: those of ``chosen`` [first, end), or the first ones (all as JSON).
    Writes their images into ``folder``.

    Raises ConfigError if the episode has fewer steps.
    """
    output.say(row.episode_id, f"  {dataset.name}, task {row.task}" + (f", agent {row.agent}" if row.agent else ""))
    threshold = "" if row.threshold is None else f", threshold {row.threshold:g}"
    output.say(f"  {shown(row.steps)} steps, return {shown(row.episode_return)}{threshold}")
    known = {name: value for name, value in row.metadata.items() if value is not None}
    if known:
        values = {
            name: brief(value, _WIDEST_CELL) if isinstance(value, str) else shown(value)
            for name, value in known.items()
        }
        output.say("  " + ", ".join(f"{name} {value}" for name, value in values.items()))
    result: dict[str, Any] = {"dataset": dataset.name, "episode": row.columns(), "fields": None, "steps": None}
    if row.shard is None:
        output.say(f"  {row.why_unstored}")
        output.result(result)
        return
    first_record, records = row.first_record or 0, len(row.record_tokens or ())
    output.say(f"  {row.split}, {shown(row.tokens)} tokens, records {first_record} to {first_record + records - 1} of")
    output.say(f"  {dataset.path / row.shard}")
    episode = dataset.episode(row)
    first, end = chosen or (0, None if output.as_json else FIRST_STEPS)
    if first >= episode.steps:
        raise ConfigError(f"--steps {first}:…: the episode has {episode.steps} steps")
    steps = list(episode.decoded_steps(first, end))
    if output.as_json:
        result["fields"] = episode.spec.model_dump(mode="json")["fields"]
        result["steps"] = [
            vars(step)
            | {name: json_value(value) for name, value in (("observation", step.observation), ("action", step.action))}
            | {"flags": flag_names(step.flags)}
            for step in steps
        ]
    else:
        _show_steps(output, steps)
        others = "; --steps A:B shows others" if len(steps) < episode.steps else ""
        output.say(f"steps {first} to {steps[-1].step} of {episode.steps}{others}")
    if folder is not None:
        begins = [*episode.sequence.step_begin.tolist(), len(episode.sequence.tokens)]
        first_token, end_token = begins[first], begins[steps[-1].step + 1]
        images = [placed.image for placed in episode.sequence.images if first_token <= placed.token < end_token]
        result["images"] = _save_images(output, folder, images)
    output.result(result)


def _show_steps(output: Output, steps: Sequence[Step]) -> None:
    """Shows a row a step with a column for every field, or a row for every field if these are too many."""
    values = [_fields("observation", step.observation) | _fields("action", step.action) for step in steps]
    rewards = [
        f"{'' if step.reward is None else f'{step.reward:.6g}'} {' '.join(flag_names(step.flags))}".strip()
        for step in steps
    ]
    paths = list(values[0])
    widths = {path: max(len(brief(value[path], _WIDEST_CELL)) for value in values) for path in paths}
    # What the step's number, its reward and the borders leave for the fields of a row.
    room = output.width - max(4, *map(len, rewards)) - len("step") - 3 * (len(paths) + 2) - 1
    for limit in range(_WIDEST_CELL, _NARROWEST_CELL - 1, -1):
        if sum(max(len(path), min(limit, width)) for path, width in widths.items()) <= room:
            rows = [
                {"step": step.step, "reward": reward} | {f"/{path}": brief(value[path], limit) for path in paths}
                for step, value, reward in zip(steps, values, rewards, strict=True)
            ]
            show_table(output, "", {"step": "step", **{f"/{path}": path for path in paths}, "reward": "reward"}, rows)
            return
    room = output.width - max(map(len, paths)) - 16
    rows = []
    for step, value, reward in zip(steps, values, rewards, strict=True):
        cells = {path: brief(value[path], room) for path in paths} | {"reward": reward}
        rows += [{"step": "", "field": path, "value": cell} for path, cell in cells.items()]
        rows[-len(cells)]["step"] = str(step.step)
    show_table(output, "", titled("step field value"), rows)


def _fields(name: str, value: Any) -> dict[str, Any]:
    """Values by a short name: the key path of an observation, with ``action/`` before it of an action."""
    if not isinstance(value, dict):
        return {name: value}
    return {key if name == "observation" else f"{name}/{key}": item for key, item in value.items()}


def show_document(output: Output, dataset: DatasetReader, row: EpisodeRow, full: bool, folder: Path | None) -> None:
    """Shows a document's row and its parts, shortened unless ``full``, and writes its images into ``folder``."""
    output.say(row.episode_id, f"  {dataset.name}, {dataset.totals.kind}")
    result: dict[str, Any] = {"dataset": dataset.name, "document": row.columns(), "parts": None, "tokens": None}
    if row.shard is None:
        output.say(f"  {row.why_unstored}")
        output.result(result)
        return
    document = dataset.document(row)
    first, count = row.first_record or 0, len(document.records)
    records = f"record {first}" if count == 1 else f"records {first} to {first + count - 1}"
    output.say(f"  {row.split}, {shown(document.tokens)} tokens, {records} of", f"  {dataset.path / row.shard}")
    if row.detail is not None:
        output.say(f"  {row.detail}")
    if output.as_json:
        kinds = document.sequence.kinds
        result["parts"] = [part if isinstance(part, str) else _image_value(part) for part in document.parts]
        result["tokens"] = {
            "text": int(np.count_nonzero(kinds == TokenKind.TEXT)),
            "image": int(np.count_nonzero(kinds == TokenKind.IMAGE)),
        }
    else:
        _show_parts(output, document, full)
    if folder is not None:
        result["images"] = _save_images(output, folder, document.images)
    output.result(result)


def _show_parts(output: Output, document: StoredDocument, full: bool) -> None:
    """Shows the texts and images, and below them how many tokens they are."""
    parts = document.parts
    for number, part in enumerate(parts if full else parts[:FIRST_PARTS], 1):
        if isinstance(part, EncodedImage):
            value = _image_value(part)
            pixels = value["fault"] if "fault" in value else f"RGB sha256 {value['sha256']}"
            size = f"{part.height} x {part.width} {value['codec']}, {len(part.data):,} bytes"
            output.say("", f"{number}. image, {size}, {pixels}")
        else:
            output.say("", f"{number}. text, {counted(len(part), 'character')}")
            output.say(*_text_lines(part, output.width, full))
    output.say("")
    if not full and len(parts) > FIRST_PARTS:
        output.say(f"… and {len(parts) - FIRST_PARTS:,} more parts; --full shows all")
    patches = int(np.count_nonzero(document.sequence.kinds == TokenKind.IMAGE))
    texts, images = document.tokens - patches, len(document.images)
    counts = [f"{texts:,} of text"] if texts else []
    if patches:
        counts.append(f"{patches:,} patch{'es' * (patches > 1)} of {counted(images, 'image')}")
    sizes = [f"{len(record.sequence.tokens):,}" for record in document.records]
    more = ", …" if len(sizes) > 8 else ""
    records = f"; {len(sizes):,} records of {', '.join(sizes[:8])}{more}" if len(sizes) > 1 else ""
    output.say(f"{counted(document.tokens, 'token')}: {', '.join(counts)}{records}")


def _text_lines(text: str, width: int, full: bool) -> list[str]:
    """The lines of a text: all as they are, or the first ones, wrapped to the width."""
    if full:
        return visible_lines(text)
    room = max(20, width - len(_INDENT))
    # Every line has at least one character, so a longer beginning would never be shown.
    most = room * (TEXT_LINES + 1)
    lines: list[str] = []
    for paragraph in visible_lines(text[:most]):
        lines += textwrap.wrap(paragraph, room, replace_whitespace=False) or [""]
    shortened = [f"{_INDENT}{line}".rstrip() for line in lines[:TEXT_LINES]]
    if len(lines) > TEXT_LINES or len(text) > most:
        shortened.append(f"{_INDENT}… --full shows all of it")
    return shortened


def _image_value(image: EncodedImage) -> dict[str, Any]:
    """``{height, width, sha256}`` of an image's RGB bytes, its codec and size; ``fault`` if it does not decode."""
    stored: dict[str, Any] = {"height": image.height, "width": image.width, "codec": None, "bytes": len(image.data)}
    try:
        stored["codec"] = probe(image.data).codec
        return {**json_value(image), **stored}
    except RejectedError as error:
        return {**stored, "sha256": None, "fault": error.detail}


def _save_images(output: Output, folder: Path, images: Sequence[EncodedImage]) -> list[str]:
    """Writes images, as they are stored, as ``001.jpg``, ``002.png``, … into a folder, which is made, and says where
    they are. Each file appears complete or not at all; a file that has the image already is left alone. Returns the
    paths.

    Raises ConfigError if a file of such a name holds something else, or the folder cannot be written to.
    """
    digits = max(3, len(str(len(images))))
    files = {
        folder / f"{number:0{digits}}.{_SUFFIXES[probe(image.data).codec]}": image.data
        for number, image in enumerate(images, 1)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            check_output(path)
            if path.exists() and path.read_bytes() != data:
                raise ConfigError(
                    f"--images {folder}: {path.name} exists already and is another file; give another directory"
                )
        for path, data in files.items():
            if not path.exists():
                write_atomically(path.absolute(), data)
    except OSError as error:
        raise ConfigError(f"--images {folder}: cannot be written to: {error.strerror}") from None
    paths = list(files)
    if not paths:
        output.say(f"no images to write to {folder}")
    elif len(paths) == 1:
        output.say(f"wrote {paths[0]}")
    else:
        output.say(f"wrote {len(paths):,} images to {folder}: {paths[0].name} to {paths[-1].name}")
    return [str(path) for path in paths]
