"""What a step of each dataset is made of: a line for every field with tokens, and the others by why they have none."""

from collections.abc import Mapping

from gatokit.inspection.tables.output import Output
from gatokit.schemas.manifest import StepTokens
from gatokit.schemas.words import counted

COLUMNS = ("field", "becomes", "tokens a step", "share", "note")
_MOST_NAMES = 4


def show_fields(output: Output, steps: Mapping[str, StepTokens | None]) -> None:
    """Prints one table of all datasets of episodes."""
    lines = []
    for name, step in steps.items():
        rows = field_rows(step)
        lines += [(name if not number else "", *row) for number, row in enumerate(rows)]
    if lines:
        output.table("what becomes of every field", ["dataset", *COLUMNS], lines)


def field_rows(step: StepTokens | None) -> list[tuple[str, str, float | None, str, str]]:
    """The lines of a dataset under ``COLUMNS``: fields in token order, the whole step, and fields without tokens. None
    of a dataset of documents, or of a build of an older Gatokit."""
    if step is None:
        return []
    known = sum(field.tokens or 0 for field in step.fields) + (step.text or 0) + 1
    texts = [field for field in step.fields if field.becomes and field.tokens is None]
    rows: list[tuple[str, str, float | None, str, str]] = []
    for field in step.fields:
        if field.becomes:
            tokens = step.text if [field] == texts else field.tokens
            of_range = (
                f"{field.constant} of {counted(field.components, 'component')} constant" if field.constant else ""
            )
            rows.append((field.path, field.becomes, *_number_and_share(tokens, known), of_range))
    if len(texts) > 1:
        rows.append(("all texts", "", *_number_and_share(step.text, known), ""))
    splits = [f"reads {_splits(step.splits)}"] if step.splits else []
    splits += [f"leaves out {_splits(step.left_out)}"] if step.left_out else []
    splits += [f"cuts {counted(step.cut, 'last step')}"] if step.cut else []
    rows.append(("a step", "with a separator", step.tokens, "", "; ".join(splits)))
    reasons: dict[str, list[str]] = {}
    for field in step.fields:
        if not field.becomes:
            why = "read as such" if field.why == f"read as {field.path}" else field.why
            reasons.setdefault(why, []).append(field.path)
    for why, paths in reasons.items():
        rows.append((_short(paths), "no tokens", 0.0, "", why))
    return rows


def _number_and_share(tokens: float | None, total: float) -> tuple[float | None, str]:
    return tokens, "" if tokens is None else f"{tokens / total:.1%}"


def _splits(episodes: Mapping[str, int]) -> str:
    return ", ".join(f"{split} ({number:,})" for split, number in episodes.items())


def _short(paths: list[str]) -> str:
    """The names of fields; of many, those of the first and how many more."""
    if len(paths) <= _MOST_NAMES + 1:
        return ", ".join(paths)
    return ", ".join(paths[:_MOST_NAMES]) + f" and {len(paths) - _MOST_NAMES} more"
