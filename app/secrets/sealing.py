"""Values of secrets: sealed when they come, opened for the child that takes them to a hub."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.core.clock import now
from app.core.sealing import Sealer
from app.core.secret_key import load_pepper
from app.secrets import repository
from app.settings import Settings
from nupes_client.schemas.secrets import SecretKind

_PURPOSE = b"nupes tenant secrets 1"


class MissingSecretError(Exception):
    """The tenant has no such secret (any more)."""


def sealer(pepper: bytes) -> Sealer:
    """What seals and opens the secrets of tenants."""
    return Sealer(pepper, _PURPOSE)


def take(session: Session, settings: Settings, tenant_id: str, name: str, kind: SecretKind) -> str:
    """Return the value of a secret, and note that it was used.

    Raises:
        MissingSecretError: there is none of that name and kind.
        UnreadableSecretError: it was stored under another secret key of the service.
    """
    row = repository.named(session, tenant_id, name)
    if row is None or row.kind != kind:
        raise MissingSecretError(f"there is no secret {name!r} of kind {kind}")
    value = sealer(load_pepper(settings)).open(row.sealed)
    row.last_used_at = now()
    return value
