"""Manifests of files."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.db.tables.base import Base, id_column


class Model(Base):
    """A manifest of files. `source` says where they come from; hub files have no blob before a worker fetches them."""

    __tablename__ = "models"
    __table_args__ = (Index("ix_models_tenant_id_id", "tenant_id", "id"),)
    id: Mapped[str] = id_column("mdl")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(200))
    source: Mapped[dict[str, Any]]
    config: Mapped[dict[str, Any]]
    headers: Mapped[dict[str, Any]]
    """Per safetensors file its parsed header, so that planning needs no download."""
    architecture: Mapped[str | None] = mapped_column(String(200))
    model_type: Mapped[str | None] = mapped_column(String(100))
    params: Mapped[int]
    bytes: Mapped[int]
    dtype: Mapped[str | None] = mapped_column(String(20))
    license: Mapped[str | None] = mapped_column(String(100))
    findings: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class ModelFile(Base):
    """One file of a model."""

    __tablename__ = "model_files"
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(255), primary_key=True)
    size: Mapped[int]
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
