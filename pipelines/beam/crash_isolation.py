"""Repeats a piece of work in an isolated process, after an earlier attempt at it died.

If a decoder crashes, it ends that process alone. Then another process goes through the rows one by one and says which
row it is at, until all rows that crash are known. Run as a program, this module is such a process: it reads its task
from standard input as JSON.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from gatokit.pipelines.inputs import load_vocabulary
from gatokit.pipelines.planning import ScanUnit, ShardTask, unit_from_json
from gatokit.pipelines.shards.writer import Built, build_shard
from gatokit.schemas.errors import DataError, GatokitError
from gatokit.storage import files

MOST_CRASHES = 20
"""If more rows of one shard crash their decoder, the reason must be another one."""
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}
_FAILED = 3
_KILLED = "probably for lack of memory: take fewer --workers or a machine with more, or leave it out of the source"


def build(order: str | Path, directory: str | Path, vocabulary: str | Path) -> Built:
    """Does what ``build_shard`` does with the task in the file ``order``. Rows that crash are dropped as
    ``crashed_decoder``.

    Raises DataError if the process ends for another reason than one of the rows.
    """
    task = {"do": "build", "order": str(order), "directory": str(directory), "vocabulary": str(vocabulary)}
    crashed: dict[int, str] = {}
    while True:
        said, ended = _run({**task, "crashed": list(crashed.items())})
        if ended is None:
            return Built(**json.loads(said[-1]))
        before = len(crashed)
        _find(task, crashed)
        if len(crashed) == before:
            raise DataError(_unexplained(ShardTask.read(order), ended))


def scan(unit: ScanUnit, result: str | Path) -> int:
    """Scans a unit, writes its rows with ``write_rows``, and returns their number.

    Raises DataError, which names the file, if the process ends.
    """
    said, ended = _run({"do": "scan", "unit": json.loads(unit.model_dump_json()), "result": str(result)})
    if ended is None:
        return int(json.loads(said[-1])["rows"])
    name = _file_name(unit.files[int(said[-1])]) if said else "its files"
    if ended not in _CRASHES:
        raise DataError(f"{unit.dataset}: scanning {name} was ended by {ended.name}, {_KILLED}")
    raise DataError(
        f"{unit.dataset}: scanning {name} ends in {ended.name}: it crashes the library that reads it. Mend the file or "
        "leave it out of the source"
    )


def _file_name(file: Any) -> str:
    """The name of a file of a unit: episodes have objects there, documents plain values."""
    name: str = file["name"] if isinstance(file, dict) else file.file.name
    return name


def _find(task: dict[str, Any], crashed: dict[int, str]) -> None:
    """Adds the rows that crash, each with the signal that ended the process."""
    start = 0
    while True:
        said, ended = _run({**task, "do": "probe", "start": start, "crashed": list(crashed.items())})
        if ended is None:
            return
        order = ShardTask.read(task["order"])
        if not said:
            raise DataError(_unexplained(order, ended))
        at, row = map(int, said[-1].split())
        if ended not in _CRASHES:
            raise DataError(f"{_named(order, row)} was ended by {ended.name} while it was made, {_KILLED}")
        crashed[row] = f"its decoder ended in {ended.name}"
        if len(crashed) > MOST_CRASHES:
            raise DataError(
                f"{_named(order, min(crashed))} and {MOST_CRASHES} more of its shard crash their decoder "
                f"({ended.name}): is an installed library broken?"
            )
        start = at + 1


def _named(order: ShardTask, row: int) -> str:
    rows = order.rows
    return f"{order.header.dataset}: {rows['episode_id'][row]} (in {rows['source_file'][row]})"


def _unexplained(order: ShardTask, ended: signal.Signals) -> str:
    first, last = order.rows["source_file"][0], order.rows["source_file"][-1]
    files = f"{first}" if first == last else f"{first} to {last}"
    reason = "no single row does" if ended in _CRASHES else _KILLED
    return f"{order.header.dataset}: making the shard {order.stem} of {files} ends in {ended.name}, {reason}"


# --- the process ---------------------------------------------------------------------------------------------


def _run(task: dict[str, Any]) -> tuple[list[bytes], signal.Signals | None]:
    """Runs a task in a process. Returns the lines that it wrote, and the signal that ended it, if one did.

    Raises DataError, with the message of the process, if it failed for a reason that the user can mend.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as answers:
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writing,),
        )
        os.close(writing)
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(json.dumps(task).encode())
        said = answers.read().splitlines()
        code = process.wait()
    if code < 0:
        return said, signal.Signals(-code)
    if code == _FAILED:
        raise DataError(json.loads(said[-1])["failed"])
    if code:
        raise RuntimeError(f"python -m {__spec__.name} ended with status {code} after {said[-1:]}")
    return said, None


def _single_files(value: dict[str, Any]) -> Iterator[ScanUnit]:
    """A unit for each file of a unit."""
    for number, file in enumerate(value["files"]):
        own = {**value, "files": [file], "versions": value["versions"][number : number + 1]}
        if "ordinals" in value:
            own["ordinals"] = [value["ordinals"][number]]
        yield unit_from_json(json.dumps(own))


def _main(task: dict[str, Any], answers: int) -> None:
    def say(line: str) -> None:
        os.write(answers, line.encode() + b"\n")

    try:
        if task["do"] == "scan":
            tables = []
            for number, unit in enumerate(_single_files(task["unit"])):
                say(str(number))
                tables.append(unit.scan())
            rows = pa.concat_tables(tables)
            files.write_rows(task["result"], rows)
            say(json.dumps({"rows": rows.num_rows}))
            return
        text, order = load_vocabulary(task["vocabulary"]), ShardTask.read(task["order"])
        crashed = dict(task["crashed"])
        if task["do"] == "build":
            say(json.dumps(asdict(build_shard(order, task["directory"], text, crashed))))
            return
        columns = {name: order.rows[name].to_pylist() for name in order.rows.column_names}
        builder = order.header.builder(text)
        kept = [row for row, split in enumerate(columns["split"]) if split is not None]
        for at, row in enumerate(kept):
            if at >= task["start"] and row not in crashed:
                say(f"{at} {row}")
                for _ in builder.tokenize(columns, [row]):
                    pass
    except (GatokitError, OSError) as error:
        # As the message that would have been left without this process.
        said = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error)
        say(json.dumps({"failed": said}))
        sys.exit(_FAILED)


if __name__ == "__main__":
    _main(json.load(sys.stdin), int(sys.argv[1]))
