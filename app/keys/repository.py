"""All SQL about keys and tenants."""

from __future__ import annotations

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.db.tables import ApiKey, Tenant


def get(session: Session, tenant_id: str, key_id: str) -> ApiKey | None:
    """One key of the tenant."""
    return session.scalars(select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)).one_or_none()


def listing(tenant_id: str) -> Select[ApiKey]:
    """The query of a list, revoked keys included."""
    return select(ApiKey).where(ApiKey.tenant_id == tenant_id)


def tenant_named(session: Session, name: str) -> Tenant | None:
    """The tenant of that name."""
    return session.scalars(select(Tenant).where(Tenant.name == name)).one_or_none()
