"""What every wire model shares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

T = TypeVar("T")

_NUMBER = re.compile(r"\s*[-+]?[0-9._]*(?:[eE][-+]?[0-9]+)?\s*")
_SURROGATE = re.compile("[\\ud800-\\udfff]")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9._/-]+$")]
LabelValue = Annotated[str, StringConstraints(max_length=255)]
Timestamp = datetime


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # the first or last hours of the calendar, in another zone
        raise ValueError("the time lies outside the years 1 to 9999 in UTC") from None


def _is_no_number(moment: Any) -> Any:
    """Refuse seconds since 1970, which pydantic would take: nobody means `created_after=20261122` that way."""
    if isinstance(moment, bool | int | float) or (isinstance(moment, str) and _NUMBER.fullmatch(moment)):
        raise ValueError("write it as 2026-11-22T12:00:00Z")
    return moment


Instant = Annotated[AwareDatetime, BeforeValidator(_is_no_number), AfterValidator(_in_utc)]
"""A point in time that a client names: with its zone; taken to UTC."""


class Request(BaseModel):
    """A body sent by a client: unknown fields are refused, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _can_be_stored(cls, data: Any) -> Any:
        """Refuse NUL characters and lone surrogates, which no database can hold and no name or label needs.

        Also `true` for 1, which pydantic would take: whoever writes `"seed": true` means something else.
        """
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field and not _takes_bool(field.annotation):
                raise ValueError(f"{name} is neither true nor false")
            text = "".join(_texts(value))
            if "\0" in text:
                raise ValueError(f"{name} holds a NUL character")
            if not text.isascii() and _SURROGATE.search(text):
                raise ValueError(f"{name} holds half a surrogate pair, which is no character")
        return data


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(part) for part in get_args(annotation))


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
