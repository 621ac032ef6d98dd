"""All SQL about secrets, filtered by tenant."""

from __future__ import annotations

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app.db.tables import Secret


def named(session: Session, tenant_id: str, name: str, *, lock: bool = False) -> Secret | None:
    """The tenant's secret of that name; with `lock` nobody else changes it before the transaction ends."""
    query = select(Secret).where(Secret.tenant_id == tenant_id, Secret.name == name)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def listing(tenant_id: str) -> Select[Secret]:
    """The query of a list."""
    return select(Secret).where(Secret.tenant_id == tenant_id)


def count(session: Session, tenant_id: str) -> int:
    """How many secrets the tenant has."""
    return session.scalar(select(func.count()).select_from(Secret).where(Secret.tenant_id == tenant_id)) or 0
