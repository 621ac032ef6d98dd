"""Prefixed ids that sort by creation time."""

from __future__ import annotations

import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32
_lock = threading.Lock()
_last_ms = 0


def new_id(prefix: str) -> str:
    """Return e.g. `job_01jd…`: 48 bits of milliseconds and 80 random bits in base 32; grows within a process."""
    value = (_next_ms() << 80) | secrets.randbits(80)
    digits = [_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5)]
    return f"{prefix}_{''.join(digits)}"


def _next_ms() -> int:
    global _last_ms
    with _lock:
        _last_ms = max(_last_ms + 1, time.time_ns() // 1_000_000)
        return _last_ms
