"""The explorer over many index rows: seconds of a start, a filter, a sort, a page and an export, and memory.

The scan is that of ``report.py``: random returns and lengths of a thousand tasks, in splits of 250,000 rows.

    python benchmarks/explorer.py --rows 1000000 10000000     # some three minutes on two cores
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from harness import machine
from report import scans
from scale import peak

REPEATS = 3
WHERE = "return > 0.9 * expert_return and steps < 400 and agent == 'one'"


def measure(root: Path) -> dict[str, Any]:
    """Medians of every action in this process, each with the highest memory while it ran."""
    begin = time.perf_counter()
    from gatokit.inspection import open_directory
    from gatokit.inspection.explorer import server
    from gatokit.inspection.explorer.query import Filter, Order, Selection, find, page

    directory = open_directory(root)
    [dataset] = directory.datasets.values()
    picked = Selection(directory.datasets)
    server.session_page(directory, [dataset], picked, "export")
    found: dict[str, Any] = {"start": time.perf_counter() - begin, "before_bytes": peak(reset=True), "actions": {}}
    sorted_by_return = find(dataset, Filter(), Order("return", True))
    one_task = find(dataset, Filter(task="task-0500"), Order("return", True))

    def export() -> None:
        picked.add(dataset.name, range(sum(split.rows for split in dataset.totals.splits)))
        for _ in picked.csv():
            pass

    actions: dict[str, Callable[[], object]] = {
        "all rows": lambda: find(dataset, Filter()),
        "one task": lambda: find(dataset, Filter(task="task-0500")),
        "expression": lambda: find(dataset, Filter(where=WHERE)),
        "text in id": lambda: find(dataset, Filter(text="#12345")),
        "sort by return": lambda: find(dataset, Filter(), Order("return", True)),
        "sort by task": lambda: find(dataset, Filter(), Order("task")),
        "sort by id": lambda: find(dataset, Filter(), Order("episode_id")),
        "page in order": lambda: page(dataset, find_all, 5000, 5020),
        "page of a task, by return": lambda: page(dataset, one_task, 0, 20),
        "page of all, by return": lambda: page(dataset, sorted_by_return, 0, 20),
        "export of all": export,
    }
    find_all = find(dataset, Filter())
    for name, action in actions.items():
        pa.default_memory_pool().release_unused()
        peak(reset=True)
        seconds = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - begin)
        found["actions"][name] = {"seconds": statistics.median(seconds), "peak_bytes": peak()}
    return found


def main() -> None:
    """Prints a table a size and one JSON line."""
    results = []
    for found in scans(__doc__, __file__, measure, "data/benchmark/explorer"):
        print(
            f"{found['rows']:,} rows: start {found['start']:.1f} s, {found['before_bytes'] / 2**20:,.0f} MiB",
            flush=True,
        )
        for name, action in found["actions"].items():
            print(f"  {name:28}{action['seconds']:8.2f} s{action['peak_bytes'] / 2**20:10,.0f} MiB", flush=True)
        results.append(found)
    print(json.dumps({"machine": machine(), "explorer": results}))


if __name__ == "__main__":
    main()
