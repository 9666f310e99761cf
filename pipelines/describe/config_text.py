"""Writes a proposal as a commented YAML config: every field and every key of the metadata stands in it."""

from collections.abc import Iterable
from typing import Any

import yaml

from gatokit.pipelines.describe.proposal import Proposal, ProposedField
from gatokit.pipelines.describe.rules import STEP_TOKENS
from gatokit.pipelines.describe.source import Description
from gatokit.schemas.words import counted, one_line

_ORDER = ("source", "splits", "files", "merge", "last_step", "task", "agent", "order", "keep", "observe", "action")


def config_text(found: Description, proposal: Proposal, vocabulary: str | None, file: str) -> str:
    """The text of a config that builds as it is; ``file`` is its own name, for the commands in its comments.

    ``vocabulary`` None names a file that is still to be made. Texts of the source are cut and escaped.
    """
    looked = f"{found.seen:,} episodes" + (f" of {found.episodes:,}" if found.episodes else "")
    lines = [
        f"# Written by gatokit describe, which looked at {looked}. What it could not know is behind a #.",
        *_comments(f"to do: {complaint}" for complaint in proposal.complaints),
    ]
    has_text = proposal.has_text
    if has_text or vocabulary is not None:
        hint = "" if vocabulary is not None else f"gatokit vocab {file} --out vocabulary.model makes it of the texts"
        lines.append(_with_reason(f"vocabulary: {flow_yaml(vocabulary or 'vocabulary.model')}", hint))
    else:
        lines += ["# There is no text, so that no vocabulary is needed."]
    if proposal.bad > 0.01:
        allowed = min(1.0, round(2 * proposal.bad + 0.005, 2))
        lines.append(_with_reason(f"max_bad_fraction: {allowed}", f"{found.bad:,} episodes cannot be read"))
    lines += ["datasets:", f"  - name: {flow_yaml(proposal.dataset['name'])}", "    kind: episodes"]
    for key in _ORDER:
        if key in proposal.dataset:
            lines.append(_with_reason(f"    {key}: {flow_yaml(proposal.dataset[key])}", proposal.reasons.get(key, "")))
        lines += _alternatives(key, proposal)
    lines += ["    # hz: 10                # steps a second", "    # license: CC-BY-4.0", *_fields(found, proposal)]
    return "\n".join(lines) + "\n"


def _alternatives(key: str, proposal: Proposal) -> list[str]:
    """Other candidates for a key, as comments."""
    lines = []
    for candidate in proposal.candidates.get("success" if key == "keep" else key, ()):
        value = {"success": candidate.value} if key == "keep" else candidate.value
        written = proposal.dataset.get(key)
        if key == "observe":
            if candidate.value in (written or ()) or str(value).startswith("observation/"):
                continue
            value = [value]
        if value != written:
            lines.append(_with_reason(f"    # {key}: {flow_yaml(value)}", candidate.reason))
    return lines


def _fields(found: Description, proposal: Proposal) -> list[str]:
    """The rules of all fields of a step; those of an episode, and those that need no rule, as comments."""
    steps = [field for field in proposal.fields if field.described.in_steps]
    used = [field for field in steps if field.tokens is not None]
    total = proposal.tokens
    note = f"; more than {STEP_TOKENS}, so that a window of 1,024 tokens holds no two steps" * (total > STEP_TOKENS)
    text = ", text estimated" * any(field.described.is_text for field in used)
    rules = [field for field in steps if field.rule]
    lines = [_with_reason("    fields:" if rules else "    fields: {}", f"{total:,} tokens a step{text}{note}")]
    seen = set()
    for field in steps:
        line = f"{flow_yaml(field.path)}: {flow_yaml(field.rule)}"
        is_second = field.path in seen
        seen.add(field.path)
        is_rule = field.rule and not is_second
        lines.append(_with_reason(f"      {line if is_rule else f'# {flow_yaml(field.path)}'}", _about(field)))
    lines.append("    # Values of an episode are columns of the index, which keep.where can use:")
    lines += [
        _with_reason(f"    # {flow_yaml(field.path)}", _about(field))
        for field in proposal.fields
        if not field.described.in_steps
    ]
    return lines


def _about(field: ProposedField) -> str:
    """What a field becomes, and what its values are like."""
    item = field.described
    values = item.statistics
    parts = []
    if field.tokens is not None:
        parts.append(f"{field.becomes}, {counted(field.tokens, 'token')}")
    else:
        parts.append(field.why or field.becomes)
    if field.tokens is not None and field.why:
        parts.append(field.why)
    if item.is_text or values.examples:
        parts.append(f"{item.cardinality}, such as {item.example}")
    elif values.min is not None and item.span not in field.why and field.becomes != "flag":
        parts.append(item.span)
    if values.components and 0 < (values.constant or 0) < 1:
        size = len(values.components["low"])
        parts.append(f"{round((values.constant or 0) * size)} of {size} components never change")
    if values.black:
        parts.append(f"{values.black:.0%} of the frames are black")
    return "; ".join(parts)


def flow_yaml(value: Any) -> str:
    """A value as YAML on one line."""
    can_print = _is_printable(value)
    style = None if can_print else '"'
    text: str = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, width=1 << 30, allow_unicode=can_print, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _is_printable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_printable, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(_is_printable, value))
    return not isinstance(value, str) or value.isprintable()


def _with_reason(line: str, reason: str) -> str:
    return f"{line}  # {one_line(reason)}" if reason else line


def _comments(texts: Iterable[str]) -> list[str]:
    return [f"# {one_line(text)}" for text in texts]
