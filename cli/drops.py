"""Why episodes or documents were dropped, for people."""

from collections.abc import Sequence

from gatokit.cli.console import Output
from gatokit.inspection import EpisodeRow
from gatokit.inspection.tables.summary import Drop


def show_drops(output: Output, name: str, found: Sequence[Drop]) -> None:
    """A line a reason with how many and what it means, and one with the first of them."""
    if found:
        output.say(f"dropped of {name}:")
    for drop in found:
        output.say(f"{drop.episodes:>9,}  {drop.reason}: {drop.meaning}\n{'':11}such as {drop.example}")


def why_unstored(row: EpisodeRow) -> str:
    """Why there are no tokens of an episode or document."""
    if row.kept:
        return "kept; a scan stores no tokens, build to see them"
    return f"dropped: {row.reason}" + ("" if row.detail is None else f" ({row.detail})")
