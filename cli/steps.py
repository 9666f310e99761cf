"""What ``gatokit inspect --episode`` shows: an index row and decoded time steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatokit.cli.console import Output
from gatokit.cli.drops import why_unstored
from gatokit.cli.fit import fitting_table
from gatokit.cli.pictures import show_written, write_pictures
from gatokit.inspection import DatasetReader, EpisodeRow, Step, StoredEpisode
from gatokit.inspection.read.values import brief, flag_names, json_value
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.tokens import EncodedImage
from gatokit.schemas.words import shown

FIRST_STEPS = 5
"""Time steps of an episode that are shown by default."""

_LEAST_CELL = 14
_WIDEST_CELL = 48


def show_episode(
    output: Output,
    dataset: DatasetReader,
    row: EpisodeRow,
    chosen: tuple[int, int | None] | None,
    folder: Path | None = None,
) -> None:
    """An episode's row and its decoded steps: the ``chosen`` ones, or the first (all as JSON). Their images go into
    ``folder``."""
    place = f"{dataset.name}, task {row.task}" + (f", agent {row.agent}" if row.agent else "")
    output.say(f"{row.episode_id}\n  {place}")
    limit = "" if row.threshold is None else f", threshold {row.threshold:g}"
    output.say(f"  {shown(row.steps)} steps, return {shown(row.episode_return)}{limit}")
    result: dict[str, Any] = {"dataset": dataset.name, "episode": row.columns(), "fields": None, "steps": None}
    if row.shard is None:
        output.say(f"  {why_unstored(row)}")
        output.result(result)
        return
    first, records = row.first_record or 0, len(row.record_tokens or ())
    output.say(f"  {row.split}, {shown(row.tokens)} tokens, records {first} to {first + records - 1} of")
    output.say(f"  {dataset.path / row.shard}")
    episode = dataset.episode(row)
    first, end = chosen or (0, None if output.as_json else FIRST_STEPS)
    if first >= episode.steps:
        raise ConfigError(f"--steps {first}:…: the episode has {episode.steps} steps")
    steps = list(episode.decoded_steps(first, end))
    if not output.as_json:
        _show_steps(output, steps)
        others = "; --steps A:B shows others" if len(steps) < episode.steps else ""
        output.say(f"steps {first} to {steps[-1].step} of {episode.steps}{others}")
    if folder is not None:
        paths = write_pictures(folder, _images(episode, first, steps[-1].step + 1))
        show_written(output, folder, paths)
        result["images"] = [str(path) for path in paths]
    if not output.as_json:
        return
    result["fields"] = episode.spec.model_dump(mode="json")["fields"]
    result["steps"] = [
        {
            "step": step.step,
            "observation": json_value(step.observation),
            "action": json_value(step.action),
            "reward": step.reward,
            "discount": step.discount,
            "flags": flag_names(step.flags),
        }
        for step in steps
    ]
    output.result(result)


def _images(episode: StoredEpisode, first: int, end: int) -> list[EncodedImage]:
    """The images of the steps [first, end) in token order."""
    begins = [*episode.sequence.step_begin.tolist(), len(episode.sequence.tokens)]
    return [placed.image for placed in episode.sequence.images if begins[first] <= placed.token < begins[end]]


def _show_steps(output: Output, steps: list[Step]) -> None:
    """A row a step with a column for every field, or a row for every field where they are too many."""
    values = [_fields("observation", step.observation) | _fields("action", step.action) for step in steps]
    paths = list(values[0])
    ends = [f"{step.reward:.6g} {' '.join(flag_names(step.flags))}".strip() for step in steps]
    needs = {path: max(len(brief(value[path], _WIDEST_CELL)) for value in values) for path in paths}
    room = _step_room(output.width, ends, paths)
    levels = [level for level in range(_LEAST_CELL, _WIDEST_CELL + 1) if _needed(needs, level) <= room]
    if levels:
        level = levels[-1]
        rows = [
            [step.step, *(brief(value[path], level) for path in paths), end]
            for step, value, end in zip(steps, values, ends, strict=True)
        ]
        fitting_table(output, "", ["step", *paths, "reward"], rows)
        return
    room = output.width - max(map(len, paths)) - 16
    lines = []
    for step, value, end in zip(steps, values, ends, strict=True):
        lines += [[str(step.step) if path == paths[0] else "", path, brief(value[path], room)] for path in paths]
        lines.append(["", "reward", end])
    fitting_table(output, "", ["step", "field", "value"], lines)


def _step_room(width: int, ends: Sequence[str], paths: Sequence[str]) -> int:
    """Characters of a line that are left for the fields of a row beside its number, its reward and the borders."""
    return width - max(4, *map(len, ends)) - len("step") - 3 * (len(paths) + 2) - 1


def _needed(needs: dict[str, int], level: int) -> int:
    """Characters of a row whose cells are cut at ``level``."""
    return sum(max(len(path), min(level, need)) for path, need in needs.items())


def _fields(name: str, value: Any) -> dict[str, Any]:
    """Values by a short name: the key path below ``name``, with it for an action."""
    if not isinstance(value, dict):
        return {name: value}
    return {key if name == "observation" else f"{name}/{key}": item for key, item in value.items()}
