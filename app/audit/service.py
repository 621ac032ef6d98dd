"""Writing the audit log: always in the transaction of the change, so that there is neither without the other."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.audit import repository
from app.core.security import Principal
from app.db.tables import AuditEntry
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.audit import AuditEntry as View


def record(session: Session, who: Principal, action: AuditAction, resource_id: str) -> None:
    """Note a change that the caller's transaction makes."""
    entry = AuditEntry(
        tenant_id=who.tenant_id,
        key_id=who.key_id,
        action=action.value,
        resource_id=resource_id,
        address=who.address,
        request_id=who.request_id,
    )
    repository.add(session, entry)


def record_command(session: Session, tenant_id: str, action: AuditAction, resource_id: str) -> None:
    """Note a change made by a command on the server, where there is no key and no request."""
    repository.add(session, AuditEntry(tenant_id=tenant_id, action=action.value, resource_id=resource_id))


def view(row: AuditEntry) -> View:
    """The wire model of a row."""
    return View.model_validate(row, from_attributes=True)
