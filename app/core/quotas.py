"""The limits of a tenant: those of the service, except where the database holds others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.settings import Settings
from nupes_client.schemas.usage import Quotas


def quotas_of(settings: Settings, overrides: Mapping[str, Any] | None) -> Quotas:
    """The limits that hold. Not validated again: both sources were when they were set, and every request asks."""
    return Quotas.model_construct(**{**_service_wide(settings), **(overrides or {})})


def _service_wide(settings: Settings) -> dict[str, int | None]:
    """Settings say 0 where there is no limit: an environment variable can not say null."""
    return {name: getattr(settings, f"quota_{name}") or None for name in Quotas.model_fields}
