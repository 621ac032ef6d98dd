"""The one source of the current time."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """Return the current time, aware, UTC."""
    return datetime.now(UTC)
