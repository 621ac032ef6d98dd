"""The pages everybody finds on the left, those that the key opens."""

from __future__ import annotations

from dataclasses import dataclass

from app.core.security import Principal


@dataclass(frozen=True)
class Entry:
    """A link; `scope` None: any key opens it."""

    title: str
    path: str
    scope: str | None = "jobs:read"


_ENTRIES = (
    Entry("Overview", "/"),
    Entry("Jobs", "/jobs"),
    Entry("New job", "/jobs/new", "jobs:write"),
    Entry("Models", "/models", "models:read"),
    Entry("Webhooks", "/webhooks", "webhooks:manage"),
    Entry("Secrets", "/secrets", "secrets:manage"),
    Entry("Keys", "/keys", "keys:manage"),
    Entry("Usage", "/usage", None),
    Entry("API", "/docs", None),
)


def current(path: str) -> str:
    """The path of the entry that a page belongs to; empty where there is none."""
    found = [entry.path for entry in _ENTRIES if path == entry.path or path.startswith(f"{entry.path.rstrip('/')}/")]
    return max((place for place in found if place != "/" or path == "/"), key=len, default="")


def entries(principal: Principal | None) -> list[Entry]:
    """What to show to this user; nothing before signing in."""
    if principal is None:
        return []
    return [entry for entry in _ENTRIES if entry.scope is None or principal.may(entry.scope)]
