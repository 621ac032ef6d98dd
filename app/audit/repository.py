"""All SQL about the audit log. Entries are added and, when they are old, deleted; never changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from app.db.tables import AuditEntry
from nupes_client.schemas.audit import AuditAction


@dataclass(frozen=True)
class AuditFilter:
    """What a list is narrowed to; None does not narrow."""

    action: AuditAction | None = None
    resource_id: str | None = None
    key_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


def listing(tenant_id: str, narrow: AuditFilter) -> Select[AuditEntry]:
    """The query of a list."""
    query = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id)
    for column in ("action", "resource_id", "key_id"):
        if (wanted := getattr(narrow, column)) is not None:
            query = query.where(getattr(AuditEntry, column) == wanted)
    if narrow.created_after is not None:
        query = query.where(AuditEntry.created_at > narrow.created_after)
    if narrow.created_before is not None:
        query = query.where(AuditEntry.created_at < narrow.created_before)
    return query


def add(session: Session, entry: AuditEntry) -> None:
    """Add an entry to the caller's transaction."""
    session.add(entry)
    session.flush()


def delete_before(session: Session, moment: datetime) -> int:
    """Forget entries made before a moment, of all tenants; return how many."""
    statement = delete(AuditEntry).where(AuditEntry.created_at < moment)
    return session.connection().execute(statement).rowcount
