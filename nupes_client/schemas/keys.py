"""API keys."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nupes_client.schemas.base import Request, Response, Timestamp

Scope = Literal[
    "jobs:read",
    "jobs:write",
    "models:read",
    "models:write",
    "artifacts:read",
    "webhooks:manage",
    "keys:manage",
    "admin",
]


class KeyCreate(Request):
    """Ask for a new key of the caller's tenant."""

    name: str = Field(min_length=1, max_length=100)
    scopes: list[Scope] = Field(min_length=1)


class Key(Response):
    """A key without its secret."""

    id: str
    name: str
    prefix: str
    scopes: list[Scope]
    created_at: Timestamp
    last_used_at: Timestamp | None
    revoked_at: Timestamp | None


class KeyCreated(Key):
    """A new key; the secret is shown this once."""

    secret: str
