"""What a report says of each dataset: what is kept, what is dropped and why, its tokens, images and first documents."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.report.excerpts import Budget, document_excerpt
from gatokit.inspection.report.tasks import TaskFacts
from gatokit.inspection.tables.summary import Effort, contents
from gatokit.schemas.index import REASONS
from gatokit.schemas.tokens import TokenKind
from gatokit.schemas.where import coded

_EFFORT = Effort(records=5_000, bytes=64 << 20)
_MOST_EXAMPLES = 3
_DOCUMENTS = 6
"""Documents of a dataset that are quoted."""
_COLUMNS = ["task", "kept", "reason", "lost", "tokens", "episode_id"]
_Reasons = list[tuple[str | None, int]]


@dataclass(frozen=True)
class Shares:
    """A dataset's share of the weights of a run (``asked``), and of the windows that the run draws."""

    asked: float
    drawn: float


@dataclass
class IndexCounts:
    """Counts over the rows of an index. ``found`` counts the episodes or documents that the rows stand for.

    ``drops`` are by task and reason, each None if unknown; ``examples`` are the first ids of each reason. ``sizes``
    counts kept rows by the bits of their number of tokens: b bits for 2^(b-1) to 2^b - 1 tokens. ``first_kept`` are
    ordinals of rows, ``missing`` are columns that the index lacks.
    """

    missing: tuple[str, ...]
    rows: int = 0
    found: int = 0
    kept: int = 0
    drops: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    examples: dict[str | None, list[str]] = field(default_factory=dict)
    sizes: Counter[int] = field(default_factory=Counter)
    first_kept: list[int] = field(default_factory=list)

    def reasons(self) -> _Reasons:
        """How many were dropped for each reason, the most frequent reason first."""
        counts: Counter[str | None] = Counter()
        for (_, reason), count in self.drops.items():
            counts[reason] += count
        return sorted(counts.items(), key=_most_first)

    def reasons_by_task(self) -> dict[str | None, _Reasons]:
        """The same for each task that lost any."""
        counts: dict[str | None, _Reasons] = {}
        for (task, reason), count in self.drops.items():
            counts.setdefault(task, []).append((reason, count))
        return {task: sorted(reasons, key=_most_first) for task, reasons in counts.items()}


def _most_first(item: tuple[str | None, int]) -> tuple[int, str]:
    return -item[1], item[0] or ""


def count_index(dataset: DatasetReader) -> IndexCounts:
    """Reads an index once, a batch of rows at a time. Raises DataError if it cannot be read."""
    counts = IndexCounts(dataset.missing_columns())
    for batch in dataset.batches(_COLUMNS):
        kept = pc.fill_null(batch["kept"], False).to_numpy(zero_copy_only=False)
        lost = pc.fill_null(batch["lost"], 1).to_numpy(zero_copy_only=False)
        tokens = pc.fill_null(batch["tokens"], 0).to_numpy(zero_copy_only=False)
        counts.first_kept += (np.flatnonzero(kept)[: _DOCUMENTS - len(counts.first_kept)] + counts.rows).tolist()
        counts.rows += len(kept)
        counts.found += int(lost.sum())
        counts.kept += int(kept.sum())
        bits = np.frexp(tokens[kept].astype(np.float64))[1]
        counts.sizes.update({bit: count for bit, count in enumerate(np.bincount(bits).tolist()) if count})
        if not kept.all():
            _add_drops(counts, batch, ~kept, lost)
    return counts


def _add_drops(counts: IndexCounts, batch: pa.RecordBatch, dropped: np.ndarray, lost: np.ndarray) -> None:
    tasks, task_names = coded(batch["task"])
    reasons, reason_names = coded(batch["reason"])
    # One code for each pair of task and reason; null has the code 0 of both.
    width = len(reason_names) + 1
    pairs = (tasks + 1) * width + reasons + 1
    lost_of_pair = np.bincount(pairs[dropped], lost[dropped])
    for pair in np.flatnonzero(lost_of_pair).tolist():
        task, reason = [None, *task_names][pair // width], [None, *reason_names][pair % width]
        counts.drops[task, reason] += int(lost_of_pair[pair])
        examples = counts.examples.setdefault(reason, [])
        if len(examples) < _MOST_EXAMPLES:
            rows = np.flatnonzero(dropped & (pairs == pair))[: _MOST_EXAMPLES - len(examples)]
            ids = batch["episode_id"].take(pa.array(rows)).to_pylist()
            examples.extend(id_ for id_ in ids if id_ is not None)


def dataset_facts(
    dataset: DatasetReader, counts: IndexCounts, tasks: Sequence[TaskFacts], shares: Shares | None, budget: Budget
) -> dict[str, Any]:
    """A dataset for the page.

    ``kinds`` counts the tokens of what is kept; a scan estimates them from steps. ``images`` are (height, width,
    count), the most frequent size first, counted in ``counted`` of ``records`` if these are not None. ``fraction`` is
    the configured ``min_return``. Raises DataError if a shard cannot be read.
    """
    totals = dataset.totals
    is_stored = totals.shards > 0
    sample, excerpts = None, []
    if dataset.holds_documents and is_stored:
        sample = contents(dataset, _EFFORT)
        rows = dataset.rows_at([] if counts.missing else counts.first_kept)
        excerpts = [document_excerpt(document, budget) for document in dataset.read_documents(rows)]
        image_tokens, seen = sample.image_tokens, sample.text_tokens + sample.image_tokens
        if seen not in (0, totals.tokens):
            image_tokens = round(image_tokens * totals.tokens / seen)
        kinds = Counter({TokenKind.TEXT: totals.tokens - image_tokens, TokenKind.IMAGE: image_tokens})
        images = [(size.height, size.width, size.images) for size in sample.sizes]
    else:
        kinds, images = _episode_tokens_and_images(dataset, tasks)
    drops = [
        {
            "reason": reason or "unknown",
            "meaning": REASONS.get(reason or "", "a reason that this gatokit does not know"),
            "count": count,
            "examples": counts.examples.get(reason, []),
        }
        for reason, count in counts.reasons()
    ]
    return {
        "name": dataset.name,
        "kind": totals.kind,
        "holds_documents": dataset.holds_documents,
        "hz": totals.hz,
        "weight": totals.weight,
        "of_run": shares,
        "found": counts.found,
        "kept": counts.kept,
        "sizes": sorted(counts.sizes.items()),
        "drops": drops,
        "tokens": totals.tokens if is_stored else None,
        "kinds": {kind.name.lower().replace("_", " "): kinds[kind] for kind in TokenKind if kinds[kind]},
        "kinds_estimated": not is_stored or (sample is not None and not sample.is_complete),
        "images": images,
        "counted": None if sample is None else sample.counted,
        "records": None if sample is None else sample.records,
        "excerpts": excerpts,
        "fraction": None if dataset.keep is None else dataset.keep.min_return,
        "notes": list(_notes(dataset, counts, tasks)),
    }


def _episode_tokens_and_images(
    dataset: DatasetReader, tasks: Sequence[TaskFacts]
) -> tuple[Counter[TokenKind], list[tuple[int, int, int]]]:
    """Tokens of each kind, and images of each size: steps times what a step has. The other tokens are text."""
    kinds: Counter[TokenKind] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for task in tasks:
        if task.name not in dataset.described.tasks:
            continue
        of_step: Counter[TokenKind] = Counter({TokenKind.SEPARATOR: 1})
        for item in dataset.spec(task.name).fields:
            of_step[TokenKind[f"{item.kind.upper()}{'_ACTION' * item.is_action}"]] += item.tokens or 0
            if item.image is not None and task.steps:
                sizes[item.image.height, item.image.width] += task.steps
        kinds.update({kind: count * task.steps for kind, count in of_step.items()})
        if task.tokens is not None:
            kinds[TokenKind.TEXT] += task.tokens - of_step.total() * task.steps
    return kinds, [(height, width, count) for (height, width), count in sizes.most_common()]


def _notes(dataset: DatasetReader, counts: IndexCounts, tasks: Sequence[TaskFacts]) -> Iterator[str]:
    yield from dataset.totals.losses
    if counts.missing:
        yield f"the index lacks {', '.join(counts.missing)}: what rests on them is left out"
    if not dataset.totals.ordered and not dataset.holds_documents:
        yield "no collection order is configured: returns are in the order of the files"
    lost = [task.name for task in tasks if task.stops is None]
    if lost:
        yield f"no threshold can be worked out for {len(lost):,} of {len(tasks):,} tasks, such as {lost[0]}"
