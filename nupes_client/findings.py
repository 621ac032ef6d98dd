"""What `nupes doctor` finds: the checks of this package, and those that service and workers add where installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal

from nupes_client.errors import NupesError

CHECKS = "nupes.checks"
"""Entry points: functions without arguments that yield findings."""
OLDEST_PYTHON = (3, 11)

FindingStatus = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what to do where it is not fine."""

    name: str
    status: FindingStatus
    detail: str
    hint: str = ""


def examine() -> Iterator[Finding]:
    """Yield the findings of all checks, one by one as they are made."""
    yield _python()
    for entry in sorted(entry_points(group=CHECKS), key=lambda entry: entry.name):
        try:
            check: Callable[[], Iterator[Finding]] = entry.load()
        except ImportError as error:  # a client-only install
            yield Finding(entry.name, "ok", f"not installed here ({error.name or error})")
            continue
        yield from check()
    yield _service()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "problem", found, "Use Python 3.11 or newer.")
    return Finding("python", "ok", f"{found} at {sys.prefix}")


def _service() -> Finding:
    """The service that commands on this machine talk to, and whether the key opens it."""
    from nupes_client.client import Client

    try:
        with Client(attempts=1, timeout_s=10) as client:
            ready = client.readiness()
            client.usage()
    except NupesError as error:
        return Finding("service", "problem", str(error), error.hint or "")
    weak = [f"{check.name} {check.status}: {check.detail}" for check in ready.checks if check.status != "ok"]
    return Finding("service", "warning" if weak else "ok", "; ".join([f"{client.url}, {ready.version}", *weak]))
