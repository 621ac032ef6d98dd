"""API keys."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nupes_client.schemas.base import Instant, Request, Response, Timestamp

Scope = Literal[
    "jobs:read",
    "jobs:write",
    "models:read",
    "models:write",
    "artifacts:read",
    "webhooks:manage",
    "secrets:manage",
    "keys:manage",
    "admin",
]


class KeyCreate(Request):
    """Ask for a new key of the caller's tenant."""

    name: str = Field(min_length=1, max_length=100)
    scopes: list[Scope] = Field(min_length=1)
    expires_at: Instant | None = Field(None, description="Opens nothing from then on; RFC 3339 with its zone.")


class KeyRotate(Request):
    """Ask for a new secret of a key."""

    overlap_s: int = Field(
        24 * 3600, ge=0, le=30 * 24 * 3600, description="Seconds for which the old secret stays valid beside the new."
    )


class Key(Response):
    """A key without its secret."""

    id: str
    name: str
    prefix: str
    scopes: list[Scope]
    created_at: Timestamp
    expires_at: Timestamp | None
    rotated_at: Timestamp | None = Field(description="When the secret was last changed.")
    previous_until: Timestamp | None = Field(description="Until when the secret before it is valid.")
    last_used_at: Timestamp | None
    revoked_at: Timestamp | None


class KeyCreated(Key):
    """A key with its new secret, which is shown this once."""

    secret: str


class LoginLink(Response):
    """What signs a browser in once, in the place of the key."""

    id: str
    path: str = Field(description="On this service, with a token that is shown this once.")
    expires_at: Timestamp
