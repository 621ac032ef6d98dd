"""Who a worker slot is: `host:place:pid:slot`, so that other slots on the machine can see whether it lives."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from pathlib import Path

_HOST_CHARS = 50


def new_worker_id() -> str:
    """Return a name that no other slot ever had."""
    return f"{_host()}:{place()}:{os.getpid()}:{secrets.token_hex(3)}"


def place() -> str:
    """Return what tells apart boots of machines, and containers: a process id means something within one place."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:8]


def is_gone(worker_id: str) -> bool:
    """Whether the slot ran here and its process is no more. False where this can not be known."""
    parts = worker_id.rsplit(":", 3)
    if len(parts) != 4 or parts[:2] != [_host(), place()] or not parts[2].isdecimal():
        return False
    return not Path("/proc", parts[2]).exists()


def _host() -> str:
    return socket.gethostname()[:_HOST_CHARS]
