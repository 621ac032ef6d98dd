"""What every wire model shares."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

T = TypeVar("T")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9._/-]+$")]
LabelValue = Annotated[str, StringConstraints(max_length=255)]
Timestamp = datetime


class Request(BaseModel):
    """A body sent by a client: unknown fields are refused, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_nul(cls, data: Any) -> Any:
        """Refuse NUL characters: PostgreSQL can not store them, and no name or label needs one."""
        values = data.items() if isinstance(data, dict) else ()
        for name, value in values:
            strings = [value, *value, *value.values()] if isinstance(value, dict) else [value]
            if any("\0" in text for text in strings if isinstance(text, str)):
                raise ValueError(f"{name} holds a NUL character")
        return data


class Response(BaseModel):
    """A body sent by the service. Clients ignore fields they do not know, so that the service can grow."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Page(Response, Generic[T]):
    """One page of a list: keyset paging, newest first."""

    data: list[T]
    next_cursor: str | None = Field(None, description="Pass as `cursor` to get the next page.")
    has_more: bool = False
