"""One episode: its index row and decoded time steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.rows import EpisodeRow
from gatokit.inspection.read.stored import Step, StoredEpisode
from gatokit.inspection.read.values import brief, flag_names, json_value
from gatokit.inspection.tables.images import save_images
from gatokit.inspection.tables.output import Output, show_table
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.tokens import EncodedImage
from gatokit.schemas.words import shown

FIRST_STEPS = 5
"""Time steps of an episode that are shown by default."""

_NARROWEST_CELL = 14
_WIDEST_CELL = 48


def show_episode(
    output: Output, dataset: DatasetReader, row: EpisodeRow, chosen: tuple[int, int | None] | None, folder: Path | None
) -> None:
    """Shows an episode's row and decoded steps: those of ``chosen`` [first, end), or the first ones (all as JSON).
    Writes their images into ``folder``.

    Raises ConfigError if the episode has fewer steps.
    """
    output.say(f"{row.episode_id}\n  {dataset.name}, task {row.task}" + (f", agent {row.agent}" if row.agent else ""))
    threshold = "" if row.threshold is None else f", threshold {row.threshold:g}"
    output.say(f"  {shown(row.steps)} steps, return {shown(row.episode_return)}{threshold}")
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
        result["steps"] = [_step_value(step) for step in steps]
    else:
        _show_steps(output, steps)
        others = "; --steps A:B shows others" if len(steps) < episode.steps else ""
        output.say(f"steps {first} to {steps[-1].step} of {episode.steps}{others}")
    if folder is not None:
        result["images"] = save_images(output, folder, _images(episode, first, steps[-1].step + 1))
    output.result(result)


def _step_value(step: Step) -> dict[str, Any]:
    return {
        "step": step.step,
        "observation": json_value(step.observation),
        "action": json_value(step.action),
        "reward": step.reward,
        "discount": step.discount,
        "flags": flag_names(step.flags),
    }


def _images(episode: StoredEpisode, first: int, end: int) -> list[EncodedImage]:
    """The images of the steps [first, end) in token order."""
    begins = [*episode.sequence.step_begin.tolist(), len(episode.sequence.tokens)]
    return [placed.image for placed in episode.sequence.images if begins[first] <= placed.token < begins[end]]


def _show_steps(output: Output, steps: Sequence[Step]) -> None:
    """Shows a row a step with a column for every field, or a row for every field if these are too many."""
    values = [_fields("observation", step.observation) | _fields("action", step.action) for step in steps]
    rewards = [f"{step.reward:.6g} {' '.join(flag_names(step.flags))}".strip() for step in steps]
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
        numbers = [str(step.step), *[""] * len(paths)]
        cells = [*((path, brief(value[path], room)) for path in paths), ("reward", reward)]
        rows += [{"step": at, "field": name, "value": cell} for at, (name, cell) in zip(numbers, cells, strict=True)]
    show_table(output, "", {name: name for name in ("step", "field", "value")}, rows)


def _fields(name: str, value: Any) -> dict[str, Any]:
    """Values by a short name: the key path of an observation, with ``action/`` before it of an action."""
    if not isinstance(value, dict):
        return {name: value}
    return {key if name == "observation" else f"{name}/{key}": item for key, item in value.items()}
