"""One spelling of JSON and one hash, so that equal things have equal digests."""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; NaN and infinities are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(data: bytes, size: int = 32) -> str:
    """BLAKE2b of ``data`` as ``2 * size`` hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def json_digest(value: Any, size: int = 32) -> str:
    """``digest`` of the canonical JSON of ``value``."""
    return digest(canonical_json(value), size)
