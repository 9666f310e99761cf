"""What becomes of every field of a dataset of episodes: tokens a step, constant components, or why it has no tokens.

Legend: S steps, N components of a field's value.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from gatokit.pipelines.episodes.plan import EpisodesPlan
from gatokit.pipelines.episodes.spec import field_uses
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, LastStep, StepField, StepTokens

Constants = dict[str, dict[str, list[tuple[int, float]]]]
"""By the id of a spec and the path of a numeric field: its constant components, each with its value."""
JoinedConstants = dict[str, frozenset[tuple[int, float]]]
"""By path, what is constant over all shards and specs that have the field."""


class ConstantComponents:
    """Finds the components of numeric fields that have one value in all episodes."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, spec: EpisodeSpec, spec_id: str, values: Mapping[str, Any]) -> None:
        """Looks at the next episode: ``values`` has an array (S, …) of each numeric field, S > 0."""
        found = self._found.get(spec_id)
        if found is None:
            first = {field.path: values[field.path][0].ravel() for field in spec.fields if _is_numeric(field)}
            found = self._found[spec_id] = {path: (np.arange(value.size), value) for path, value in first.items()}
        for path, (components, value) in found.items():
            if len(components):
                stays = (values[path].reshape(len(values[path]), -1)[:, components] == value).all(axis=0)
                if not stays.all():
                    found[path] = components[stays], value[stays]

    def constants(self) -> Constants:
        """What is constant so far."""
        return {
            spec: {
                path: [(int(component), float(number)) for component, number in zip(*found, strict=True)]
                for path, found in by_path.items()
            }
            for spec, by_path in self._found.items()
        }


def _is_numeric(field: FieldSpec) -> bool:
    return field.kind in ("discrete", "continuous")


def join_constants(joined: JoinedConstants, shard: Constants) -> JoinedConstants:
    """What is left of ``joined`` with the next shard."""
    joined = dict(joined)
    for by_path in shard.values():
        for path, pairs in by_path.items():
            found = frozenset((component, value) for component, value in pairs)
            joined[path] = joined[path] & found if path in joined else found
    return joined


def step_tokens(
    plan: EpisodesPlan,
    specs: Mapping[str, EpisodeSpec],
    steps: Mapping[str, int],
    tokens: int | None,
    constants: JoinedConstants | None,
    last_step: LastStep,
) -> StepTokens:
    """What a step of a dataset is made of.

    ``specs`` and the number of kept ``steps`` are by task. ``tokens`` are those of all kept episodes, None in a scan.
    ``constants`` is None if some shard was not looked at.
    """
    total = max(1, sum(steps.values()))
    fixed: Counter[FieldSpec] = Counter()
    for task, spec in specs.items():
        fixed.update({field: steps.get(task, 0) * (field.tokens or 0) for field in spec.fields})
    by_path: dict[str, list[FieldSpec]] = {}
    for field in sorted(fixed, key=lambda field: (field.is_action, field.components)):
        by_path.setdefault(field.path, []).append(field)
    fields = []
    for path, variants in by_path.items():
        numeric = [field.tokens or 0 for field in variants if _is_numeric(field)]
        constant = None if constants is None or not numeric else len(constants.get(path, ()))
        fields.append(
            StepField(
                path=path,
                becomes=" or ".join(dict.fromkeys(map(_becomes, variants))),
                tokens=None
                if variants[0].kind == "text"
                else _rounded(sum(fixed[field] for field in variants) / total),
                components=max(numeric, default=0),
                constant=constant,
            )
        )
    has_text = any(field.kind == "text" for field in fixed)
    separated = sum(fixed.values()) + total
    text = (0.0 if not has_text else None) if tokens is None else (tokens - separated) / total
    return StepTokens(
        tokens=None if text is None else _rounded(separated / total + text),
        text=None if text is None else _rounded(text),
        fields=[*fields, *_without_tokens(plan)],
        cut=last_step.episodes if last_step.reading == "padding" else 0,
        splits=plan.splits_read,
        left_out=plan.splits_left_out,
    )


def _rounded(tokens: float) -> float:
    return round(tokens, 4)


def _becomes(field: FieldSpec) -> str:
    if field.image is not None:
        return f"{'depth' if field.levels else 'image'} {field.image.height}x{field.image.width}"
    if field.kind == "discrete":
        return "discrete" if field.num is None else f"one of {field.num}"
    return "text, once an episode" if field.every == "episode" else field.kind


def _without_tokens(plan: EpisodesPlan) -> list[StepField]:
    """The fields of all directories that have no tokens."""
    columns = {source.path for item in plan.directories for _, source in item.scan_fields.values.metadata}
    found: dict[tuple[str, str], StepField] = {}
    for features in dict.fromkeys(item.directory.features for item in plan.directories):
        for use in field_uses(features, plan.config):
            is_column = use.belongs_to == "episode" and use.source.path in columns
            why = "a column of the index" if is_column else use.why
            if use.spec is None:
                found.setdefault((use.belongs_to, use.source.path), StepField(path=use.source.path, why=why))
    return list(found.values())
