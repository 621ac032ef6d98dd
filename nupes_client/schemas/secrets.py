"""Secrets that jobs may use, known by name: written, replaced and deleted, never read."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from nupes_client.schemas.base import Request, Response, Timestamp

SecretName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
SecretKind = Literal["hub_token"]

_VALUE = re.compile(r"[!-~]{1,2000}")


def _can_be_a_header(value: SecretStr) -> SecretStr:
    if not _VALUE.fullmatch(value.get_secret_value()):
        raise ValueError("must be 1 to 2000 printable ASCII characters without spaces or line breaks")
    return value


class SecretSet(Request):
    """Store a secret, or replace the one that has the name: jobs that wait then use the new value."""

    name: SecretName
    kind: SecretKind = "hub_token"
    value: Annotated[SecretStr, AfterValidator(_can_be_a_header)] = Field(
        description="Kept encrypted, given to the hub alone, and in no answer."
    )


class Secret(Response):
    """A secret without its value."""

    id: str
    name: str
    kind: SecretKind
    created_at: Timestamp
    updated_at: Timestamp = Field(description="When the value was last replaced.")
    last_used_at: Timestamp | None = Field(description="When a job last took it to a hub.")
