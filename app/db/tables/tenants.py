"""Who owns things and how they prove it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.db.tables.base import Base, id_column
from app.db.types import JsonColumn


class Tenant(Base):
    """Who owns things. Every row a user can see belongs to one."""

    __tablename__ = "tenants"
    id: Mapped[str] = id_column("ten")
    name: Mapped[str] = mapped_column(String(100), unique=True)
    quotas: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn)
    """Limits that differ from the service's own, by name of a field of `nupes_client.schemas.usage.Quotas`."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    last_claim_at: Mapped[datetime | None]
    """When a worker last took a job of this tenant: who was served longest ago is next."""


class ApiKey(Base):
    """A credential; only a peppered HMAC of the secret is kept, and of the one before it while both are valid."""

    __tablename__ = "api_keys"
    id: Mapped[str] = id_column("key")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(24))
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    previous_hash: Mapped[str | None] = mapped_column(String(64))
    previous_until: Mapped[datetime | None]
    rotated_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class LoginLink(Base):
    """A link that signs a browser in, until it is used; see `app.keys.links`."""

    __tablename__ = "login_links"
    id: Mapped[str] = id_column("lnk")
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"))
    secret_hash: Mapped[str] = mapped_column(String(64))
    """Of the key's secret that it was made with."""
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    expires_at: Mapped[datetime] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
