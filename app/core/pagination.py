"""Keyset paging: newest first, with cursors that say nothing to the client."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query
from sqlalchemy import Select
from sqlalchemy.orm import QueryableAttribute, Session

from app.core.problems import ValidationProblem

T = TypeVar("T")

MAX_LIMIT = 200
_VERSION = "1:"


@dataclass(frozen=True)
class PageQuery:
    """`limit` rows that come after the row with id `after`; from the newest when it is None."""

    limit: int
    after: str | None


async def _page_query(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Rows per page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
) -> PageQuery:
    return PageQuery(limit, _decode(cursor) if cursor is not None else None)


PageParams = Annotated[PageQuery, Depends(_page_query)]


def paginate(
    session: Session, statement: Select[T], id_column: QueryableAttribute[str], params: PageQuery
) -> tuple[list[T], str | None]:
    """Return one page of `statement`, newest first, and the cursor of the next (None on the last).

    Args:
        session: where to read.
        statement: selects the entity, filtered by tenant and whatever the caller asked for; not ordered, not limited.
        id_column: the entity's sortable `id`, or a column that equals it and by which the rows are found sooner.
        params: from the request.
    """
    if params.after is not None:
        statement = statement.where(id_column < params.after)
    rows = list(session.scalars(statement.order_by(id_column.desc()).limit(params.limit + 1)))
    if len(rows) <= params.limit:
        return rows, None
    rows = rows[: params.limit]
    return rows, _encode(_id_of(rows[-1]))


def _id_of(row: Any) -> str:
    return str(row.id)


def _encode(identifier: str) -> str:
    return base64.urlsafe_b64encode((_VERSION + identifier).encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    if not text.startswith(_VERSION) or not text.isprintable():
        raise ValidationProblem(
            f"{cursor!r} is no cursor of this service",
            code="invalid_cursor",
            pointer="/query/cursor",
            hint="Pass `next_cursor` as it came, or leave it out to start from the newest.",
        )
    return text.removeprefix(_VERSION)
