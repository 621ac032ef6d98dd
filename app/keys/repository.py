"""All SQL about keys and tenants."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.db.tables import ApiKey, Tenant


def get(session: Session, tenant_id: str, key_id: str, *, lock: bool = False) -> ApiKey | None:
    """One key of the tenant."""
    query = select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def lock_all(session: Session, tenant_id: str) -> Sequence[ApiKey]:
    """All keys of the tenant as they are now, locked until the end of the transaction."""
    query = select(ApiKey).where(ApiKey.tenant_id == tenant_id).order_by(ApiKey.id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).all()


def listing(tenant_id: str) -> Select[ApiKey]:
    """The query of a list, revoked keys included."""
    return select(ApiKey).where(ApiKey.tenant_id == tenant_id)


def tenant_named(session: Session, name: str) -> Tenant | None:
    """The tenant of that name."""
    return session.scalars(select(Tenant).where(Tenant.name == name)).one_or_none()


def tenant_names(session: Session) -> Sequence[str]:
    """The names of all tenants."""
    return session.scalars(select(Tenant.name).order_by(Tenant.name)).all()
