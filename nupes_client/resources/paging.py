"""Walking through keyset-paged lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from nupes_client.schemas.base import Page, Response
from nupes_client.transport import Transport

R = TypeVar("R", bound=Response)
PAGE_SIZE = 200


def every(
    transport: Transport,
    path: str,
    item: type[R],
    *,
    params: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> Iterator[R]:
    """Yield the items of a list, page after page, at most `limit` of them."""
    left = limit
    cursor: str | None = None
    while left is None or left > 0:
        size = PAGE_SIZE if left is None else min(left, PAGE_SIZE)
        response = transport.request("GET", path, params={**(params or {}), "limit": size, "cursor": cursor})
        page = Page[item].model_validate_json(response.content)  # type: ignore[valid-type]
        yield from page.data[:size]
        left = None if left is None else left - len(page.data)
        cursor = page.next_cursor
        if cursor is None or not page.has_more:
            return
