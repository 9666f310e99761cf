"""Proposes a config for a described source: what each field becomes, which episodes are kept, and why.

The rules of the build itself say whether a field can become tokens (``episodes.spec.field_uses``), so that a proposed
config builds as it is.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gatokit.pipelines.describe import candidates as find
from gatokit.pipelines.describe.candidates import Candidate
from gatokit.pipelines.describe.rules import FLAGS, SKIP, WIDE, Rule, field_rules, observed
from gatokit.pipelines.describe.source import Description
from gatokit.pipelines.describe.statistics import DescribedField, number_text, plain
from gatokit.pipelines.episodes.spec import FieldUse, field_uses
from gatokit.schemas.config_episodes import EpisodesConfig

_HELD_OUT = re.compile(r"val|valid|validation|test|eval|evaluation|dev")


@dataclass(frozen=True)
class ProposedField:
    """A field with its proposed rule (None: the default), what it becomes with it, and why.

    ``tokens`` is the number a step, estimated for text; None if it has none.
    """

    described: DescribedField
    rule: dict[str, Any] | None
    becomes: str
    tokens: int | None
    why: str

    @property
    def path(self) -> str:
        """The key path below the step or the episode."""
        return self.described.path


@dataclass(frozen=True)
class Proposal:
    """A dataset's config as a mapping, and for each key what else it could be.

    ``reasons`` has a reason by key of the config.
    """

    dataset: dict[str, Any]
    fields: tuple[ProposedField, ...]
    candidates: dict[str, tuple[Candidate, ...]]
    reasons: dict[str, str]
    complaints: tuple[str, ...]
    bad: float
    """Share of the episodes looked at that cannot be read."""
    tokens: int
    """Tokens of a step, of the directories where it has most; estimated for text."""

    @property
    def has_text(self) -> bool:
        """Whether a field becomes text, which takes a vocabulary."""
        return any(field.becomes.startswith("text") for field in self.fields)


def propose(found: Description, name: str, source: str) -> Proposal:
    """A config for the dataset ``name`` of ``source``, a path or pattern as the config is to name it."""
    complaints = list(found.problems)
    reasons: dict[str, str] = {}
    candidates = {
        "observe": find.instructions(found),
        "success": find.successes(found),
        "task": find.tasks(found),
        "agent": find.agents(found),
        "order": find.orders(found),
    }
    dataset: dict[str, Any] = {"name": name, "kind": "episodes", "source": source}
    _choose_splits(found, dataset, reasons)
    if len(set(found.directories)) < len(found.directories):
        dataset["merge"] = True
        reasons["merge"] = "several directories have one name"
    dataset["last_step"], reasons["last_step"] = _last_step(found)
    _choose_roles(found, candidates["observe"], dataset, reasons, complaints)
    rules = field_rules(found, dataset, complaints)
    fields = _settle(found, dataset, rules, complaints)
    _choose_episodes(found, candidates, dataset, reasons)
    dataset["fields"] = {field.path: field.rule for field in fields if field.rule and field.described.in_steps}
    tokens = {field.described.source: field.tokens or 0 for field in fields}
    return Proposal(
        dataset=dataset,
        fields=tuple(fields),
        candidates=candidates,
        reasons=reasons,
        complaints=tuple(complaints),
        bad=found.bad / max(1, found.bad + found.seen),
        tokens=max(
            sum(tokens[source] for source in features.steps + features.stored_values) for features in found.features
        ),
    )


# --- roles, splits, the last step ----------------------------------------------------------------------------


def _choose_splits(found: Description, dataset: dict[str, Any], reasons: dict[str, str]) -> None:
    every = {split.name: split.episodes for split in found.splits if split.episodes}
    read = [split.name for split in found.splits if split.is_read and split.episodes]
    held_out = [name for name in every if _HELD_OUT.fullmatch(name)]
    train = [name for name in read if name not in held_out] or read
    held_out = [name for name in held_out if name not in train]
    if len(every) > 1 and train:
        dataset["splits"] = {"train": train, "held_out": held_out} if held_out else train
        counts = ", ".join(f"{name} {count:,}" for name, count in every.items())
        reasons["splits"] = f"episodes: {counts}"
    if found.missing:
        dataset["files"] = "present"
        reasons["files"] = f"{found.missing} files are not there"


def _last_step(found: Description) -> tuple[str, str]:
    """Whether last steps are real, by what is in them."""
    action, reward = found.ends.last_action, found.ends.last_reward
    evidence = []
    if action:
        evidence.append("last actions: " + ", ".join(f"{count} {kind}" for kind, count in sorted(action.items())))
    if reward:
        evidence.append("last rewards: " + ", ".join(f"{count} {kind}" for kind, count in sorted(reward.items())))
    is_real = action.get("other", 0) + reward.get("other", 0) > 0
    if not is_real and not (found.is_all and action):
        return "auto", "; ".join([*evidence, "not all episodes were looked at" if action else "no action"])
    return "real" if is_real else "padding", "; ".join(evidence)


def _choose_roles(
    found: Description,
    instructions: Sequence[Candidate],
    dataset: dict[str, Any],
    reasons: dict[str, str],
    complaints: list[str],
) -> None:
    """Chooses what is observed beside ``observation``, and the action if there is none of this name."""
    steps = [item for item in found.fields if item.belongs_to == "step"]
    others = [item for item in steps if item.path.split("/")[0] not in ("observation", "action", *FLAGS)]
    if all(item.path.split("/")[0] != "action" for item in steps):
        actions = [item.path for item in others if re.search("action|control", item.path) and _is_vector(item)]
        if actions:
            dataset["action"] = actions
            reasons["action"] = "there is no field action"
        else:
            complaints.append("no field looks like an action: give `action: PATH`")
    observe: list[Any] = []
    if all(item.path.split("/")[0] != "observation" for item in steps):
        observe += [item.path for item in others if item.path not in dataset.get("action", ()) and not item.is_text]
        reasons["observe"] = "there is no field observation"
    if instructions:
        first = instructions[0]
        paths = first.value if isinstance(first.value, list) else [first.value]
        if paths[0].split("/")[0] != "observation":
            observe.append(first.value)
            reasons["observe"] = f"the instruction: {first.reason}"
    videos = [item.path for item in found.fields if item.belongs_to == "episode" and _is_camera(item, found)]
    if videos:
        observe += videos
        reasons["observe"] = "; ".join(
            [*filter(None, [reasons.get("observe")]), f"with a frame a step: {', '.join(videos)}"]
        )
    if observe:
        dataset["observe"] = observe


# --- fields -----


def _settle(
    found: Description, dataset: dict[str, Any], rules: dict[str, Rule], complaints: list[str]
) -> list[ProposedField]:
    """The fields with what the build says of them. A field that it refuses is skipped."""
    uses: dict[tuple[str, str], FieldUse] = {}
    for _ in range(3):
        content = dataset | {"fields": {path: rule for path, (rule, _) in rules.items() if rule}}
        config = EpisodesConfig.model_validate(content)
        uses = {
            (use.belongs_to, use.source.path): use
            for features in found.features
            for use in field_uses(features, config)
        }
        refused = [use for use in uses.values() if use.is_error]
        for use in refused:
            complaints.append(f"{use.source.path} {use.why}")
            rules[use.source.path] = SKIP, use.why
        if not refused:
            break
    fields = []
    for item in found.fields:
        rule, why = rules.get(item.path, ({}, "")) if item.in_steps else ({}, "")
        fields.append(_proposed(item, rule, why, uses.get((item.belongs_to, item.path)), dataset))
    return fields


def _proposed(
    item: DescribedField, rule: dict[str, Any], why: str, use: FieldUse | None, dataset: dict[str, Any]
) -> ProposedField:
    if item.belongs_to == "step" and item.path in FLAGS:
        return ProposedField(item, None, "flag" if item.path.startswith("is_") else item.path, None, "")
    if use is None or use.spec is None:
        is_column = item.belongs_to == "episode" and item.source.form != "unreadable" and not item.source.shape
        if item.belongs_to == "step" and use is not None and item.path in observed(dataset):
            return ProposedField(item, None, "nothing", None, use.why)
        if item.belongs_to == "step":
            return ProposedField(item, SKIP, "nothing", None, why or (use.why if use else "is not in every directory"))
        if item.statistics.frame_a_step is not None:
            why = "is a video with another number of frames than the episode has steps" if not item.in_steps else why
            return ProposedField(item, rule or None, "nothing", None, why or (use.why if use else ""))
        shape = f"is a {item.source.type_name} of shape {list(item.source.shape)}"
        return ProposedField(item, None, "column" if is_column else "nothing", None, "" if is_column else shape)
    spec = use.spec
    becomes: str = spec.kind
    if spec.image is not None:
        becomes = f"{rule.get('as', 'image')} {spec.image.height}x{spec.image.width}"
    return ProposedField(item, rule or None, becomes, spec.tokens or item.estimated_tokens, why)


# --- which episodes ------------------------------------------------------------------------------------------


def _choose_episodes(
    found: Description, candidates: dict[str, tuple[Candidate, ...]], dataset: dict[str, Any], reasons: dict[str, str]
) -> None:
    """Chooses task, agent, order and the rule of ``keep``, and tasks only so that each keeps an episode."""
    names: Sequence[Any] = found.places
    for key in ("agent", "order"):
        if candidates[key]:
            dataset[key], reasons[key] = candidates[key][0].value, candidates[key][0].reason
    keep, reasons["keep"], marks = _keep(found, candidates["success"])
    metadata = [item for item in candidates["task"] if "metadata" in item.value and len(found.directories) == 1]
    if metadata:
        [item] = [
            item for item in found.fields if item.path == metadata[0].value["metadata"] and item.belongs_to == "episode"
        ][:1]
        kept = Counter(name for name, mark in zip(item.firsts, marks, strict=True) if mark)
        least = min(kept.get(name, 0) for name in item.firsts)
        if least >= (1 if found.is_all else 8):
            dataset["task"], reasons["task"], names = metadata[0].value, metadata[0].reason, item.firsts
    if any(not any(mark for name, mark in zip(names, marks, strict=True) if name == one) for one in set(names)):
        keep, reasons["keep"] = {"all": True}, f"{keep} would keep no episode of some task"
    dataset["keep"] = keep


def _keep(found: Description, successes: Sequence[Candidate]) -> tuple[dict[str, Any], str, list[bool]]:
    """A rule, why, and which of the episodes looked at it keeps."""
    every = [True] * found.seen
    for candidate in successes:
        marks = _marks(found, candidate.value)
        if len(set(marks)) == 2:
            return {"success": candidate.value}, candidate.reason, marks
    returns = found.ends.returns
    without = sum(map(math.isnan, returns))
    if without or not returns:
        return {"all": True}, "there is no reward" if without == len(returns) else "episodes without a reward", every
    if found.ends.rewards == 1 or len(set(returns)) == 1:
        return {"all": True}, f"all returns are {number_text(returns[0])}", every
    if len(set(returns)) == 2 and min(returns) == 0:
        marks = [value == max(returns) for value in returns]
        return {"return": [plain(max(returns)), None]}, f"returns are 0 or {number_text(max(returns))}", marks
    reason = f"returns from {number_text(min(returns))} to {number_text(max(returns))}"
    return {"min_return": 0.8}, f"{reason}; 0.8 of the best window's mean return, as Gato does", every


def _marks(found: Description, success: dict[str, Any]) -> list[bool]:
    if "last_reward" in success:
        return [value >= success["last_reward"] for value in found.ends.lasts]
    level = "step" if "field" in success else "episode"
    path = success.get("field") or success.get("metadata")
    [item] = [item for item in found.fields if item.path == path and item.belongs_to == level][:1]
    if "matches" in success:
        return [bool(re.search(success["matches"], str(value))) for value in item.firsts]
    return [bool(value) for value in item.anys]


def _is_camera(item: DescribedField, found: Description) -> bool:
    """Whether a field of the episode is a video with one frame a step wherever it was looked at."""
    values = item.statistics
    return bool(values.frame_a_step and values.missing is None and item.directories == len(found.directories))


def _is_vector(item: DescribedField) -> bool:
    return item.source.form == "tensor" and math.prod(item.source.sides) <= WIDE and item.statistics.episodes > 0
