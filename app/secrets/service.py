"""What a tenant can do with its secrets, in the caller's transaction. Other tenants' secrets do not exist."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.audit import service as audit
from app.core.clock import now
from app.core.problems import ConflictError, NotFoundError
from app.core.sealing import Sealer
from app.core.security import Principal
from app.db.tables import Secret as SecretRow
from app.secrets import repository
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.secrets import Secret, SecretSet

MAX_SECRETS = 100
"""Of one tenant."""


def put(session: Session, sealer: Sealer, who: Principal, body: SecretSet) -> tuple[Secret, bool]:
    """Store a secret or replace the one of that name; return it without its value, and whether it is new.

    Raises:
        ConflictError: the tenant has as many as it can have, or another request makes the same one right now.
    """
    sealed = sealer.seal(body.value.get_secret_value())
    row = repository.named(session, who.tenant_id, body.name, lock=True)
    if row is not None:
        row.kind, row.sealed, row.updated_at = body.kind, sealed, now()
        session.flush()
        audit.record(session, who, AuditAction.SECRET_REPLACED, row.id)
        return view(row), False
    row = _add(session, SecretRow(tenant_id=who.tenant_id, name=body.name, kind=body.kind, sealed=sealed))
    audit.record(session, who, AuditAction.SECRET_CREATED, row.id)
    return view(row), True


def get(session: Session, tenant_id: str, name: str, *, lock: bool = False) -> SecretRow:
    """Return one secret.

    Raises:
        NotFoundError: no such secret in this tenant.
    """
    row = repository.named(session, tenant_id, name, lock=lock)
    if row is None:
        raise NotFoundError("secret", name)
    return row


def remove(session: Session, who: Principal, name: str) -> None:
    """Delete a secret. Whoever revokes a token need not wait: a job that needs it fails and says so."""
    row = get(session, who.tenant_id, name, lock=True)
    session.delete(row)
    session.flush()
    audit.record(session, who, AuditAction.SECRET_DELETED, row.id)


def view(row: SecretRow) -> Secret:
    """The wire model of a row."""
    return Secret.model_validate(row, from_attributes=True)


def _add(session: Session, row: SecretRow) -> SecretRow:
    if repository.count(session, row.tenant_id) >= MAX_SECRETS:
        raise ConflictError(
            "too_many_secrets", f"there are {MAX_SECRETS} secrets already", hint="Delete one that is not needed."
        )
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        raise ConflictError(
            "secret_conflict", f"another request stores the secret {row.name!r} right now", retryable=True
        ) from error
    return row
