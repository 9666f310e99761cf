"""Fields that may be the instruction, a mark of success, a task, an agent or an order, with the reasons.

The name of a field suggests what it is, and its values must agree.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from gatokit.pipelines.describe.source import Description
from gatokit.pipelines.describe.statistics import DescribedField, number_text, plain

_INSTRUCTIONS = (
    *(
        "language_instruction",
        "natural_language_instruction",
        "instruction",
        "mission",
        "command",
        "instruct",
        "prompt",
    ),
    *("utterance", "task_description", "caption", "language", "goal", "task"),
)
"""Words in the names of fields that hold an instruction, the surest first."""


@dataclass(frozen=True)
class Candidate:
    """Something that a key of the config may be, and why."""

    value: Any
    reason: str


def instructions(found: Description) -> tuple[Candidate, ...]:
    """Fields that hold an instruction, the likeliest first; several forms of one are a list."""
    texts = [item for item in found.fields if item.is_text and item.statistics.empty != 1]
    ranked = []
    for item in texts:
        rank = instruction_rank(item.path.split("/")[-1])
        if rank is not None and (item.statistics.words or 0) >= 1:
            ranked.append((rank, item.belongs_to == "episode", len(item.path), item))
    ranked.sort(key=lambda entry: entry[:3])
    candidates: list[Candidate] = []
    listed: set[str] = set()
    for *_, item in ranked:
        if item.path in listed:
            continue
        forms = [other.path for *_, other in ranked if re.fullmatch(re.escape(item.path) + r"_\d+", other.path)]
        listed.update((item.path, *forms))
        kind = "text" if item.source.form == "string" else "codes of characters"
        steady = "" if item.statistics.steady is None else ", the same in all steps" * item.statistics.steady
        reason = f"{kind}, {item.cardinality}{steady}, such as {item.example}"
        candidates.append(Candidate([item.path, *forms] if forms else item.path, reason))
    return tuple(candidates)


def instruction_rank(name: str) -> int | None:
    """How likely a field of this name is an instruction, 0 most of all; None if it is none."""
    for rank, word in enumerate(_INSTRUCTIONS):
        if word in name:
            return 2 * rank + (name != word)
    return None


def successes(found: Description) -> tuple[Candidate, ...]:
    """Marks of success, those first that tell episodes apart."""
    ranked = []
    for item in found.fields:
        name = item.path.split("/")[-1].lower()
        marks = {bool(value) for value in (item.anys or item.firsts) if value is not None}
        if "success" in name and item.anys and not item.source.sides:
            key = "field" if item.belongs_to == "step" else "metadata"
            share = sum(map(bool, item.anys)) / sum(value is not None for value in item.anys)
            rank = (len(marks) < 2, name not in ("success", "is_success"), item.belongs_to == "step")
            ranked.append((rank, Candidate({key: item.path}, f"true in {share:.0%} of the episodes")))
        elif item.is_text and item.belongs_to == "episode":
            texts = [value for value in item.firsts if isinstance(value, str)]
            for pattern in ("/success/", "(?<![a-z])success"):
                share = sum(bool(re.search(pattern, text)) for text in texts) / max(1, len(texts))
                if 0 < share < 1:
                    success = {"metadata": item.path, "matches": pattern}
                    ranked.append(((False, True, True), Candidate(success, f"matches in {share:.0%} of the episodes")))
                    break
    lasts = sorted(set(found.ends.lasts))
    if len(lasts) == 2 and lasts[0] == 0 < lasts[1] and not found.ends.before:
        reason = f"the only rewards, {number_text(lasts[1])}, are in {found.ends.in_last:.0%} of the last steps"
        ranked.append(((False, False, True), Candidate({"last_reward": plain(lasts[1])}, reason)))
    return tuple(candidate for _, candidate in sorted(ranked, key=lambda entry: entry[0]))


def tasks(found: Description) -> tuple[Candidate, ...]:
    """Names of tasks: a value that several episodes share."""
    ranked = []
    if len(found.directories) > 1:
        reason = f"{len(found.directories):,} directories"
        ranked.append(((False, False), Candidate({"from": "directory"}, reason)))
    for item in found.fields:
        name = item.path.split("/")[-1].lower()
        is_name = re.search("task|skill", name) or (item.is_text and instruction_rank(name) is not None)
        if is_name and item.source.dtype != "bool" and item.statistics.steady is not False and _groups(item, found):
            key = "field" if item.belongs_to == "step" else "metadata"
            found_candidate = Candidate({key: item.path}, f"{item.cardinality}, such as {item.example}")
            ranked.append(((key == "field", not item.is_text), found_candidate))
    return tuple(candidate for _, candidate in sorted(ranked, key=lambda entry: entry[0]))


def agents(found: Description) -> tuple[Candidate, ...]:
    """Names of who acted: a value that several episodes share."""
    words = ("agent", "policy", "operator", "collector", "user", "robot", "building", "lab")
    return tuple(
        Candidate({"metadata": item.path}, f"{item.cardinality}, such as {item.example}")
        for word in words
        for item in found.fields
        if word in item.path.split("/")[-1].lower() and item.belongs_to == "episode" and _groups(item, found)
    )


def orders(found: Description) -> tuple[Candidate, ...]:
    """Numbers by which episodes were collected."""
    words = ("episode_index", "index", "episode_id", "order", "timestamp", "number", "time")
    candidates = []
    for item in found.fields:
        name = item.path.split("/")[-1].lower()
        numbers = [value for value in item.firsts if isinstance(value, float)]
        is_order = any(word in name for word in words) and item.belongs_to == "episode"
        if is_order and len(numbers) > 1 and item.statistics.whole and _is_different(item, found):
            reason = f"{number_text(min(numbers))} to {number_text(max(numbers))}, another in each episode of an agent"
            candidates.append(Candidate({"metadata": item.path}, reason))
    return tuple(candidates)


def _groups(item: DescribedField, found: Description) -> bool:
    """Whether several episodes share a value, and there are several values."""
    counts = Counter(value for value in item.firsts if value is not None)
    return 1 < len(counts) <= max(2, found.seen // 2) and sum(counts.values()) == found.seen


def _is_different(item: DescribedField, found: Description) -> bool:
    """Whether at most a few episodes of a directory, such as those of several agents, share a value."""
    pairs = set(zip(found.places, item.firsts, strict=True))
    return 4 * len(pairs) >= found.seen
