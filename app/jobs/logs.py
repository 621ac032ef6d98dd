"""The log of a job: its events as lines, progress left out. It only ever grows, so parts of it can be asked for.

Made from what workers report in a structured way, never from what processes print: no path, no secret is in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from app.db.tables import JobEvent
from app.jobs.views import event_view
from nupes_client.schemas.reports import LogFormat

TYPES = ("status", "phase", "log", "changed", "waiting", "routed", "published")
"""Events that are lines of the log."""

MEDIA_TYPES: dict[LogFormat, str] = {"text": "text/plain; charset=utf-8", "jsonl": "application/x-ndjson"}


def log_content(events: Sequence[JobEvent], wanted: LogFormat, tail: int | None) -> bytes:
    """Return the lines of these events, the last `tail` of them; each event is one line, whatever it says."""
    kept = events if tail is None else events[len(events) - min(tail, len(events)) :]
    line = _LINES[wanted]
    return "".join(f"{line(event)}\n" for event in kept).encode()


def _text(event: JobEvent) -> str:
    level = str(event.data.get("level", "info")).upper()
    say = _WORDS.get(event.type, _fields)
    moment = f"{event.created_at:%Y-%m-%dT%H:%M:%S.%f}"[:-3]
    return f"{moment}Z {level:<7} {_one_line(say(event.data))}"


def _status(data: dict[str, Any]) -> str:
    further = {name: value for name, value in data.items() if name not in {"from", "to", "error"} and value is not None}
    error = data.get("error") or {}
    reason = f": {error['code']}: {error['message']}" if error else ""
    return f"status {data['to']} {_fields(further)}".rstrip() + reason


def _fields(data: dict[str, Any]) -> str:
    return " ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in data.items())


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "status": _status,
    "phase": lambda data: f"phase {data['phase']}",
    "log": lambda data: str(data.get("message", "")),
    "changed": lambda data: f"changed {_fields(data)}",
    "published": lambda data: f"published {_fields(data)}",
}


def _one_line(text: str) -> str:
    """Spell out what would end a line or move the cursor of a terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


_LINES: dict[LogFormat, Callable[[JobEvent], str]] = {
    "text": _text,
    "jsonl": lambda event: event_view(event).model_dump_json(),
}
