"""What every wire model shares."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

T = TypeVar("T")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9._/-]+$")]
LabelValue = Annotated[str, StringConstraints(max_length=255)]
Timestamp = datetime


class Request(BaseModel):
    """A body sent by a client: unknown fields are refused, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Response(BaseModel):
    """A body sent by the service. Clients ignore fields they do not know, so that the service can grow."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Page(Response, Generic[T]):
    """One page of a list: keyset paging, newest first."""

    data: list[T]
    next_cursor: str | None = Field(None, description="Pass as `cursor` to get the next page.")
    has_more: bool = False
