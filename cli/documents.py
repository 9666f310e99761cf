"""What ``gatokit inspect`` shows of datasets of documents: lengths, kinds of tokens, sizes of pictures, drops."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gatokit.cli.console import Output, size
from gatokit.cli.drops import show_drops
from gatokit.cli.fit import fitting_table
from gatokit.inspection import DatasetReader, EpisodeRow
from gatokit.inspection.tables.contents import Contents, Effort, contents
from gatokit.inspection.tables.summary import Drop, Lengths, drops, lengths
from gatokit.schemas.document import DocumentRules
from gatokit.schemas.index import HELD_OUT

OVERVIEW = Effort(records=2_000, bytes=32 << 20)
"""What is read of each dataset where many are shown."""
DETAILS = Effort(records=50_000, bytes=256 << 20)
"""What is read of a dataset that is asked for."""

_MOST_SIZES = 5
_MOST_SIZES_IN_DETAIL = 30
_FIRST_DOCUMENTS = 10
_SHOWN = {
    "name": "dataset",
    "kind": "kind",
    "episodes": "documents",
    "kept": "kept",
    "held_out": "held out",
    "tokens": "tokens",
    "text_tokens": "text tokens",
    "image_tokens": "image tokens",
    "pictures": "pictures",
    "median_tokens": "median tokens",
    "longest_tokens": "longest tokens",
    "records": "records",
    "shards": "shards",
    "bytes": "size",
    "weight": "weight",
}
_LESS = ("weight", "shards", "kind", "records", "held out", "median tokens", "longest tokens", "size", "text tokens")


@dataclass(frozen=True)
class Documents:
    """A dataset of documents and what was found out about it; ``contents`` and ``lengths`` are None in a scan."""

    dataset: DatasetReader
    contents: Contents | None
    lengths: Lengths | None
    drops: list[Drop]

    @staticmethod
    def of(dataset: DatasetReader, effort: Effort, output: Output) -> "Documents":
        """Reads as much of the dataset as ``effort`` allows, with progress where that may take seconds."""
        if not dataset.totals.shards:
            found = None
        elif min(effort.bytes, dataset.totals.bytes) <= OVERVIEW.bytes:
            found = contents(dataset, effort)
        else:
            with output.progress() as progress:
                found = contents(dataset, effort, lambda done, total: progress("records", done, total))
        return Documents(dataset, found, lengths(dataset), drops(dataset))

    def line(self) -> dict[str, Any]:
        """The totals of the dataset; what was counted in a sample alone is scaled to all of it."""
        totals, counted, long = self.dataset.totals, self.contents, self.lengths
        line: dict[str, Any] = {
            "name": totals.name,
            "kind": totals.kind,
            "episodes": totals.episodes,
            "kept": totals.kept,
            "held_out": sum(row.held_out for row in self.dataset.tasks),
        }
        stored = dict.fromkeys(("tokens", "text_tokens", "image_tokens", "pictures", "records", "shards", "bytes"))
        if counted is not None:
            image = _scaled(counted.image_tokens, counted.text_tokens + counted.image_tokens, totals.tokens)
            stored |= {"tokens": totals.tokens, "text_tokens": totals.tokens - image, "image_tokens": image}
            stored |= {"pictures": _scaled(counted.pictures, counted.counted, counted.records)}
            stored |= {"records": totals.records, "shards": totals.shards, "bytes": totals.bytes}
        return {
            **line,
            **stored,
            "median_tokens": None if long is None else long.median,
            "longest_tokens": None if long is None else long.longest,
            "longest_document": None if long is None else long.longest_id,
            "counted_records": None if counted is None else counted.counted,
            "picture_sizes": None if counted is None else [dataclasses.asdict(item) for item in counted.sizes],
            "weight": totals.weight,
            "license": totals.license,
        }


def show_table(output: Output, title: str, found: Sequence[Documents]) -> None:
    """A row a dataset; columns that nothing is known of stay away, as do pictures where there are none."""
    lines = [item.line() for item in found]
    columns = [key for key in _SHOWN if any(line[key] is not None for line in lines)]
    if not any(line["pictures"] for line in lines):
        columns = [key for key in columns if key not in ("text_tokens", "image_tokens", "pictures")]
    fitting_table(
        output,
        title,
        [_SHOWN[key] for key in columns],
        [[size(line[key]) if key == "bytes" and line[key] else line[key] for key in columns] for line in lines],
        _LESS,
    )
    estimated = [item.dataset.name for item in found if item.contents is not None and not item.contents.is_whole]
    if estimated:
        output.say(
            f"text tokens, image tokens and pictures of {', '.join(estimated)}: estimated from a sample, see below"
        )


def show_findings(output: Output, item: Documents) -> None:
    """The most frequent sizes of a dataset's pictures, in a line, and why documents were dropped."""
    counted, name = item.contents, item.dataset.name
    if counted is not None and counted.pictures:
        sizes = [f"{size.height} x {size.width}: {size.pictures:,}" for size in counted.sizes[:_MOST_SIZES]]
        more = len(counted.sizes) - len(sizes)
        output.say(
            f"pictures of {name}{_sample(counted)}: "
            + ", ".join(sizes)
            + (f", … and {more:,} more sizes; --dataset {name} shows them" if more else "")
        )
    show_drops(output, name, item.drops)


def show_documents(output: Output, content: str, item: Documents) -> dict[str, Any]:
    """A dataset of documents in detail: rules, lengths, pictures by size, drops, the first documents; as JSON too."""
    dataset, counted = item.dataset, item.contents
    show_table(output, f"{dataset.path.parent}: a finished {content}", [item])
    rules = dataset.described.documents
    if rules is not None:
        output.say(_rules(rules))
    if item.lengths is not None:
        long = item.lengths
        fitting_table(
            output,
            "tokens a document",
            ["shortest", "10%", "median", "90%", "longest", "longest document"],
            [[long.shortest, long.tenth, long.median, long.nine_tenths, long.longest, long.longest_id]],
        )
    if counted is not None and counted.pictures:
        shown = counted.sizes[:_MOST_SIZES_IN_DETAIL]
        fitting_table(
            output,
            f"pictures by size{_sample(counted)}",
            ["size", "patches", "pictures", "share"],
            [
                [
                    f"{size.height} x {size.width}",
                    size.height * size.width // 256,
                    size.pictures,
                    f"{size.pictures / counted.pictures:.1%}",
                ]
                for size in shown
            ],
        )
        if len(counted.sizes) > len(shown):
            rest = sum(size.pictures for size in counted.sizes[len(shown) :])
            output.say(f"… and {rest:,} pictures of {len(counted.sizes) - len(shown):,} more sizes; --json gives all")
    show_drops(output, dataset.name, item.drops)
    rows = list(islice(dataset.rows(), _FIRST_DOCUMENTS))
    fitting_table(
        output,
        "first documents; --document ID shows one",
        ["tokens", "records", "verdict", "document"] if counted is not None else ["verdict", "document"],
        [_row(row, counted is not None) for row in rows],
    )
    return {
        "rules": None if rules is None else rules.model_dump(mode="json"),
        "lengths": None if item.lengths is None else dataclasses.asdict(item.lengths),
        "first_documents": [row.columns() for row in rows],
    }


def verdict(row: EpisodeRow) -> str | None:
    """``kept``, ``held out``, or why it was dropped."""
    return ("held out" if row.split == HELD_OUT else "kept") if row.kept else row.reason


def _row(row: EpisodeRow, stored: bool) -> list[Any]:
    sizes = [row.tokens or None, len(row.record_tokens) if row.record_tokens else None] if stored else []
    return [*sizes, verdict(row), row.episode_id]


def _sample(counted: Contents) -> str:
    return "" if counted.is_whole else f", in {counted.counted:,} of {counted.records:,} records, evenly spaced"


def _rules(rules: DocumentRules) -> str:
    end = "a document ends with </s>" if rules.end_of_document else "documents have no end token"
    if rules.pictures is None:
        return f"text alone; {end}"
    made = rules.pictures
    sides = f"{made.size[0]} x {made.size[1]}" if made.size else f"at most {made.max_patches} patches each"
    codec = "PNG or JPEG" if made.codec is None else made.codec.upper()
    bad = "costs its document" if rules.bad_images == "reject" else "is left out"
    return f"pictures of {sides}, {codec} (quality {made.quality}); a bad picture {bad}; {end}"


def _scaled(count: int, of: int, total: int) -> int:
    return 0 if not of else count if of == total else round(count * total / of)
