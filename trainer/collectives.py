"""The collectives of a compiled program, read from its HLO text: how often each kind runs, and over how many bytes."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
_CALLED = re.compile(r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"^\s+%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"^\s+ROOT \S+ = pred\[\]\S* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT")
_ARRAY = re.compile(r"\b([a-z]+\d*)[a-z\d]*\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}|mesh\[(.*?)\].*? \{(.*?)\})")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_BITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Collectives:
    """All collectives of one kind in one run of a program on one device."""

    kind: str
    count: int
    """A loop's count as often as it is known to run, those of a loop of unknown length once."""
    bytes: int
    """Of the whole arrays that they gather, reduce, scatter or send."""


def find_collectives(text: str) -> tuple[Collectives, ...]:
    """The collectives in the text of a compiled module, by kind in the order of ``KINDS``."""
    entry = ""
    own: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    called: dict[str, list[tuple[str, str, int | None]]] = defaultdict(list)
    limits: dict[str, int] = {}
    constants: dict[str, int] = {}
    current = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            current = opened[1]
            entry = current if line.startswith("ENTRY") else entry
            constants = {}
        elif instruction := _INSTRUCTION.match(line):
            shape, operation = instruction.groups()
            if constant := _CONSTANT.match(line):
                constants[constant[1]] = int(constant[2])
            if (below := _BELOW.match(line)) and below[1] in constants:
                limits[current] = constants[below[1]]
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                channel = _CHANNEL.search(line)
                own[current].append((kind, channel[1] if channel else line, _bytes(kind, shape, line)))
            trips = _TRIPS.search(line)
            roles = dict(_CALLED.findall(line))
            names = list(roles.values())
            for branches in _BRANCHES.findall(line):
                names += [name.strip().lstrip("%") for name in branches.split(",")]
            for name in names:
                called[current].append((name, roles.get("condition", ""), int(trips[1]) if trips else None))
    # What is spread over several fusions, to overlap with computing, has one channel: it happens once.
    counts: dict[tuple[str, str], int] = defaultdict(int)
    sizes: dict[tuple[str, str], int] = defaultdict(int)

    def add(name: str, times: int) -> None:
        for kind, channel, size in own[name]:
            counts[kind, channel] = max(counts[kind, channel], times)
            sizes[kind, channel] = max(sizes[kind, channel], size)
        for other, condition, trips in called[name]:
            add(other, times * (trips or limits.get(condition, 1)))

    add(entry, 1)
    found = []
    for kind in KINDS:
        keys = [key for key in counts if key[0] == kind]
        if keys:
            count = sum(counts[key] for key in keys)
            found.append(Collectives(kind, count, sum(counts[key] * sizes[key] for key in keys)))
    return tuple(found)


def _bytes(kind: str, shape: str, line: str) -> int:
    arrays = [
        math.prod(int(size) for size in sizes.split(",") if size) * max(1, int((_BITS.search(dtype) or ["8"])[0]) // 8)
        for dtype, sizes in _ARRAY.findall(shape)
    ]
    # The result of an operation that only starts is a tuple of what goes in and what will come out.
    whole = max(arrays, default=0) if "-start(" in line else sum(arrays)
    if kind == "reduce-scatter" and "-start(" not in line:
        whole *= _group_size(line)
    return whole


def _group_size(line: str) -> int:
    """How many devices take part together; the text has three ways to say so."""
    found = _GROUPS.search(line)
    if found is None:
        return 1
    size, members, axes, taken = found.groups()
    if size:
        return int(size)
    if members:
        return members.count(",") + 1
    return math.prod(int(length) for name, length in _AXIS.findall(axes) if f"'{name}'" in taken)
