"""Reads ``tf.train.Example`` messages in place: the wire format is walked, a feature is only decoded when asked for.

A message of a recorded episode holds every step of a field in one list, so a list of images is stepped over in
one jump and a list of floats is an array already. ``Example`` holds ``Features`` holds map entries
(key = ``steps/reward``, value = ``Feature``); a ``Feature`` holds one list of bytes, floats or integers.

Every function raises ValueError if the bytes are no such message, for example if a length reaches outside of the
message that contains it.
"""

from collections.abc import Iterator

import numpy as np

from gatokit.schemas.record import read_varint

Span = tuple[int, int]

_LENGTH, _VARINT, _FIXED64, _FIXED32 = 2, 0, 1, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_ENTRY, _ENTRY_VALUE = 1 << 3 | _LENGTH, 2 << 3 | _LENGTH
_KEYS: dict[bytes, str] = {}
"""Decoded feature names, which repeat in every message; at most ``_MOST_KEYS``."""
_MOST_KEYS = 1024
_LAYOUTS: dict[int, tuple[dict[str, Span], list[tuple[int, bytes]]]] = {}
"""By length, the spans of the last message of that length and the bytes around them; at most ``_MOST_LAYOUTS``."""
_MOST_LAYOUTS = 256
_FEW_BYTES = 16


def walk(data: bytes) -> dict[str, Span]:
    """Finds each feature of an Example: key to (begin, end) of its ``Feature`` message. Do not change the result.

    Messages of one length mostly differ in their values alone. The bytes around the values decide where these are, so
    if they equal those of the last message of that length, its result is returned.
    """
    layout = _LAYOUTS.get(len(data))
    if layout is not None and all(data.startswith(around, at) for at, around in layout[1]):
        return layout[0]
    spans: dict[str, Span] = {}
    for number, wire, begin, end in _parts(data, 0, len(data)):
        if number == 1 and wire == _LENGTH:
            _walk_features(data, begin, end, spans)
    if len(_LAYOUTS) >= _MOST_LAYOUTS:
        _LAYOUTS.clear()
    _LAYOUTS[len(data)] = spans, list(_around(data, spans))
    return spans


def _around(data: bytes, spans: dict[str, Span]) -> Iterator[tuple[int, bytes]]:
    """Yields the bytes between the spans, each with the offset where they begin."""
    at = 0
    for begin, end in sorted(spans.values()):
        yield at, data[at:begin]
        at = end
    yield at, data[at:]


def _walk_features(data: bytes, at: int, end: int, found: dict[str, Span]) -> None:
    """Adds the map entries of ``Features`` to ``found``.

    Writers put a short key first and its value behind it, which is read here without a generator; ``_walk_entry``
    reads an entry of any other form.
    """
    keys = _KEYS
    try:
        while at < end:
            begin = at
            if data[at] == _ENTRY:
                size, at = read_varint(data, at + 1)
                stop = at + size
                key_end = at + 2 + data[at + 1]
                if data[at] == _ENTRY and data[at + 1] < 0x80 and key_end < stop and data[key_end] == _ENTRY_VALUE:
                    length, value = read_varint(data, key_end + 1)
                    if value + length == stop <= end:
                        raw = data[at + 2 : key_end]
                        key = keys.get(raw)
                        if key is None:
                            key = str(raw, "utf-8")
                            if len(keys) < _MOST_KEYS:
                                keys[raw] = key
                        found[key] = (value, stop)
                        at = stop
                        continue
            at = _walk_entry(data, begin, end, found)
    except IndexError:
        raise ValueError("the message ends inside a field") from None


def _walk_entry(data: bytes, at: int, end: int, found: dict[str, Span]) -> int:
    """Reads one field of ``Features`` in any form; returns where the next one begins."""
    number, wire, begin, stop = next(_parts(data, at, end))
    if number == 1 and wire == _LENGTH:
        key, value = "", (stop, stop)
        for part, part_wire, part_begin, part_end in _parts(data, begin, stop):
            if part_wire == _LENGTH and part == 1:
                key = str(data[part_begin:part_end], "utf-8")
            elif part_wire == _LENGTH and part == 2:
                value = (part_begin, part_end)
        found[key] = value
    return stop


def floats(data: bytes, span: Span) -> np.ndarray:
    """The float list of a feature, float32 (n,); a packed list is a view of ``data``."""
    packed = _packed(data, span, _FLOAT_LIST)
    if packed is not None and (packed[1] - packed[0]) % 4 == 0:
        return np.frombuffer(data, "<f4", (packed[1] - packed[0]) // 4, packed[0])
    chunks = []
    for wire, begin, end in _values(data, span, _FLOAT_LIST):
        if wire == _LENGTH:
            if (end - begin) % 4:
                raise ValueError("a packed float list is no multiple of 4 bytes long")
            chunks.append(np.frombuffer(data, "<f4", (end - begin) // 4, begin))
        elif wire == _FIXED32:
            chunks.append(np.frombuffer(data, "<f4", 1, begin))
        else:
            raise ValueError("a float list holds something else")
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, "<f4"), *chunks])


def integers(data: bytes, span: Span) -> np.ndarray:
    """The integer list of a feature, int64 (n,)."""
    packed = _packed(data, span, _INT64_LIST)
    if packed is not None:
        begin, end = packed
        if end - begin <= _FEW_BYTES:
            return _few_varints(data, begin, end)
        return _varints(np.frombuffer(data, np.uint8, end - begin, begin))
    chunks = []
    for wire, begin, end in _values(data, span, _INT64_LIST):
        if wire not in (_LENGTH, _VARINT):
            raise ValueError("an integer list holds something else")
        chunks.append(_varints(np.frombuffer(data, np.uint8, end - begin, begin)))
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, np.int64), *chunks])


def byte_strings(data: bytes, span: Span) -> list[bytes]:
    """The bytes list of a feature."""
    found: list[bytes] = []
    at, end = span
    try:
        # One list without gaps, as writers make it; the loop behind reads every other form.
        if at < end and data[at] == _BYTES_LIST << 3 | _LENGTH:
            size, at = read_varint(data, at + 1)
            while at < end and data[at] == _ENTRY:
                length = data[at + 1]
                at += 2
                if length >= 0x80:
                    if data[at] < 0x80:  # a length of two bytes, as most frames have
                        length += (data[at] - 1) << 7
                        at += 1
                    else:
                        length, at = read_varint(data, at - 1)
                found.append(data[at : at + length])
                at += length
            if at == end and size == end - span[0] - _width(size) - 1:
                return found
    except IndexError:
        pass
    found.clear()
    for wire, begin, end in _values(data, span, _BYTES_LIST):
        if wire != _LENGTH:
            raise ValueError("a bytes list holds something else")
        found.append(data[begin:end])
    return found


def _width(size: int) -> int:
    """Bytes that a length takes as a varint."""
    return max(1, -(-size.bit_length() // 7))


def _packed(data: bytes, span: Span, wanted: int) -> Span | None:
    """The span of the numbers if the feature is one list, packed without gaps, as writers make it; else None."""
    at, end = span
    try:
        if data[at] != wanted << 3 | _LENGTH:
            return None
        size, at = read_varint(data, at + 1)
        if at + size != end or data[at] != _ENTRY:
            return None
        size, at = read_varint(data, at + 1)
    except IndexError:
        return None
    return (at, end) if at + size == end else None


def _values(data: bytes, span: Span, wanted: int) -> Iterator[tuple[int, int, int]]:
    """Yields (wire type, begin, end) of the values in the list of a feature; an empty feature has none."""
    for number, wire, begin, end in _parts(data, *span):
        if number > _INT64_LIST:
            continue
        if number != wanted or wire != _LENGTH:
            raise ValueError("the feature holds a list of another type")
        for number_, wire_, begin_, end_ in _parts(data, begin, end):
            if number_ == 1:
                yield wire_, begin_, end_


def _parts(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields (field number, wire type, begin, end) of the fields of the message at ``data[at:end]``."""
    try:
        while at < end:
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = read_varint(data, at - 1)
            wire = tag & 7
            if wire == _LENGTH:
                size = data[at]
                at += 1
                if size >= 0x80:
                    size, at = read_varint(data, at - 1)
                stop = at + size
            elif wire == _VARINT:
                stop = at
                while data[stop] >= 0x80:
                    stop += 1
                stop += 1
            elif wire == _FIXED32:
                stop = at + 4
            elif wire == _FIXED64:
                stop = at + 8
            else:
                raise ValueError(f"unknown wire type {wire}")
            if stop > end:
                raise ValueError("a field reaches outside of its message")
            yield tag >> 3, wire, at, stop
            at = stop
    except IndexError:
        raise ValueError("the message ends inside a field") from None


def _few_varints(data: bytes, at: int, end: int) -> np.ndarray:
    """The same as ``_varints``, in a loop, which is faster for few numbers."""
    numbers = []
    try:
        while at < end:
            number, at = read_varint(data, at)
            numbers.append(number & 0xFFFF_FFFF_FFFF_FFFF)
    except IndexError:
        at = end + 1
    if at > end:
        raise ValueError("the last number of a packed list is cut off")
    return np.array(numbers, np.uint64).view(np.int64)


def _varints(raw: np.ndarray) -> np.ndarray:
    """Decodes packed varints, uint8 (bytes,), to int64 (n,)."""
    last = raw < 0x80
    if last.all():
        return raw.astype(np.int64)
    if not last[-1]:
        raise ValueError("the last number of a packed list is cut off")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ValueError("a number is longer than 64 bits")
    value = np.zeros(len(ends), np.uint64)
    for digit in range(int(lengths.max())):
        has = lengths > digit
        value[has] |= (raw[starts[has] + digit] & 0x7F).astype(np.uint64) << np.uint64(7 * digit)
    return value.view(np.int64)
