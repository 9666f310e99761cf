"""Repeats a piece of work in an isolated process, after an earlier attempt at it died.

A decoder that crashes ends that process alone. Then another process goes through the rows one by one and says which
row it is at, until all rows that crash are known. Run as a program, this module is such a process, which reads its task
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

from gatokit.pipelines import scan_cache
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


def build(path: str | Path, directory: str | Path, vocabulary: str | Path | None) -> Built:
    """Does what ``build_shard`` does with the shard task in the file ``path``. Rows that crash are dropped as
    ``crashed_decoder``.

    Raises DataError if the process ends for another reason than one of the rows.
    """
    task = {"task": str(path), "directory": str(directory), "vocabulary": vocabulary and str(vocabulary)}
    crashed: dict[int, str] = {}
    while True:
        answers, ended = _run({**task, "do": "build", "crashed": list(crashed.items())})
        if ended is None:
            return Built(**json.loads(answers[-1]))
        shard, start, before = ShardTask.read(path), 0, len(crashed)
        while True:
            answers, ended_at_row = _run({**task, "do": "probe", "start": start, "crashed": list(crashed.items())})
            if ended_at_row is None:
                break
            if not answers:
                raise _unexplained(shard, ended_at_row)
            at, row = map(int, answers[-1].split())
            if ended_at_row not in _CRASHES:
                raise DataError(f"{_named(shard, row)} was ended by {ended_at_row.name} while it was made, {_KILLED}")
            crashed[row] = f"its decoder ended in {ended_at_row.name}"
            if len(crashed) > MOST_CRASHES:
                raise DataError(
                    f"{_named(shard, min(crashed))} and {MOST_CRASHES} more of its shard crash their decoder "
                    f"({ended_at_row.name}): is an installed library broken?"
                )
            start = at + 1
        if len(crashed) == before:
            raise _unexplained(shard, ended)


def _named(shard: ShardTask, row: int) -> str:
    return f"{shard.header.dataset}: {shard.rows['episode_id'][row]} (in {shard.rows['source_file'][row]})"


def _unexplained(shard: ShardTask, ended: signal.Signals) -> DataError:
    first, last = shard.rows["source_file"][0], shard.rows["source_file"][-1]
    source = f"{first}" if first == last else f"{first} to {last}"
    reason = "no single row does" if ended in _CRASHES else _KILLED
    return DataError(
        f"{shard.header.dataset}: making the shard {shard.stem} of {source} ends in {ended.name}, {reason}"
    )


def scan(unit: ScanUnit, result: str | Path) -> int:
    """Scans a unit, writes its rows with ``write_rows``, and returns their number.

    Raises DataError, which names the file, if the process ends.
    """
    answers, ended = _run({"do": "scan", "unit": json.loads(unit.model_dump_json()), "result": str(result)})
    if ended is None:
        return int(json.loads(answers[-1])["rows"])
    name = "its files"
    if answers:
        file = unit.files[int(answers[-1])]  # plain values if it holds documents
        name = file["name"] if isinstance(file, dict) else file.file.name
    if ended not in _CRASHES:
        raise DataError(f"{unit.dataset}: scanning {name} was ended by {ended.name}, {_KILLED}")
    raise DataError(
        f"{unit.dataset}: scanning {name} ends in {ended.name}: it crashes the library that reads it. Mend the file or "
        "leave it out of the source"
    )


# --- the process ---------------------------------------------------------------------------------------------


def _run(task: dict[str, Any]) -> tuple[list[bytes], signal.Signals | None]:
    """Runs a task in a process. Returns the lines that it wrote, and the signal that ended it, if one did.

    Raises DataError or OSError, with the message of the process, if it failed with such an error.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
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
        answers = pipe.read().splitlines()
        code = process.wait()
    if code < 0:
        return answers, signal.Signals(-code)
    if code == _FAILED:
        failed = json.loads(answers[-1])
        raise OSError(failed["failed"]) if failed["may_pass"] else DataError(failed["failed"])
    if code:
        raise RuntimeError(f"python -m {__spec__.name} ended with status {code} after {answers[-1:]}")
    return answers, None


def _single_files(unit: dict[str, Any]) -> Iterator[ScanUnit]:
    """A unit for each file of a unit."""
    of_files = [key for key in ("files", "keys", "ordinals") if key in unit]
    for number in range(len(unit["files"])):
        yield unit_from_json(json.dumps({**unit, **{key: [unit[key][number]] for key in of_files}}))


def _main(task: dict[str, Any], answers: int) -> None:
    def say(line: str) -> None:
        os.write(answers, line.encode() + b"\n")

    try:
        if task["do"] == "scan":
            tables = []
            for number, unit in enumerate(_single_files(task["unit"])):
                say(str(number))
                tables.append(unit.scan())
            unit = unit_from_json(json.dumps(task["unit"]))
            rows = scan_cache.write(task["result"], unit.keys, unit.ordinals, tables)
            say(json.dumps({"rows": rows.num_rows}))
            return
        text = None if task["vocabulary"] is None else load_vocabulary(task["vocabulary"])
        shard = ShardTask.read(task["task"])
        crashed = dict(task["crashed"])
        if task["do"] == "build":
            say(json.dumps(asdict(build_shard(shard, task["directory"], text, crashed))))
            return
        columns = {name: shard.rows[name].to_pylist() for name in shard.rows.column_names}
        builder = shard.header.builder(text)
        kept = [row for row, split in enumerate(columns["split"]) if split is not None]
        for at, row in enumerate(kept):
            if at >= task["start"] and row not in crashed:
                say(f"{at} {row}")
                for _ in builder.tokenize(columns, [row]):
                    pass
    except (GatokitError, OSError) as error:
        # As the message that would have been left without this process.
        may_pass = files.may_pass(error)
        message = str(error) if isinstance(error, GatokitError) or may_pass else f"{type(error).__name__}: {error}"
        say(json.dumps({"failed": message, "may_pass": may_pass}))
        sys.exit(_FAILED)


if __name__ == "__main__":
    _main(json.load(sys.stdin), int(sys.argv[1]))
