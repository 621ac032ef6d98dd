"""What every wire model shares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

T = TypeVar("T")

_SURROGATE = re.compile("[\\ud800-\\udfff]")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9._/-]+$")]
LabelValue = Annotated[str, StringConstraints(max_length=255)]
Timestamp = datetime


class Request(BaseModel):
    """A body sent by a client: unknown fields are refused, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _can_be_stored(cls, data: Any) -> Any:
        """Refuse NUL characters and lone surrogates, which no database can hold and no name or label needs."""
        for name, value in data.items() if isinstance(data, dict) else ():
            text = "".join(_texts(value))
            if "\0" in text:
                raise ValueError(f"{name} holds a NUL character")
            if not text.isascii() and _SURROGATE.search(text):
                raise ValueError(f"{name} holds half a surrogate pair, which is no character")
        return data


def _texts(value: Any) -> Iterator[str]:
    """Strings of a field, of its list or of its mapping; nested models look at their own."""
    values = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return (text for text in values if isinstance(text, str))


class Response(BaseModel):
    """A body sent by the service. Clients ignore fields they do not know, so that the service can grow."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Page(Response, Generic[T]):
    """One page of a list: keyset paging, newest first."""

    data: list[T]
    next_cursor: str | None = Field(None, description="Pass as `cursor` to get the next page.")
    has_more: bool = False
